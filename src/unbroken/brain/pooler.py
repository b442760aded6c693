"""Detect whether a pooler stands between this process and a server, whether it shares sessions, and
whether it accepts a statement before the answer to the last one.

A pooler (PgBouncer, Odyssey, PgCat, Supavisor) answers the login itself, with an invented session
number. It then routes each transaction (or each client) to a session of its own choice. So the
number from the login differs from the number that the session itself reports. An invented number is
nearly always larger than any process number of an operating system: such a connection is recognised
without a query.

Both protocols let a client send a statement before it has read the last answer, and the servers
answer them in order. Not every proxy does: ProxySQL closes such a connection ("Unexpected packet
from client, disconnecting the client"). So the pool tests this on a new connection that no caller
has yet. It does not test it behind a known pooler, because no driver sends statements that way
there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

#: The largest process number on Linux; other systems stop earlier.
LARGEST = 1 << 22
#: Number of consecutive connections, each opened after the one before was lost, that were lost with
#: a statement sent behind an unanswered one. After that many, statements are not sent that way any
#: more. A server that is killed ends all connections together, which counts as one.
LOST_FLIGHTS = 2
#: … with at most this many seconds between two of them.
LOST_WITHIN = 60.0
#: After this many seconds a new connection, which no caller has yet, tests it again: a server that
#: was killed twice looks the same. Each failed test doubles this time, up to a day.
TRY_AGAIN = 300.0
LONGEST_REST = 86_400.0


class Pooler:
    """The state of the pooler, if any, before one server. The caller holds the lock of the server's
    record.
    """

    __slots__ = (
        "_again_at", "_large_are_true", "_losses", "_lost_at", "_rest", "pipelines", "shares",
        "stands", "told", "used",
    )  # fmt: skip

    def __init__(self) -> None:
        self.stands: bool | None = None  #: whether there is a pooler; None: unknown
        #: Whether it certainly spreads one client's transactions over several sessions.
        self.shares = False
        self.told: set[str] = set()  #: warnings that were logged: each is logged once
        #: The session state that callers left before that was certain.
        self.used: frozenset[str] = frozenset()
        #: Whether numbers larger than a process number turned out to be real (CockroachDB).
        self._large_are_true = False
        #: Whether a statement may be sent before the last one was answered. None: not tested yet.
        self.pipelines: bool | None = None
        self._losses, self._lost_at = 0, -math.inf
        self._again_at, self._rest = math.inf, TRY_AGAIN

    def lost_in_flight(self, now: float, born: float, *, is_proven: bool = False) -> bool:
        """A connection that was opened at *born* was lost at *now*, with a statement sent behind an
        unanswered one. Return True if that makes too many losses, which is news.

        *is_proven*: it was not lost. Its answers came in another order, were wrong, or one of them
        did not come.
        """
        if born <= self._lost_at and not is_proven:
            return False  # the same cause as other losses
        self._losses = self._losses + 1 if now - self._lost_at <= LOST_WITHIN else 1
        if is_proven:
            self._losses = LOST_FLIGHTS
        self._lost_at = now
        was = self.pipelines
        self.pipelines = False if was is False or self._losses >= LOST_FLIGHTS else None
        if self.pipelines is False:
            self._again_at = now + self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        return self.pipelines is False and was is not False

    def wants_flight(self, now: float) -> bool:
        """Whether a connection that is opened at *now* should test sending a statement ahead of an
        answer.
        """
        if self.stands:
            return False
        return self.pipelines is None or (self.pipelines is False and now >= self._again_at)

    def judge(self, number: int | None) -> bool | None:
        """Whether a connection with *number* from its login goes through a pooler. None: the
        session must be asked. Until it has answered, treat it as one behind a pooler.
        """
        if number is None:
            return self.stands
        if 0 < number <= LARGEST:
            return False if self.stands is False else None
        if self._large_are_true:
            return False
        return True if self.stands else None

    def hear(self, number: int, session: int) -> None:
        """A session reports its own number as *session*, and the login gave *number*."""
        self.stands = number != session
        if not self.stands:
            self._large_are_true = self._large_are_true or not 0 < number <= LARGEST

    def meets(self, session: int, others: Iterable[int]) -> bool:
        """A connection was found in *session*, while other open connections were found in *others*.
        Return True if this is the first proof that sessions are shared.
        """
        return session in set(others) and self.found_sharing()

    def met_stranger(self) -> bool:
        """A session did not know a statement that was prepared on its connection. Return True if
        this is the first proof that sessions are shared.

        If it is known that no pooler stands in between, the connection's holder deallocated its
        statements (``DEALLOCATE ALL``).
        """
        return self.stands is not False and self.found_sharing()

    def found_sharing(self) -> bool:
        """A connection was routed to another session. Return whether that is news."""
        self.stands = True
        is_news, self.shares = not self.shares, True
        return is_news

    def warns(self, what: str) -> bool:
        """Whether to warn of *what* now: once per server and process."""
        is_news = what not in self.told
        self.told.add(what)
        return is_news
