"""mysql-connector-python, Oracle's: blocking in pure Python, and asyncio.

The library's own default is its C extension, if that loads. The extension hides its socket and
whether an answer is outstanding, so it is refused by name. With it, only pings would find dead
connections, and a call on a frozen server could not be ended. An exception raised by a signal
handler could leave a connection one answer behind unseen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from unbroken.abc import Connection, Login, Target
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers import _mysqlconnector as seen
from unbroken.drivers import _mysqlconnector_due as due
from unbroken.drivers import _mysqlconnector_exchange as exchange
from unbroken.drivers._mysql_driver import Awaited, Blocking, by_attribute, unheard
from unbroken.drivers._mysqlconnector_base import _ASYNC_SEAMS, _PURE_SEAMS, NO_C, TRAITS, Base
from unbroken.drivers._mysqlconnector_watch import watched, watched_async
from unbroken.drivers._shared import (
    abort_transport,
    class_of,
    dial,
    dial_async,
)
from unbroken.ledger.residue import Left

NAME = "mysqlconnector"
SCHEMES = ("mysql+mysqlconnector", "mariadb+mysqlconnector")
DISTRIBUTION = "mysql-connector-python"
MODULE = "mysql.connector"
TESTED = ">=9.2,<27"
RANK = 50


class Driver(Base, Blocking):
    """The blocking driver for mysql-connector; its methods are described in
    :class:`unbroken.abc.Driver`.
    """

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        super().__init__(target, connect)
        from mysql.connector.connection import MySQLConnection

        self.seams = _PURE_SEAMS
        self.check_seams()
        self._class: Any = (
            _with_shared_tls(seen.exact(MySQLConnection)) if self.is_known else MySQLConnection
        )

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds each wait of the connect; a user's read_timeout holds
        afterwards.
        """
        return dial(lambda: self._dial(min(timeout, self._limit or timeout), login))

    def _dial(self, timeout: float, login: Login | None) -> Connection:
        if self._connect is not None:
            return self.adopt(self.own(login))
        if not self.is_known:
            return self._class(**self.aimed(login), connection_timeout=math.ceil(timeout))
        given = self.aimed(login)
        kept = given.pop("read_timeout", None), given.pop("write_timeout", None)
        conn = self._class()
        conn._connection_timeout = timeout
        # for the settings that it sends once it is connected
        conn._read_timeout = conn._write_timeout = math.ceil(timeout)
        try:
            conn.connect(**given)
        except BaseException:
            self.close(conn)
            raise
        conn._read_timeout, conn._write_timeout = kept
        conn._seen_moved = 0  # the connect itself may choose the database
        return conn

    def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if hasattr(conn, "_cmysql"):
            raise self.errors[0](
                f"connect= returned a {type(conn).__name__}: "
                + NO_C.format(remedy="connect with use_pure=True")
            )
        if not self.is_known:
            pass
        elif hasattr(conn, "_send_cmd"):
            conn.__class__ = seen.exact(class_of(conn))
            due.send_at_once(conn)
            conn.__dict__.setdefault("_seen_busy", False)
            if "_seen_status" not in conn.__dict__:
                # its answer holds the status, which defines the state "as it was opened"
                conn.cmd_ping()
        else:
            raise self.errors[0](
                f"connect= returned a {type(conn).__name__}; it must return a plain connection of"
                " mysql.connector, not one from a pool"
            )
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:
        """Send COM_PING, bounded by the socket's timeout."""
        self._check_in_step(conn)
        kept = conn._read_timeout, conn._write_timeout
        conn._read_timeout = conn._write_timeout = timeout
        try:
            conn.cmd_ping()
        finally:
            conn._read_timeout, conn._write_timeout = kept

    def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        conn._seen_leave(sql)

    def take_answer(self, conn: Connection, timeout: float) -> bool:
        """Read that answer, if it was not read yet. Returns whether it did."""
        if not self.owes_answer(conn):
            return False
        kept, conn._read_timeout = conn._read_timeout, timeout
        try:
            due.take(conn)
        finally:
            conn._read_timeout = kept
        return True

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return the common calls, and autocommit."""

        def close(conn: Connection) -> None:
            with suppress(Exception):
                conn.close()

        return {**super().public_calls(), **by_attribute(self), "traits": _nothing, "close": close}

    def begin(self, conn: Connection) -> None:
        """Do nothing: MySQL opens a transaction by itself while autocommit is off."""
        conn.start_transaction()

    def commit(self, conn: Connection) -> None:
        """Send COMMIT, unless the server's last status shows nothing open."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            conn.commit()

    def rollback(self, conn: Connection) -> None:
        """Send ROLLBACK, unless the server's last status shows nothing open."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            conn.rollback()

    def drain(self, conn: Connection) -> None:
        """Read the rest of a result that the application left half-read."""
        conn._seen_drain()

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the attributes, then autocommit, the character set, or the database."""
        call = self._to_restore(conn, traits)
        if call is not None:
            getattr(conn, call[0])(call[1])
            conn._seen_moved = traits[1 + TRAITS.index("_seen_moved")]

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``wait_timeout`` of this session, in seconds."""
        held = self.is_in_transaction(conn)
        value = conn.info_query(_mysql.ASK_IDLE_LIMIT)
        if not held:
            self.rollback(conn)
        return float(next(iter(value.values())) if isinstance(value, dict) else value[0])

    def remember(self, conn: Connection) -> str | None:
        """Return the statement that restores the settings that *conn* had when it was opened."""
        if not self._sets_nothing_else():
            return None
        rows = self.ask(conn, _mysql_reset.ASK)
        conn.rollback()
        return _mysql_reset.set_again(rows)

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Send COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            seen.reset(conn)
            if _mysql_reset.may_have_moved(left):
                conn.cmd_init_db(self._database())
            conn.cmd_query(opening)

    def close(self, conn: Connection) -> None:
        """Send COM_QUIT if nothing is outstanding, then close, without waiting for an answer."""
        with suppress(Exception):
            if not self.is_quiet(conn):
                # its own close would read the rest of a result first
                conn._socket.close_connection()
            else:
                conn.close()

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's number, or None once it is closed."""
        holder = getattr(conn, "_socket", None)
        sock = holder.sock if holder is not None else None
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def watch(self, conn: Connection) -> None:
        """Report everything that is sent through ``_send_cmd``."""
        conn.__class__ = watched(class_of(conn))


class AsyncDriver(Base, Awaited):
    """The asyncio driver for mysql-connector; its methods are described in
    :class:`unbroken.abc.AsyncDriver`.
    """

    def __init__(
        self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None
    ) -> None:
        super().__init__(target, connect)
        from mysql.connector.aio.connection import MySQLConnection

        self.seams = _ASYNC_SEAMS
        self.check_seams()
        self._class: Any = (
            _with_shared_tls(seen.exact_async(MySQLConnection))
            if self.is_known
            else MySQLConnection
        )

    async def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds everything, the handshake included."""
        return await dial_async(lambda: self._dial(min(timeout, self._limit or timeout), login))

    async def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if not self.is_known:
            return conn
        conn.__class__ = seen.exact_async(class_of(conn))
        conn.__dict__.setdefault("_seen_busy", False)
        if "_seen_status" not in conn.__dict__:
            await conn.cmd_ping()  # as in the blocking driver
        return conn

    async def _dial(self, timeout: float, login: Login | None) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                return await self.adopt(await self.own(login))
            given = self.aimed(login)
            ca = given.pop("ssl_ca", None)
            conn = self._class(**given)
            # its constructor refuses a CA without a client certificate
            conn._ssl_ca = ca
            if not self.is_known:
                return await _connected(conn)
            try:
                await conn.connect()
            except BaseException as error:
                if not (isinstance(error, TypeError) and _is_without_tls(conn)):
                    self.close(conn)
                    raise
            conn._seen_moved = 0  # the connect itself chooses the database
            return conn

    async def ping(self, conn: Connection, timeout: float) -> None:
        """Send COM_PING."""
        self._check_in_step(conn)
        async with asyncio.timeout(timeout):
            await conn.cmd_ping()

    async def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        await conn._seen_leave(sql)

    async def take_answer(self, conn: Connection, timeout: float) -> None:
        """Read that answer, if it was not read yet."""
        if self.owes_answer(conn):
            async with asyncio.timeout(timeout):
                await due.take_async(conn)

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return the common calls, and autocommit."""

        async def rollback(conn: Connection) -> None:
            await conn.rollback()
            if self._connect is None:
                await conn.set_autocommit(self._arguments.get("autocommit", False))

        def close(conn: Connection) -> None:
            with suppress(Exception):  # no loop runs any more
                closing = asyncio.get_running_loop().create_task(conn.close())
                _closing.add(closing)
                closing.add_done_callback(_closing.discard)

        return {**super().public_calls(), "rollback": rollback, "traits": _nothing, "close": close}

    async def begin(self, conn: Connection) -> None:
        """Do nothing: MySQL opens a transaction by itself while autocommit is off."""
        await conn.cmd_query("START TRANSACTION")  # older versions have no method for it

    async def commit(self, conn: Connection) -> None:
        """Send COMMIT, unless the server's last status shows nothing open."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            await conn.commit()

    async def rollback(self, conn: Connection) -> None:
        """Send ROLLBACK, unless the server's last status shows nothing open."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            await conn.rollback()

    async def drain(self, conn: Connection) -> None:
        """Read the rest of a result that the application left half-read."""
        await conn._seen_drain()

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the attributes, then autocommit, the character set, or the database."""
        call = self._to_restore(conn, traits)
        if call is not None:
            await getattr(conn, call[0])(call[1])
            conn._seen_moved = traits[1 + TRAITS.index("_seen_moved")]

    async def idle_limit(self, conn: Connection) -> float | None:
        """Return ``wait_timeout`` of this session, in seconds."""
        held = self.is_in_transaction(conn)
        value = await conn.info_query(_mysql.ASK_IDLE_LIMIT)
        if not held:
            await self.rollback(conn)
        return float(next(iter(value.values())) if isinstance(value, dict) else value[0])

    async def remember(self, conn: Connection) -> str | None:
        """Return the statement that restores the settings that *conn* had when it was opened."""
        if not self._sets_nothing_else():
            return None
        rows = await self.ask(conn, _mysql_reset.ASK)
        await conn.rollback()
        return _mysql_reset.set_again(rows)

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Send COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            await seen.reset_async(conn)
            if _mysql_reset.may_have_moved(left):
                await conn.cmd_init_db(self._database())
            await conn.cmd_query(opening)

    def close(self, conn: Connection) -> None:
        """Abort the transport."""
        with suppress(Exception):  # closed before
            holder, conn._socket = conn._socket, None
            holder._is_connected = False
            abort_transport(holder._writer.transport)

    def fileno(self, conn: Connection) -> int | None:
        """Return the number of the transport's socket; None once it is closing."""
        holder = conn._socket
        writer = holder._writer if holder is not None else None
        if writer is None or writer.transport.is_closing():
            return None
        sock = writer.transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def watch(self, conn: Connection) -> None:
        """Report everything that is sent through ``_send_cmd``."""
        conn.__class__ = watched_async(class_of(conn))


#: Connections of an unknown version of the library are closed in tasks, to which a loop keeps no
#: strong reference.
_closing: set[asyncio.Task[None]] = set()


def _nothing(_conn: Connection) -> None:
    """Return None: reading a holder's possible changes from the library costs a round trip."""


async def _connected(conn: Any) -> Any:
    """Connect *conn* with the documented calls, and return it.

    Without TLS it fails as its last step, over a missing cipher.
    """
    try:
        await conn.connect()
    except TypeError:
        if not await conn.is_connected():
            raise
    return conn


def _is_without_tls(conn: Any) -> bool:
    """Return whether the server offered no TLS.

    In that case the last step of a successful connect fails over the missing cipher.
    """
    holder = conn._socket
    return (
        holder is not None
        and holder._writer is not None
        and holder._writer.get_extra_info("cipher") is None
        and exchange.is_quiet(conn)
    )


@cache
def _with_shared_tls(base: Any) -> Any:
    """Return a subclass of *base* whose connections with the same TLS options share a context: see
    _tls.py.
    """

    class Connection(base):  # type: ignore[misc]
        __doc__ = base.__doc__
        __module__ = base.__module__

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_socket" and value is not None:
                build = value.build_ssl_context

                def shared(*args: Any, **kwargs: Any) -> Any:
                    files = [
                        *args[:3],
                        *(kwargs.get(option) for option in ("ssl_ca", "ssl_cert", "ssl_key")),
                    ]
                    key = (
                        "mysqlconnector",
                        type(value).__module__,
                        repr((args, sorted(kwargs.items()))),
                    )
                    return _tls.shared(key, files, lambda: build(*args, **kwargs))

                value.build_ssl_context = shared
            super().__setattr__(name, value)

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection
