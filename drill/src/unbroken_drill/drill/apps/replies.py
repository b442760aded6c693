"""A request to the user's app, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

OK: Final = "ok"
ERROR: Final = "error"
HUNG: Final = "hung"

HUNG_TEXT: Final = "no answer within"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL to request. ``{n}`` in the URL and the body becomes the request's number, from 1."""

    url: str
    method: str = "GET"
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name for people: its method, and its path and query."""
        rest = self.url.partition("://")[2]
        return f"{self.method} /{rest.partition('/')[2]}"


class Reply(NamedTuple):
    """One request and its outcome. Times are ``time.monotonic()``."""

    due: float  #: its scheduled time: latency counts from here
    sent: float  #: when it was sent
    end: float
    status: int  #: 0: there was no HTTP response
    line: str  #: the body's first line, or the reason for the missing response
    target: int  #: the number of the target

    @property
    def outcome(self) -> str:
        """``ok`` below status 400, ``hung`` without an answer in time, otherwise ``error``."""
        if self.status:
            return OK if self.status < 400 else ERROR
        return HUNG if self.line.startswith(HUNG_TEXT) else ERROR
