"""peewee for asyncio: ``playhouse.pwasyncio``'s databases by name, whose connections come from an :class:`unbroken.AsyncPool`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import peewee
from playhouse import pwasyncio

from unbroken.abc import Cause, FaultKind
from unbroken.aio import AsyncPool
from unbroken.core.unit import current
from unbroken.errors import ConnectionLostError, UnbrokenError
from unbroken.flows import finish
from unbroken.flows.steps import run_async
from unbroken.integrations.peewee import plan
from unbroken.integrations.peewee.care import log
from unbroken.integrations.peewee.errors import origin, translated
from unbroken.integrations.peewee.poolish import Poolish
from unbroken.integrations.peewee.slot import caller, place
from unbroken.net.liveness import Liveness, judge
from unbroken.settings import Settings


class _Lent(pwasyncio.AsyncConnectionWrapper):  # type: ignore[misc] # peewee ships no types that we could use
    """A connection in a task's hands; mixed in before pwasyncio's wrapper, whose ``conn`` is the driver's own."""

    def __init__(self, conn: Any, pool: AsyncPool) -> None:
        super().__init__(conn)
        self._pool = pool
        self.home: Any = pool._current()
        self.entry: Any = self.home.lent[id(conn)]
        self.entry.code, self.entry.lasti = caller()
        self.unit, self.last_used = current(), self.entry.taken_at
        self.is_open = False  #: whether a statement left a transaction open
        deadline = self.home.settings.deadline
        self.timer = None if deadline is None else self.home.arm(self.entry, self.last_used + deadline)

    def stale(self) -> bool:
        """Whether this connection is known to be lost. No round trip."""
        known = self.conn is None or self.entry.cause is not None or super().stale()
        return known or (not self._streaming and judge(self.entry.poll(0)) is Liveness.DEAD)

    async def answers(self) -> bool:
        """After long silence one ping tells whether the connection was dropped silently, as the pool does before it lends one."""
        if monotonic() - self.last_used >= self.home.fresh_for and not (self.is_open or self._streaming):
            try:
                await self.home.driver.ping(self.conn, self.home.settings.ping_timeout)
            except Exception as exc:
                fault = self.home.classify(exc)
                self.entry.condemn(Cause.SILENT_DROP if fault.is_lost else Cause.LOST, fault.text)
        return self.entry.cause is None

    def join(self) -> None:
        """A statement is about to run within a unit of work: it must hear of it, also where the connection is older."""
        unit = current()
        if unit is not None and unit is not self.unit:
            if self.is_open:
                unit.doubt("a transaction that was begun before the unit of work is used in it")
            self.home.join(unit, self.entry, self.conn)
            self.unit = unit

    def look(self) -> None:
        """The server has answered: what is open now."""
        self.is_open = self.home.driver.is_in_transaction(self.conn) is not False
        self.last_used = monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The pool and the unit of work are told what it means that a statement inside raises."""
        try:
            yield
        except BaseException as exc:
            fault = finish.heard(self.home, self.entry, self.conn, origin(exc), current())
            if fault.kind is FaultKind.OTHER and self.entry.cause is None:
                self.look()
            raise

    def loss(self) -> UnbrokenError:
        """The error that says so."""
        taken, why = place((self.entry.code, self.entry.lasti)), self.home.explain(self.entry, in_use=True)[0].value
        what = f"connection of pool {self.home.name}, taken at {taken}, was lost ({why}) in a transaction; nothing of it is stored"
        return translated(self.home.error(ConnectionLostError, what))

    async def execute(self, sql: str, params: Any = None) -> Any:
        """As pwasyncio's."""
        with self.listening():
            result = await super().execute(sql, params)
        self.look()
        return result

    async def execute_iter(self, sql: str, params: Any = None) -> Any:
        """As pwasyncio's."""
        with self.listening():
            return await super().execute_iter(sql, params)

    async def close(self) -> None:
        """Give it back to the pool that lent it; what is lost is closed."""
        conn: Any = self.conn
        self.conn: Any = None
        if self.timer is not None:
            self.timer.cancel()
        if conn is not None:
            if self.entry.cause is not None:
                self.home.driver.close(conn)
            await self._pool.release(conn)


class AsyncPooledDatabase(pwasyncio.AsyncDatabaseMixin):  # type: ignore[misc]
    """Mixed in before one of pwasyncio's databases. A task's connection goes back at ``close()`` or when the task is done, as there.

    *pool_size* (or *max_connections*; 10), *pool_min_size* (0) and *acquire_timeout* (seconds; 10) are pwasyncio's; every setting of
    :class:`unbroken.Settings` may be given by its own name. Raises ConfigurationError for settings that cannot work.
    """

    _driver, _like = "", ""  # _like: a blocking driver of the same server
    _wrapper: Any
    server_version: Any

    def __init__(self, database: Any, **kwargs: Any) -> None:
        self._given, theirs = plan.async_settings(kwargs)
        self._pool: AsyncPool | None = None
        super().__init__(database, **theirs)

    def init(self, database: Any, **kwargs: Any) -> None:
        """As peewee's; takes the pool's settings too. Whoever has a connection of the former pool keeps it until it comes back."""
        ours, theirs = plan.async_settings(kwargs)
        Settings.of(**(given := {**self._given, **ours}))
        super().init(database, **theirs)
        self._given, self._pool = given, None

    @property
    def pool(self) -> AsyncPool:
        """The pool behind this database. Made when it is asked for; connects to nothing by itself."""
        if self._pool is None:
            if self.deferred:
                raise peewee.InterfaceError("Error, database must be initialized before opening a connection.")
            self._pool = AsyncPool(plan.target_of(self, self._like), connect=self._dial, driver=self._driver, **self._given)
        return self._pool

    stats = Poolish.stats

    async def aconnect(self) -> Any:
        """This task's connection; one that ended between two statements is replaced, if no transaction is open on it.

        Raises PoolTimeoutError, OutageError, ConnectRejectedError, ConnectionLostError: each a ``peewee.OperationalError`` too.
        """
        if self._closing:
            raise peewee.InterfaceError("Database pool is shutting down.")
        lent = self._state.conn
        if lent is not None and (lent.stale() or not await lent.answers()):
            if lent.is_open or self._state.transactions:
                with lent.listening():
                    raise lent.loss()
            lent.entry.condemn(*lent.home.explain(lent.entry, in_use=True))
            log.warning("%s: the connection of this task ended; another one takes its place", lent.home.name)
            await self._drop()
            lent = None
        if lent is None:
            pool = self.pool
            try:
                lent = self._wrapper(await pool.acquire(), pool)
            except UnbrokenError as error:
                raise translated(error) from error
            self._state.set_connection(lent)
        lent.join()
        return lent

    async def _drop(self) -> None:
        """Give this task's connection back, its transactions aside."""
        state: Any = self._state._current()
        lent, state.conn, state.closed = state.conn, None, True
        await lent.close()

    async def _pool_release(self, lent: Any) -> None:
        await lent.close()

    async def _pool_close(self) -> None:
        """Bounded by *acquire_timeout*, and 10 s; what is lent then is closed when it comes back."""
        await self.pool.close(timeout=min(10.0, self.pool.settings.acquire_timeout))

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """As peewee's; a BEGIN that met a lost connection is sent on another."""
        lent = pwasyncio.await_(self.aconnect())
        try:
            super().begin(*args, **kwargs)
        except Exception:
            if lent.entry.cause is None or self._state.transactions:
                raise
            self.begin(*args, **kwargs)

    def commit(self) -> None:
        """As peewee's. Raises CommitUnknownError or ConnectionLostError where it was lost."""
        pwasyncio.await_(self._commit(self._state.conn))

    def rollback(self) -> None:
        """As peewee's; what was lost is rolled back by the server."""
        if not self.is_closed() and self._state.conn.stale():
            pwasyncio.await_(self._drop())
        else:
            super().rollback()

    async def _commit(self, lent: Any) -> None:
        """COMMIT. Raises CommitUnknownError where its answer was lost, ConnectionLostError where it was never sent."""
        if lent is None:
            raise peewee.InterfaceError("Cannot commit, database connection not open.")
        try:
            with peewee.__exception_wrapper__, lent.listening():
                await run_async(finish.commit_now(lent.home, lent.entry, lent.conn, current()), lent.home.shell.do)
        except UnbrokenError as error:
            raise translated(error) from error
        lent.look()


class AsyncMySQLConnection(_Lent, pwasyncio.AsyncMySQLConnection):  # type: ignore[misc] # peewee ships no types that we could use
    """pwasyncio's, lent by a pool."""


class AsyncMySQLDatabase(AsyncPooledDatabase, pwasyncio.AsyncMySQLDatabase):  # type: ignore[misc]
    """pwasyncio's ``AsyncMySQLDatabase``, unbroken: aiomysql."""

    _driver, _like, _wrapper = "aiomysql", "pymysql", AsyncMySQLConnection

    async def _dial(self) -> Any:
        from aiomysql.connection import Connection

        conn = Connection(db=self.database, **{"autocommit": True, **self.connect_params})
        try:
            await conn._connect()
        except BaseException:
            conn.close()  # aiomysql leaves the socket open when it is cancelled here
            raise
        if self.server_version is None:  # version-dependent SQL
            self.server_version = self._extract_server_version(conn.get_server_info())
        return conn


class AsyncPostgresqlConnection(_Lent, pwasyncio.AsyncPostgresqlConnection):  # type: ignore[misc]
    """pwasyncio's, lent by a pool."""


class AsyncPgAtomic(pwasyncio.AsyncPgAtomic):  # type: ignore[misc]
    """pwasyncio's transaction or savepoint, which hears what became of its connection."""

    async def _abegin(self) -> Any:
        while True:
            self._lent = lent = await self.db.aconnect()
            try:
                with lent.listening():
                    return await super()._abegin()
            except Exception:
                if lent.entry.cause is None or self.db._state.transactions:
                    raise

    async def acommit(self, begin: bool = True) -> None:
        """Raises CommitUnknownError or ConnectionLostError where the outermost one was lost."""
        if self._lent.conn is not None and self._lent.conn._top_xact is self._tx:
            await self.db._commit(self._lent)
        else:
            await super().acommit(False)
            self._lent.look()
        if begin:
            await self._abegin()

    async def arollback(self, begin: bool = True) -> None:
        """What was lost is rolled back by the server."""
        if not self._lent.stale():
            await super().arollback(False)
            self._lent.look()
        elif not self.db._state.transactions and self.db._state.conn is self._lent:
            await self.db._drop()
        if begin:
            await self._abegin()


class AsyncPostgresqlDatabase(AsyncPooledDatabase, pwasyncio.AsyncPostgresqlDatabase):  # type: ignore[misc]
    """pwasyncio's ``AsyncPostgresqlDatabase``, unbroken: asyncpg."""

    _driver, _like, _wrapper = "asyncpg", "psycopg", AsyncPostgresqlConnection

    async def _dial(self) -> Any:
        import asyncpg

        where = {"dsn": self.database} if self.database.startswith(("postgresql://", "postgres://")) else {"database": self.database}
        conn = await asyncpg.connect(**where, **self.connect_params)
        try:
            await self.register_adapters(conn)
        except BaseException:
            conn.terminate()
            raise
        return conn

    def atomic(self, *args: Any, **kwargs: Any) -> AsyncPgAtomic:
        """As pwasyncio's."""
        return AsyncPgAtomic(self, *args, **kwargs)

    transaction = savepoint = atomic
