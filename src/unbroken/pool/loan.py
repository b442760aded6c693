"""One connection while a caller has it: every decision about it, for every body.

A body (threads, asyncio, SQLAlchemy, Django, peewee) asks a :class:`Loan` and nothing else: is the
connection dead, whose fault is it, what does an error mean, is the exchange with the server known
to have ended, may the connection go back, and what is the caller told. What is not known to be good
is closed, and the pool opens another one.
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
    """One connection in a caller's hands, from the moment it was noted in ``Kernel.in_use`` until
    it goes back.

    Methods that talk to the server are flows: the body runs their steps in its own way. ``begun``
    is None until :meth:`begin`; then it holds the unit of work that looks on and the timer that
    ends this use, either of them None.
    """

    __slots__ = ()

    in_block = False  #: whether it ends with the ``with`` block that took the connection

    def give_back(self, otherwise: Cause | None = None) -> None:
        """The connection goes back to the pool where it is known to be good.

        Else it is closed, *otherwise* being why.
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
        """Close the connection, whatever state it is in; the pool opens another one."""
        state, entry, conn = self.state, self.entry, self.conn
        self.disarm()
        state.leave_unit(entry, conn)
        state.take_back(entry, conn, healthy=False)

    # -- words -------------------------------------------------------------------------------------

    def shown(self, exc: BaseException, deadline: float | None) -> BaseException:
        """The error that the caller should see for *exc*: its own, unless we were the ones who
        ended the connection.
        """
        state, entry = self.state, self.entry
        if (
            entry.cause is Cause.DEADLINE
            and isinstance(exc, Exception)
            and not isinstance(exc, CommitUnknownError | DeadlineExceeded)
        ):
            # a unit's deadline bounds all of its loans together
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
            return f"it was held for more than leak_after={settings.leak_after} s; reclaim is on"
        return "the request that took it had ended without releasing it, or close_stale() ended it"
