"""Does a pooler stand between this process and a server, does it share sessions, and does it take a
statement before the answer to the last one has come?

A pooler (PgBouncer, Odyssey, PgCat, Supavisor) answers the login itself, with a number for the
session that it has made up, and leads each transaction (or each client) to a session of its own
choice. So the number that a client was told at its login is not the one that the session gives
itself. A made-up number is nearly always larger than any that an operating system gives a process:
such a connection is recognised without a question.

Both protocols let a client send a statement before it has read the last answer, and the servers
answer them in turn. Not every proxy does: ProxySQL closes such a connection ("Unexpected packet
from client, disconnecting the client"). So this is tried on a new connection that nobody has yet,
unless a pooler is known to stand there, behind which no driver does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

#: The largest number that Linux gives a process; other systems stop earlier.
LARGEST = 1 << 22
#: So many connections in turn, each opened after the one before was lost, are lost with a statement
#: behind one that was not answered, until none is sent so any more. A server that is killed ends
#: all of them at once, which counts as one.
LOST_FLIGHTS = 2
#: … within so many seconds from one to the next.
LOST_WITHIN = 60.0
#: After so many seconds a new connection, which nobody has yet, tries again: a server that was
#: killed twice looks the same. After each time that was in vain it takes twice as long, up to a
#: day.
TRY_AGAIN = 300.0
LONGEST_REST = 86_400.0


class Pooler:
    """What is known of a pooler before one server. The caller holds the lock of its record."""

    __slots__ = (
        "_again_at", "_large_are_true", "_losses", "_lost_at", "_rest", "pipelines", "shares",
        "stands", "told", "used",
    )  # fmt: skip

    def __init__(self) -> None:
        self.stands: bool | None = None  #: whether there is one; None: nothing is known
        #: it is certain that it gives one client's transactions to several sessions
        self.shares = False
        self.told: set[str] = set()  #: warnings that were given: each is given once
        #: what was left on a session before that was certain
        self.used: frozenset[str] = frozenset()
        #: numbers larger than a process can have turned out to be true (CockroachDB)
        self._large_are_true = False
        #: whether a statement may be sent before the last one was answered; None: to be tried
        self.pipelines: bool | None = None
        self._losses, self._lost_at = 0, -math.inf
        self._again_at, self._rest = math.inf, TRY_AGAIN

    def lost_in_flight(self, now: float, born: float, *, is_proven: bool = False) -> bool:
        """A connection that was opened at *born* was lost at *now*, with a statement behind one
        that was not answered. True: that was once too often, which is news.

        *is_proven*: it was not lost. Its answers came in another order, or were others, or one of
        them did not come.
        """
        if born <= self._lost_at and not is_proven:
            return False  # by the same cause as others
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
        """Whether a connection that is opened at *now* is to try it."""
        if self.stands:
            return False
        return self.pipelines is None or (self.pipelines is False and now >= self._again_at)

    def judge(self, number: int | None) -> bool | None:
        """Whether a connection that was told *number* at its login goes through a pooler. None: the
        session must be asked, and must be taken for one behind a pooler until it has answered.
        """
        if number is None:
            return self.stands
        if 0 < number <= LARGEST:
            return False if self.stands is False else None
        if self._large_are_true:
            return False
        return True if self.stands else None

    def hear(self, number: int, session: int) -> None:
        """A session gives itself the number *session*, and the login gave it *number*."""
        self.stands = number != session
        if not self.stands:
            self._large_are_true = self._large_are_true or not 0 < number <= LARGEST

    def meets(self, session: int, others: Iterable[int]) -> bool:
        """A connection was found in *session*, and other connections, which are open now, in
        *others*. True: it is certain from now on that sessions are shared.
        """
        return session in set(others) and self.found_sharing()

    def met_stranger(self) -> bool:
        """A session did not know what was prepared on its connection. True: it is certain from now
        on that sessions are shared, which is news.

        Where it is known that no pooler stands in between, the connection's holder had its session
        forget (``DEALLOCATE ALL``).
        """
        return self.stands is not False and self.found_sharing()

    def found_sharing(self) -> bool:
        """A connection was led to another session. True: that is news."""
        self.stands = True
        is_news, self.shares = not self.shares, True
        return is_news

    def warns(self, what: str) -> bool:
        """Whether to warn of *what* now: once per server and process."""
        is_news = what not in self.told
        self.told.add(what)
        return is_news
