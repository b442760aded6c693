"""What drivers of MySQL have that can send a statement before the answer that is due was read."""

from __future__ import annotations

from typing import Any

from unbroken.abc import Connection
from unbroken.drivers import _mysql


class Ahead:
    """Whether that is allowed is decided for each connection; it is not, until somebody says so."""

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Whether a statement may be sent on *conn* before the answer that is due was read."""
        conn._seen_flies = may

    def may_leave(self, conn: Connection) -> bool:
        """Whether a transaction is open whose end does nothing else on *conn*, so that the answer
        to it can be read later. Behind COMMIT AND CHAIN, another one is open.
        """
        is_open: Any = self.is_in_transaction  # type: ignore[attr-defined] # each driver's own
        return is_open(conn) is True and not _mysql.may_chain(conn)

    def ran_code(self, conn: Connection) -> bool:
        """Whether a routine was run on *conn*, which may have changed what a COMMIT or ROLLBACK
        does there, since such an end was seen last.
        """
        return _mysql.ran_code(conn)

    def end_seen(self, conn: Connection) -> None:
        """A COMMIT or ROLLBACK that was sent after that was answered as expected, or will be read
        before anything else is sent.
        """
        conn.__dict__.pop("_seen_code", None)

    def is_unread(self, conn: Connection) -> bool:
        """Whether the answer that is due was never read, also where *conn* has ended."""
        due = getattr(conn, "_seen_due", None)  # for some, a number of the server's
        return due is not None and due != ()
