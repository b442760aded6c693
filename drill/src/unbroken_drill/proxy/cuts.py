"""A cut at a statement: which statement, before or after its execution, how often.

The module also defines the facts that a reader of a protocol reports about a stream.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import PROXY_ARGUMENT, PROXY_CUT
from unbroken_drill.proxy.errors import ProxyError
from unbroken_drill.proxy.plan import How, Scope


@dataclass(frozen=True, slots=True)
class Spoken:
    """The client sent a statement for execution. Offsets are into the chunk just read."""

    ticket: int  #: the number that its answer will have
    text: str
    start: int  #: where its message begins; 0 when it began in an earlier chunk
    end: int  #: where its message ends


@dataclass(frozen=True, slots=True)
class Answer:
    """A fact about the answer to a statement: it begins at *at*, or (*complete*) has ended
    there.
    """

    ticket: int
    at: int
    complete: bool


class Reader(Protocol):
    """Follows one connection's protocol in both directions, for data in pieces of any size.

    Never raises.
    """

    #: the reason why statements cannot be read any more (TLS, compression, another protocol)
    unreadable: str | None

    def up(self, data: bytes) -> Iterable[Spoken]:
        """Read *data* from the client."""

    def down(self, data: bytes) -> Iterable[Answer]:
        """Read *data* from the server."""


def pattern(statement: str | re.Pattern[str]) -> re.Pattern[str]:
    """Return a pattern that finds *statement*. A compiled pattern is searched for in the text. A
    string must begin the text, in any case, in whole words.
    """
    if isinstance(statement, re.Pattern) and isinstance(statement.pattern, str):
        return statement
    if not isinstance(statement, str) or not statement.strip():
        raise ConfigurationError(
            PROXY_ARGUMENT(
                f"statement={statement!r} must be the beginning of a statement, such as 'COMMIT',"
                " or a compiled pattern"
            )
        )
    words = r"\s+".join(re.escape(word) for word in statement.split())
    border = r"(?!\w)" if re.search(r"\w$", words) else ""
    return re.compile(rf"\s*{words}{border}", re.IGNORECASE)


class Cut:
    """A cut that waits for its statement; :meth:`FaultProxy.cut_at` returns it.

    ``hits``: the number of cuts so far.
    """

    def __init__(
        self,
        statement: str | re.Pattern[str],
        *,
        before: bool,
        times: int,
        on: Scope,
        how: How,
        count: int,
    ) -> None:
        self._pattern = pattern(statement)
        self._anchored = isinstance(statement, str)
        self.statement = statement if isinstance(statement, str) else statement.pattern
        self.before, self.on, self.how = before, on, how
        self.times = times
        self.left = times  #: cuts to come, without those that wait for their statement's answer
        self.connections: tuple[int, ...] = ()  #: the numbers of the cut connections, in order
        self._count = count  # connections accepted before this
        self._unreadable: list[str] = []
        self._news = threading.Condition()

    def __repr__(self) -> str:
        return (
            f"<Cut {'before' if self.before else 'after'} {self.statement!r}: {self.hits} done,"
            f" {self.left} left>"
        )

    @property
    def story(self) -> str:
        """A description of the cut, for the log."""
        if self.before:
            return f"before {self.statement} reached the server"
        return f"after {self.statement} was answered, before the answer reached the client"

    @property
    def hits(self) -> int:
        """The number of cuts so far."""
        return len(self.connections)

    @property
    def is_spent(self) -> bool:
        """Whether it has made all its cuts."""
        return self.hits >= self.times

    def covers(self, n: int) -> bool:
        """Return whether it applies to the connection *n*."""
        if isinstance(self.on, int):
            return n == self.on
        return self.on == "all" or (n <= self._count) == (self.on == "existing")

    def matches(self, n: int, text: str) -> bool:
        """Return whether to cut the connection *n*, which executes *text*."""
        find = self._pattern.match if self._anchored else self._pattern.search
        return self.left > 0 and self.covers(n) and find(text) is not None

    def done(self, n: int) -> None:
        """Note that the connection *n* was cut."""
        with self._news:
            self.connections += (n,)
            self._news.notify_all()

    def cannot_read(self, n: int, why: str) -> None:
        """Note that the connection *n* cannot be read: waiting callers get an error."""
        with self._news:
            self._unreadable.append(f"connection {n}: {why}")
            self._news.notify_all()

    def wait(self, timeout: float = 10.0, hits: int = 1) -> None:
        """Wait until it has cut *hits* times.

        Raises ProxyError after *timeout* seconds, or immediately if a connection cannot be read.
        """
        end = time.monotonic() + timeout
        with self._news:
            while self.hits < hits:
                if self._unreadable:
                    raise ProxyError(
                        PROXY_CUT(f"no cut at {self.statement!r}: {self._unreadable[0]}")
                    )
                if not self._news.wait(max(0.0, end - time.monotonic())) and self.hits < hits:
                    raise ProxyError(
                        PROXY_CUT(
                            f"no cut at {self.statement!r} within {timeout:g} s: {self.hits} of"
                            f" {hits}; was it executed?"
                        )
                    )
