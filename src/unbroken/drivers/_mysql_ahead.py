"""The common part of MySQL drivers that can send a statement before the answer that is due was
read.
"""

from __future__ import annotations

from typing import Any

from unbroken.abc import Connection
from unbroken.drivers import _mysql


class Ahead:
    """Methods of a driver that can send ahead. Each connection must be allowed to do so first."""

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Set whether a statement may be sent on *conn* before the answer that is due was read."""
        conn._seen_flies = may

    def may_leave(self, conn: Connection) -> bool:
        """Return whether a transaction is open whose end has no other effect on *conn*, so that the
        answer to it can be read later. After COMMIT AND CHAIN, another transaction is open.
        """
        is_open: Any = self.is_in_transaction  # type: ignore[attr-defined] # each driver's own
        return is_open(conn) is True and not _mysql.may_chain(conn)

    def ran_code(self, conn: Connection) -> bool:
        """Return whether a routine was run on *conn* since the last COMMIT or ROLLBACK was seen to
        work as expected. The routine may have changed the effect of the next one.
        """
        return _mysql.ran_code(conn)

    def end_seen(self, conn: Connection) -> None:
        """Note that a COMMIT or ROLLBACK sent after that routine was answered as expected, or will
        be read before anything else is sent.
        """
        conn.__dict__.pop("_seen_code", None)

    def is_unread(self, conn: Connection) -> bool:
        """Return whether the answer that is due was never read, also if *conn* has ended."""
        due = getattr(conn, "_seen_due", None)  # for some drivers, a status number of the server's
        return due is not None and due != ()
