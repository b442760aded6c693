"""The faults of a connection: plain values, and the checks of callers' arguments.

It uses no sockets and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import PROXY_ARGUMENT

Hole: TypeAlias = Literal["drop", "hold", "lose"]
How: TypeAlias = Literal["fin", "rst"]
Way: TypeAlias = Literal["both", "up", "down"]
#: Which connections: existing ones, future ones, both, or the nth ever accepted (from 1).
Scope: TypeAlias = Literal["all", "existing", "new"] | int

_SCOPES = ("all", "existing", "new")


@dataclass(frozen=True, slots=True, eq=False)
class Quota:
    """After so many bytes, counted from its order, only so many a second pass; 0: none.

    Each order is an object of its own.
    """

    bytes: int
    rate: float


@dataclass(frozen=True, slots=True)
class Rules:
    """The treatment of the bytes in one direction of a connection."""

    hole: Hole | None = None  #: discard everything, permanently or until the faults end
    stalled: bool = False  #: do not even read: the sender's window closes
    latency: float = 0.0  #: seconds later, …
    jitter: float = 0.0  #: … plus or minus so many
    rate: float = math.inf  #: bytes per second
    piece: int | None = None  #: maximum number of bytes in one segment, …
    gap: float = 0.0  #: … and seconds between two of them
    quota: Quota | None = None  #: so many bytes pass, then nearly none


PLAIN = Rules()


@dataclass(frozen=True, slots=True, eq=False)
class Cutoff:
    """A future end: after so many bytes (both ways together), or so many seconds.

    Each order is an object of its own.
    """

    bytes: int | None
    seconds: float | None
    how: How


@dataclass(frozen=True, slots=True)
class Conduct:
    """The faults of one connection. *up* is from the client to the server, *down* from the server
    to the client.
    """

    up: Rules = PLAIN
    down: Rules = PLAIN
    end: How | Literal["half"] | None = None  #: immediately
    cutoff: Cutoff | None = None
    idle_limit: float | None = None
    idle_reset: bool = False

    def on_way(self, way: Way, change: Callable[[Rules], Rules]) -> Conduct:
        """Return a copy with the rules of that way changed."""
        up = self.up if way == "down" else change(self.up)
        return replace(self, up=up, down=self.down if way == "up" else change(self.down))


UNTOUCHED = Conduct()
Change: TypeAlias = Callable[[Conduct], Conduct]


@dataclass(slots=True)
class Standing:
    """The faults of future connections: the verbs called so far, with their scopes, in
    order.
    """

    _said: list[tuple[Scope, Change]] = field(default_factory=list)

    def add(self, on: Scope, change: Change) -> None:
        """Keep *change*, unless it is for existing connections only."""
        if on != "existing":
            self._said.append((on, change))

    def clear(self) -> None:
        """Remove all verbs."""
        self._said.clear()

    def conduct(self, n: int) -> Conduct:
        """Return the faults of the new connection *n*."""
        conduct = UNTOUCHED
        for on, change in self._said:
            if on in ("all", "new") or on == n:
                conduct = change(conduct)
        return conduct


def scope(on: Any) -> Scope:
    """Return *on*, checked. A ConfigurationError names the valid values."""
    if isinstance(on, str) and on in _SCOPES:
        return on  # type: ignore[return-value]
    if isinstance(on, int) and not isinstance(on, bool) and on >= 1:
        return on
    raise ConfigurationError(
        PROXY_ARGUMENT(
            f"on={on!r} must be 'all', 'existing', 'new' or the number of a connection, from 1"
        )
    )


def one_of(name: str, value: Any, known: tuple[str, ...]) -> Any:
    """Return *value*, which must be one of the *known* words."""
    if not isinstance(value, str) or value not in known:
        raise ConfigurationError(
            PROXY_ARGUMENT(f"{name}={value!r} must be one of {', '.join(map(repr, known))}")
        )
    return value


def way(value: Any) -> Way:
    """Return *value* as a direction, checked."""
    return one_of("way", value, ("both", "up", "down"))  # type: ignore[no-any-return]


def how(value: Any) -> How:
    """Return *value* as a way to end a connection, checked."""
    return one_of("how", value, ("fin", "rst"))  # type: ignore[no-any-return]


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return *value*, a whole number of at least *least*."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(
            PROXY_ARGUMENT(f"{name}={value!r} must be a whole number of at least {least}")
        )
    return value


def number(name: str, value: Any, unit: str = "seconds", *, above_zero: bool = False) -> float:
    """Return *value*, a finite number of at least 0 (with *above_zero*: above 0)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    if not good or value < 0 or (above_zero and value == 0):
        raise ConfigurationError(
            PROXY_ARGUMENT(
                f"{name}={value!r} must be a number of {unit},"
                f" {'more than' if above_zero else 'at least'} 0"
            )
        )
    return float(value)


def yes_or_no(name: str, value: Any) -> bool:
    """Return *value*, True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(PROXY_ARGUMENT(f"{name}={value!r} must be True or False"))
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
