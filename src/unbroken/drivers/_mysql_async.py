"""What aiomysql and asyncmy, both children of PyMySQL, have in common: everything but their sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from unbroken.abc import Capabilities, Connection, Fault, Target
from unbroken.core.residue import Left
from unbroken.drivers import _mysql, _mysql_reset
from unbroken.drivers._base import Awaited


class Shared(Awaited):
    """The part of an :class:`unbroken.abc.AsyncDriver` that both share. ``_watched`` makes the class that reports."""

    capabilities = Capabilities(transaction_status=True, watchable=True)
    target: Target
    _base: type[BaseException]
    _arguments: dict[str, Any]
    _connect: Callable[[], Any] | None
    _watched: Callable[[Any], Any]

    async def ping(self, conn: Connection, timeout: float) -> None:
        """COM_PING. The library closes the connection when the time is up."""
        async with asyncio.timeout(timeout):
            await conn.ping(reconnect=False)

    async def begin(self, conn: Connection) -> None:
        """Not needed: MySQL opens a transaction by itself while autocommit is off."""
        await conn.begin()

    async def commit(self, conn: Connection) -> None:
        """COMMIT, unless the server's last word is that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            await conn.commit()

    async def rollback(self, conn: Connection) -> None:
        """ROLLBACK, likewise."""
        if self.is_in_transaction(conn) is not False:
            await conn.rollback()

    async def idle_limit(self, conn: Connection) -> float | None:
        """``wait_timeout`` of this session."""
        held = self.is_in_transaction(conn)
        async with conn.cursor() as cursor:
            await cursor.execute(_mysql.ASK_IDLE_LIMIT)
            row = await cursor.fetchone()
        value = next(iter(row.values())) if isinstance(row, dict) else row[0]
        if not held:
            await self.rollback(conn)
        return float(value)

    async def remember(self, conn: Connection) -> str | None:
        """The statement that sets again what was set when *conn* was opened."""
        if not (_mysql_reset.sets_nothing_else(self._arguments) if self._connect is None else self.sets_only):
            return None
        async with conn.cursor() as cursor:
            await cursor.execute(_mysql_reset.ASK)
            rows = await cursor.fetchall()
        await self.rollback(conn)
        return _mysql_reset.set_again(row.values() if isinstance(row, dict) else row for row in rows)

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """COM_RESET_CONNECTION and one statement."""
        await conn._execute_command(_mysql_reset.COM_RESET_CONNECTION, b"")
        await conn._read_ok_packet()
        if self.target.database and _mysql_reset.may_have_moved(left):
            await conn.select_db(self.target.database)
        await conn.query(opening)

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last OK or EOF packet; None after an error, in the middle of an exchange, or once it is closed."""
        return None if conn._writer is None else _mysql.in_transaction(conn)

    def classify(self, exc: BaseException) -> Fault:
        """By MySQL's code, or the system's."""
        return _mysql.classify(exc, self._base, self.target.password)

    def unread(self, conn: Connection) -> bytes:
        """What asyncio has read off the socket and the driver not yet: the server's last words, once it is idle."""
        return bytes(getattr(getattr(conn, "_reader", None), "_buffer", b""))

    def session_id(self, conn: Connection) -> str | None:
        """CONNECTION_ID(), from the handshake."""
        return str(conn.server_thread_id[0]) if hasattr(conn, "server_thread_id") else None

    def watch(self, conn: Connection) -> None:
        """Everything goes out through ``_execute_command``."""
        conn.__class__ = type(self)._watched(type(conn))

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))


class Answer:
    """Around the reading of an answer: a server's error ends the exchange as well as its OK does."""

    __slots__ = ("base", "conn", "is_open")

    def __init__(self, conn: Any, base: type[BaseException], is_open: Callable[[Any], bool]) -> None:
        self.conn, self.base, self.is_open = conn, base, is_open

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        conn = self.conn
        alive = self.is_open(conn)
        if alive and (error is None or isinstance(error, self.base)):
            conn._seen_busy = False
        pending = conn.__dict__.pop("_seen_pending", None)
        if pending is not None:
            _mysql.answered(conn, pending, error, alive)


def reporting(plain: Any) -> Any:
    """*plain*, a connection class that sends all by ``_execute_command``, that tells the ledger. ``unwatched`` is *plain*."""
    from unbroken.core import unit

    known = plain.__dict__.get("_watched")
    if known is not None:
        return known

    class Watched(plain):  # type: ignore[misc] # the base is only known here
        __module__ = plain.__module__
        unwatched = plain

        async def _execute_command(self, command: int, sql: Any) -> None:
            ledger = unit.current(id(self))
            pending = None
            if ledger is not None and command not in (_mysql.COM_PING, _mysql.COM_INIT_DB):
                pending = _mysql.tell(self, ledger, command, sql)
            await super()._execute_command(command, sql)
            if pending is not None:
                self._seen_pending = pending

    Watched.__name__ = Watched.__qualname__ = plain.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched
