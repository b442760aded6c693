"""One connection while a caller has it: every decision about it, for every body.

A body (threads, asyncio, SQLAlchemy, Django, peewee) asks only the :class:`Loan`: whether the
connection is dead and why, what an error means, and whether the last exchange with the server has
ended. The loan also decides whether the connection can be reused, and which error the caller gets.
A connection that is not known to be good is closed, and the pool opens another one.
"""

from __future__ import annotations

from unbroken.abc import Cause
from unbroken.errors import (
    CommitUnknownError,
    DeadlineExceeded,
)
from unbroken.messages.data import DEADLINE
from unbroken.messages.processes import RECLAIMED
from unbroken.pool.finishing import Finishing
from unbroken.pool.rollbacks import in_words


class Loan(Finishing):
    """One connection in use, from its entry in ``Kernel.in_use`` until it is returned.

    Methods that talk to the server are flows: the body runs their steps in its own way. ``begun``
    is None until :meth:`begin`. Then it holds the unit of work that records and the timer that ends
    this use; either can be None.
    """

    __slots__ = ()

    in_block = False  #: whether it ends with the ``with`` block that took the connection

    def give_back(self, otherwise: Cause | None = None) -> None:
        """Return the connection to the pool if it is known to be good.

        Otherwise close it, with the cause *otherwise*.
        """
        state, entry, conn = self.state, self.entry, self.conn
        self.disarm()
        if self.is_closed_by_holder:
            self._blame_holder()
        good = entry.cause is None and state.is_good(entry, conn) and not self.left()
        state.leave_unit(entry, conn)
        if not good and otherwise is not None:
            entry.condemn(otherwise)
        state.take_back(entry, conn, healthy=good)

    def drop(self) -> None:
        """Close the connection, in any state. The pool opens another one."""
        state, entry, conn = self.state, self.entry, self.conn
        self.disarm()
        state.leave_unit(entry, conn)
        state.take_back(entry, conn, healthy=False)

    # -- texts -------------------------------------------------------------------------------------

    def shown(self, exc: BaseException, deadline: float | None) -> BaseException:
        """The error that the caller should see for *exc*: its own, unless the pool ended the
        connection.
        """
        state, entry = self.state, self.entry
        if (
            entry.cause is Cause.DEADLINE
            and isinstance(exc, Exception)
            and not isinstance(exc, CommitUnknownError | DeadlineExceeded)
        ):
            # a unit's deadline limits all of its loans together
            limit = "" if deadline is None else f" of {deadline} s"
            fate = self._fate()
            left = in_words(fate, state.backend)
            error: BaseException = state.error(
                DeadlineExceeded,
                DEADLINE(
                    f"work on a connection to {state.where(self.entry)} took longer than its"
                    f" deadline{limit}; its connection was ended, and {left}"
                ),
                fate=fate,
            )
            error.__cause__ = exc
            return error
        if entry.cause is Cause.RECLAIMED:
            exc.add_note(RECLAIMED(f"unbroken ended this connection: {self._why_reclaimed()}"))
        return exc

    def _why_reclaimed(self) -> str:
        settings = self.state.settings
        if settings.reclaim and self.state.clock() - self.entry.taken_at >= settings.leak_after:
            return (
                f"it was held for longer than leak_after={settings.leak_after} s, and reclaim is on"
            )
        return "the request that took it had ended without releasing it, or close_stale() ended it"
