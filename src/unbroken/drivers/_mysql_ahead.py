"""What drivers of MySQL have that can send a statement before the answer that is due was read."""

from __future__ import annotations

from unbroken.abc import Connection


class Ahead:
    """Whether that is allowed is decided for each connection; it is not, until somebody says so."""

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Whether a statement may be sent on *conn* before the answer that is due was read."""
        conn._seen_flies = may

    def is_unread(self, conn: Connection) -> bool:
        """Whether the answer that is due was never read, also where *conn* has ended."""
        due = getattr(conn, "_seen_due", None)  # for some, a number of the server's
        return due is not None and due != ()
