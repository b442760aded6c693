"""What run.py tells the process of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Size of the file that says where a sweep is (bytes).
PROGRESS = 256


@dataclass(kw_only=True)
class How:
    """How a body is to be struck."""

    passes: list[tuple[int, str]]  #: a pool's size, and what is raised or done
    scenes: list[str] = field(default_factory=list)  #: empty: all
    step: int = 1  #: every point, or every so many
    share: bool = False  #: each point is struck in one of the passes only, by turns
    all: bool = False  #: each time that the work comes by a point, not the first and the last only
    signals: float = (
        0.0  #: seconds of each pass by real signals at random moments; 0: at each point instead
    )
    seed: int = 1  #: of the random moments
    loud: bool = False  #: each wrong is printed as it is found


@dataclass(kw_only=True)
class Order(How):
    """Which body, and where the worker is to go on."""

    body: str
    driver: str
    url: str
    progress: str  #: the path of a file that says where the sweep is
    skip: list[int] | None = None  #: pass, scene and point to go on after
