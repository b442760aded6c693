"""What clients were told of each unit: begun, then acknowledged, unknown or refused; in a file,
which forked children write to as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from unbroken import CommitUnknownError


@dataclass
class History:
    """What was told, by the units' numbers."""

    begun: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)  #: COMMITs in doubt
    refused: dict[int, str] = field(default_factory=dict)  #: with the error

    @classmethod
    def of(cls, lines: Iterable[str]) -> Self:
        """Of a journal's *lines*. What was begun by a process that heard no more is unknown.

        Raises ValueError where a unit is begun or ends twice, or ends and was never begun.
        """
        history, ended = cls(), set[int]()
        for line in lines:
            word, number, why = (*line.rstrip("\n").split(" ", 2), "")[:3]
            n = int(number)
            if n in (history.begun if word == "begun" else ended) or (
                word != "begun" and n not in history.begun
            ):
                raise ValueError(f"the journal tells this out of turn: {line!r}")
            if word == "begun":
                history.begun.add(n)
                continue
            ended.add(n)
            if word == "refused":
                history.refused[n] = why
            else:
                {"acknowledged": history.acknowledged, "unknown": history.unknown}[word].add(n)
        history.unknown |= history.begun - ended
        return history


class Journal:
    """Writes the file at *path*: each line at once and whole, whichever process writes it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @contextmanager
    def attempt(self, number: int) -> Iterator[None]:
        """The block is one unit, with all its replays; how it ends is written down, and no error of
        it goes further.
        """
        self._tell("begun", number)
        try:
            yield
        except CommitUnknownError:
            self._tell("unknown", number)
        except Exception as error:
            notes = "; ".join(getattr(error, "__notes__", ()))
            self._tell(
                "refused", number, " ".join(f"{type(error).__name__}: {error} {notes}".split())
            )
        else:
            self._tell("acknowledged", number)

    def _tell(self, word: str, number: int, why: str = "") -> None:
        os.write(
            self._file, f"{word} {number} {why[:1000]}".strip().encode(errors="replace") + b"\n"
        )
