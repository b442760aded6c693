"""peewee for asyncio: ``playhouse.pwasyncio``'s databases under their own names, whose connections
come from an :class:`unbroken.AsyncPool`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from contextvars import ContextVar
from typing import Any

import peewee
from playhouse import db_url, pwasyncio

from unbroken.abc import Cause, Login
from unbroken.aio import AsyncPool
from unbroken.drivers._login import Opener
from unbroken.errors import UnbrokenError
from unbroken.integrations.peewee import pool_options, where
from unbroken.integrations.peewee.again import begins_later
from unbroken.integrations.peewee.aheal import AsyncHealing, undone_by_closing
from unbroken.integrations.peewee.errors import LazyQueryError, translated
from unbroken.integrations.peewee.heal import Refused
from unbroken.integrations.peewee.held import Held
from unbroken.integrations.peewee.poolish import Poolish
from unbroken.integrations.peewee.slot import Where, caller, refusal
from unbroken.integrations.peewee.unit import unit
from unbroken.integrations.peewee.upkeep import tell_replaced
from unbroken.messages.integrations import LAZY_QUERY
from unbroken.pool.bounds import bounded
from unbroken.pool.steps import run_async
from unbroken.settings import Settings

_last_scope: ContextVar[tuple[Where | None, Where | None]] = ContextVar(
    "unbroken_peewee_scope", default=(None, None)
)


class AsyncPooledDatabase(AsyncHealing, pwasyncio.AsyncDatabaseMixin):  # type: ignore[misc] # peewee ships no types that we could use
    """Mixed in before one of pwasyncio's databases.

    A task keeps a connection that ``aconnect()``, ``async with db`` or ``@db.unit`` acquired until
    ``aclose()``, the end of the block, or its own end. A connection that a statement or a
    transaction acquired by itself is returned when that is over.

    *pool_size* (or *max_connections*; 10), *pool_min_size* (0) and *acquire_timeout* (seconds; 10)
    are pwasyncio's; every setting of :class:`unbroken.Settings` may be given by its own name.
    *strict*: refuse statements outside of a scope instead of connecting for them. Raises
    ConfigurationError for settings that cannot work.
    """

    is_async = True

    _driver, _like = "", ""  # _like: a blocking driver of the same server
    _wrapper: Any
    server_version: Any

    def __init__(self, database: Any, **kwargs: Any) -> None:
        self.strict = bool(kwargs.pop("strict", False))
        self._given, theirs = pool_options.async_settings(kwargs)
        self._pool: AsyncPool | None = None
        super().__init__(database, **theirs)

    def init(self, database: Any, **kwargs: Any) -> None:
        """Initialize as peewee does; takes the pool's settings too.

        A task that has a connection of the former pool keeps it until it is returned.
        """
        self.strict = bool(kwargs.pop("strict", self.strict))
        ours, theirs = pool_options.async_settings(kwargs)
        Settings.of(**(given := {**self._given, **ours}))
        pool_options.check_names(self, theirs)
        super().init(database, **theirs)
        self._given, self._pool = given, None

    @property
    def pool(self) -> AsyncPool:
        """Return the pool behind this database.

        It is created at the first call and connects to nothing by itself.
        """
        if self._pool is None:
            if self.deferred:
                raise peewee.InterfaceError(
                    "Error, database must be initialized before opening a connection."
                )
            params = self.connect_params
            self._pool = AsyncPool(
                where.target_of(self.database, params, self._like),
                connect=Opener(self._dial),
                driver=self._driver,
                **where.callables_of(params),
                **self._given,
            )
            self._pool._driver.given = where.options_of(params)  # type: ignore[attr-defined] # Base
        return self._pool

    stats = Poolish.stats

    async def aconnect(self) -> Any:
        """Return this task's connection. One that ended between two statements is replaced, if no
        transaction is open on it.

        Raises PoolTimeoutError, OutageError, ConnectRejectedError, ConnectionLostError: each a
        ``peewee.OperationalError`` too.
        """
        if self._closing:
            raise peewee.InterfaceError("Database pool is shutting down.")
        state = self._state._current()
        held, by_itself = state.conn, False
        if held is not None and (held.stale() or not await held.answers()):
            if held.is_open or state.transactions:
                with held.listening():
                    raise held.loss()
            held.entry.condemn(*held.owner.explain(held.entry, in_use=True))
            tell_replaced(held.owner, held.entry)
            by_itself = held.by_itself
            await self._drop(state)
            held = None
        if held is None:
            pool = self.pool
            try:
                held = self._wrapper(await pool.acquire(), pool)
            except UnbrokenError as error:
                raise translated(error) from error
            held.by_itself = by_itself
            state.conn, state.closed = held, False
        held.join()
        return held

    async def _pin(self, sql: Any = None) -> tuple[Any, Any]:
        """Return this task's state and the connection in it, for *sql* (None: a transaction), until
        :meth:`_unpin`.

        If it had none, this one is returned to the pool afterwards.
        """
        state = self._state._current()
        is_free = state.conn is None
        if is_free and self.strict and sql is not None:
            raise LazyQueryError(LAZY_QUERY(refusal(sql, *_last_scope.get())))
        held = await self.aconnect()
        held.by_itself = is_free or held.by_itself
        held.pins += 1
        return state, held

    async def _unpin(self, state: Any, held: Any) -> None:
        while held.successor is not None:
            held = held.successor
        held.pins -= 1
        await self._settle(state)

    async def _settle(self, state: Any) -> None:
        """Return a connection that is not kept any more."""
        held = state.conn
        if (
            held is not None
            and held.by_itself
            and not (held.pins or held.is_open or state.transactions)
        ):
            await self._drop(state)

    async def _drop(self, state: Any) -> None:
        """Return a task's connection, apart from its transactions."""
        held, state.conn, state.closed = state.conn, None, True
        if held is not None:
            await held.close()

    async def aclose(self) -> None:
        """Do the same as pwasyncio."""
        self._note_scope()
        await super().aclose()

    def _note_scope(self) -> None:
        """For the text of a refusal: record where the scope about to be left was opened, and where
        it is left.
        """
        held = self._state.conn
        if self.strict and held is not None:
            _last_scope.set(((held.entry.code, held.entry.instruction), caller()))

    async def aexecute_sql(self, sql: Any, params: Any = None) -> Any:
        """Do the same as pwasyncio.

        A connection that is acquired for this alone is returned immediately, because its result is
        read.
        """
        pinned = await self._pin_safely(sql)
        try:
            send = super().aexecute_sql
            return await self._send_safely(sql, lambda: send(sql, params))
        finally:
            await self._unpin(*pinned)

    async def iterate(self, query: Any, buffer_size: int | None = None) -> AsyncIterator[Any]:
        """Do the same as pwasyncio.

        A connection that is acquired for this alone is returned when the iterator is read to the
        end or closed.
        """
        query.bind(self)
        pinned = await self._pin(query.sql()[0])
        try:
            async with aclosing(super().iterate(query, buffer_size)) as rows:
                async for row in rows:
                    yield row
        finally:
            await self._unpin(*pinned)

    _count_replay = Poolish._count_replay

    async def _pool_release(self, held: Any) -> None:
        await held.close()

    async def _pool_close(self) -> None:
        """Close the pool within *acquire_timeout* and 10 s. Connections in use then are closed on
        their return.
        """
        await self.pool.close(timeout=min(10.0, self.pool.settings.acquire_timeout))

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """Do the same as peewee. A BEGIN that met a lost connection is sent on another."""
        while True:
            state, held = pwasyncio.await_(self._pin())
            try:
                held.is_beginning = True
                if not begins_later(super().begin, (args, kwargs), held.loan):
                    with bounded(held.owner, "begin", held.entry):
                        super().begin(*args, **kwargs)
                state.conn.begins((args, kwargs))
                return
            except Exception:
                if held.entry.cause in (None, Cause.DEADLINE) or state.transactions:
                    raise
            finally:
                held.is_beginning = False
                pwasyncio.await_(self._unpin(state, held))

    def commit(self) -> None:
        """Do the same as peewee. Raises CommitUnknownError or ConnectionLostError if it was
        lost.
        """
        try:
            pwasyncio.await_(self._commit(self._state.conn))
        finally:
            pwasyncio.await_(self._settle(self._state._current()))

    def rollback(self) -> None:
        """Do the same as peewee. On a lost connection the server rolls back."""
        state = self._state._current()
        if state.conn is not None and state.conn.stale():
            pwasyncio.await_(self._drop(state))
        elif state.conn is not None and state.conn.loan.was_not_begun():
            state.conn.look()
            pwasyncio.await_(self._settle(state))
        else:
            try:
                with (
                    nullcontext()
                    if state.conn is None
                    else bounded(state.conn.owner, "rollback", state.conn.entry)
                ):
                    super().rollback()
            except (peewee.PeeweeException, UnbrokenError) as error:
                if state.conn is None:
                    raise
                undone_by_closing(state.conn, error)
                pwasyncio.await_(self._drop(state))
                return
            pwasyncio.await_(self._settle(state))

    async def _commit(self, held: Any) -> None:
        """Send COMMIT.

        Raises CommitUnknownError if its answer was lost, ConnectionLostError if it was never sent.
        """
        if held is None:
            raise peewee.InterfaceError("Cannot commit, database connection not open.")
        try:
            with peewee.__exception_wrapper__, held.listening():
                try:
                    if not held.loan.was_not_begun():
                        await run_async(held.loan.commit_and_go_on(), held.owner.runtime.do)
                except Exception as exc:
                    if not await self._forgets_commit(held, exc):
                        raise
                    return
        except UnbrokenError as error:
            raise translated(error) from error
        held.look()

    def unit(self, function: Any = None, /, **options: Any) -> Any:
        """``@db.unit`` on an ``async def``; :func:`unbroken.peewee.unit` describes it."""
        return unit(self, function, **options)


class AsyncMySQLConnection(Held, pwasyncio.AsyncMySQLConnection):  # type: ignore[misc]
    """pwasyncio's connection, from a pool."""


class AsyncMySQLDatabase(AsyncPooledDatabase, pwasyncio.AsyncMySQLDatabase):  # type: ignore[misc]
    """pwasyncio's ``AsyncMySQLDatabase``, unbroken: aiomysql."""

    _driver, _like, _wrapper = "aiomysql", "pymysql", AsyncMySQLConnection

    def _begin_on(self, _state: Any, old: Held) -> Callable[[Held], Awaitable[None]]:
        if old.begin_with is None:
            raise Refused("it is unknown how its transaction was begun")
        arguments, options = old.begin_with
        level = arguments[0] if arguments else options.get("isolation_level")

        async def begin(new: Held) -> None:
            with new.listening("BEGIN"), bounded(new.owner, "begin", new.entry):
                if level:
                    await new.send(f"SET TRANSACTION ISOLATION LEVEL {level}")
                await new.send("BEGIN")

        return begin

    async def _dial(self, login: Login | None) -> Any:
        from aiomysql.connection import Connection

        params = where.turned(self.connect_params, login, "mysql")
        conn = Connection(db=self.database, **{"autocommit": True, **params})
        try:
            await conn._connect()
        except BaseException:
            conn.close()  # aiomysql leaves the socket open when it is cancelled here
            raise
        if self.server_version is None:  # version-dependent SQL
            self.server_version = self._extract_server_version(conn.get_server_info())
        return conn


class AsyncPostgresqlConnection(Held, pwasyncio.AsyncPostgresqlConnection):  # type: ignore[misc]
    """pwasyncio's connection, from a pool."""


class AsyncPgAtomic(pwasyncio.AsyncPgAtomic):  # type: ignore[misc]
    """pwasyncio's transaction or savepoint, which tracks its connection."""

    def __exit__(self, *exc: Any) -> None:
        """Do the same as pwasyncio."""
        state = self.db._state._current()
        try:
            super().__exit__(*exc)
        finally:
            pwasyncio.await_(self.db._settle(state))

    async def _abegin(self) -> Any:
        while True:
            state, held = await self.db._pin()
            try:
                with held.listening(), bounded(held.owner, "begin", held.entry):
                    began = await super()._abegin()
                self._lent = state.conn  # another one, if it was lost since
                self._lent.begins(self._begin_args if any(self._begin_args) else None)
                return began
            except Exception:
                if held.entry.cause in (None, Cause.DEADLINE) or state.transactions:
                    raise
            finally:
                await self.db._unpin(state, held)

    async def acommit(self, begin: bool = True) -> None:
        """Commit. Raises CommitUnknownError or ConnectionLostError if the outermost one was
        lost.
        """
        if self._lent.conn is None:
            raise self._lent.loss()
        if self._lent.conn._top_xact is self._tx:
            await self.db._commit(self._lent)
        else:
            await super().acommit(False)
            self._lent.look()
        if begin:
            await self._abegin()

    async def arollback(self, begin: bool = True) -> None:
        """Roll back. On a lost connection the server does so."""
        if not self._lent.stale():
            is_outermost = self._lent.conn._top_xact is self._tx
            try:
                with bounded(self._lent.owner, "rollback", self._lent.entry):
                    await super().arollback(False)
            except (peewee.PeeweeException, UnbrokenError) as error:
                if self._lent.entry.cause is None and not is_outermost:
                    raise
                undone_by_closing(self._lent, error)
                if not self.db._state.transactions and self.db._state.conn is self._lent:
                    await self.db._drop(self.db._state._current())
            else:
                self._lent.look()
        elif not self.db._state.transactions and self.db._state.conn is self._lent:
            await self.db._drop(self.db._state._current())
        if begin:
            await self._abegin()


class AsyncPostgresqlDatabase(AsyncPooledDatabase, pwasyncio.AsyncPostgresqlDatabase):  # type: ignore[misc]
    """pwasyncio's ``AsyncPostgresqlDatabase``, unbroken: asyncpg."""

    _driver, _like, _wrapper = "asyncpg", "psycopg", AsyncPostgresqlConnection

    def _begin_on(self, state: Any, _old: Held) -> Callable[[Held], Awaitable[None]]:
        atomic = state.transactions[0] if state.transactions else None
        if not isinstance(atomic, AsyncPgAtomic):
            raise Refused("it is unknown how its transaction was begun")
        arguments, options = atomic._begin_args

        async def begin(new: Held) -> None:
            with new.listening("BEGIN"), bounded(new.owner, "begin", new.entry):
                atomic._tx = new.conn.transaction(*arguments, **options)
                await atomic._tx.start()
            atomic._lent = new

        return begin

    async def _dial(self, login: Login | None) -> Any:
        import asyncpg

        params = where.turned(self.connect_params, login, "postgresql")
        name = (
            {"dsn": self.database}
            if self.database.startswith(("postgresql://", "postgres://"))
            else {"database": self.database}
        )
        conn = await asyncpg.connect(**name, **params)
        try:
            await self.register_adapters(conn)
        except BaseException:
            conn.terminate()
            raise
        return conn

    def atomic(self, *args: Any, **kwargs: Any) -> AsyncPgAtomic:
        """Do the same as pwasyncio."""
        return AsyncPgAtomic(self, *args, **kwargs)

    transaction = savepoint = atomic


# unbroken.peewee.connect("postgresql+asyncpg://...") means these classes
db_url.register_database(AsyncMySQLDatabase, "aiomysql+unbroken")
db_url.register_database(AsyncPostgresqlDatabase, "asyncpg+unbroken")
