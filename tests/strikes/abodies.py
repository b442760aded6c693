"""As bodies.py, for asyncio: the same jobs through each body, on each driver that is awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import unbroken
from unbroken.brain.stats import Stats

from .bodies import LIKE, PATIENCE, PLAIN, STATEMENTS, AppError, Told

Job = Callable[[], Awaitable[None]]


class AsyncBody:
    """One body on one driver, with a pool of *size*.

    The subclasses say how each of its parts is spelled.
    """

    name = "?"
    scenes: tuple[str, ...] = (
        "select", "write", "several", "fail", "error", "caught", "caught_write", "own_commit",
        "again", "acquire", "waiting", "connecting", "doubtful", "deadline",
    )  # fmt: skip

    def __init__(self, driver: str, url: str, size: int, told: Told) -> None:
        self.driver, self.url, self.size, self.told = driver, url, size, told
        self.limits: tuple[
            type[BaseException], ...
        ] = ()  #: the strikes, which an application catches within its work
        #: told of each part of a job as it begins
        self.begin: Callable[[str], None] = lambda _part: None
        self.manner = ""  #: of the scene, where its parts differ from the others'
        self._before = ""
        self.open()

    # -- what a subclass has -----------------------------------------------------------------------

    def open(self) -> None:
        """Make what the jobs go through."""
        raise NotImplementedError

    def transaction(self) -> Any:
        """An async context manager: one transaction, committed on success."""
        raise NotImplementedError

    async def execute(self, session: Any, sql: str) -> Any:
        """Run *sql*; the first value of its first row, or None."""
        raise NotImplementedError

    async def replayed(
        self, work: Callable[[Any], Awaitable[Any]], deadline: float | None = None
    ) -> Any:
        """Run *work* (given a session) as a unit of work."""
        raise NotImplementedError

    async def acquire(self) -> None:
        """Take a connection and give it back, in the plainest way that there is."""
        raise NotImplementedError

    async def own_commit(self) -> None:
        """Insert, COMMIT by the application, insert, ROLLBACK by the application."""
        raise NotImplementedError

    async def close(self) -> None:
        """End everything."""
        raise NotImplementedError

    async def take(self) -> Any:
        """Take one connection."""
        raise NotImplementedError

    async def give(self, conn: Any) -> None:
        """Give it back."""
        raise NotImplementedError

    async def hold(self) -> list[Any]:
        """Take as many connections as there are places. Raises when there are fewer."""
        held: list[Any] = []
        try:
            while len(held) < self.size:
                held.append(await self.take())
        except BaseException:
            await self.let_go(held)
            raise
        return held

    async def let_go(self, held: list[Any]) -> None:
        """Give them back."""
        while held:
            await self.give(held.pop())

    async def ask_raw(self, held: Any) -> None:
        """As :meth:`ask`, on what :meth:`hold` gave."""
        raise NotImplementedError

    @property
    def state(self) -> Any:
        """The state behind the pool."""
        raise NotImplementedError

    def is_awaited(self) -> bool:
        """Whether somebody waits for a connection."""
        return bool(self.state.waiting)

    async def drain(self) -> None:
        """Close what is idle."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """The pool's numbers."""
        raise NotImplementedError

    # -- statements --------------------------------------------------------------------------------

    def session(self) -> Any:
        """A transaction that begins as a part of its own."""
        self.mark("enter")
        return self.transaction()

    def mark(self, part: str) -> None:
        """The job begins its next part. What leaving does depends on what came before."""
        manner = self.manner
        if part in STATEMENTS:
            manner = LIKE.get(manner, "")
        elif part != "enter" and manner in ("waiting", "connecting", "doubtful"):
            manner = ""
        self.begin(
            f"{manner}:{part} after {self._before}" if part == "leave" else f"{manner}:{part}"
        )
        self._before = part

    async def ask(self, session: Any) -> None:
        """SELECT a number that nobody selected before; AssertionError where another came back."""
        number = next(self.told.numbers)
        self.mark("ask")
        got = await self.execute(session, f"SELECT {number}")
        assert got == number, f"SELECT {number} gave {got!r}"

    async def insert(self, session: Any, number: int) -> None:
        """Write a row."""
        self.mark("insert")
        await self.execute(session, f"INSERT INTO strikes VALUES ({number})")

    async def update(self, session: Any) -> None:
        """Change a row that is there."""
        self.mark("update")
        await self.execute(session, "UPDATE strike_counter SET v = v + 1 WHERE id = 1")

    # -- jobs --------------------------------------------------------------------------------------

    async def select(self) -> None:
        """A job that reads."""
        async with self.session() as session:
            await self.ask(session)
            self.mark("leave")

    async def write(self) -> None:
        """A job that writes one row."""
        number = self.told.begin()
        async with self.session() as session:
            await self.insert(session, number)
            self.mark("leave")
        self.told.acknowledged.add(number)

    async def several(self) -> None:
        """A job of several statements."""
        number = self.told.begin()
        async with self.session() as session:
            await self.ask(session)
            await self.update(session)
            await self.insert(session, number)
            await self.ask(session)
            self.mark("leave")
        self.told.acknowledged.add(number)

    async def fail(self) -> None:
        """A job that changes its mind: its error rolls back what it did."""
        number = self.told.begin()
        self.told.given_up.add(number)
        with suppress(AppError):
            async with self.session() as session:
                await self.insert(session, number)
                self.mark("change its mind")
                raise AppError

    async def error(self) -> None:
        """A job that the server refuses: the driver's error rolls back what it did."""
        number = self.told.begin()
        self.told.given_up.add(number)
        try:
            async with self.session() as session:
                await self.insert(session, number)
                self.mark("error")
                await self.execute(session, "SELECT id FROM no_such_table")
        except self.limits:
            raise
        except Exception as error:
            if type(error) is AssertionError or "no_such_table" not in str(error):
                raise

    async def _ask_until_struck(self, session: Any, manner: str = "caught") -> None:
        self.manner = manner
        try:
            await self.ask(session)
        except self.limits as struck:
            task = asyncio.current_task()
            if isinstance(struck, asyncio.CancelledError) and task is not None:
                task.uncancel()  # as asyncio.timeout() does
        finally:
            self.manner = ""

    async def caught(self) -> None:
        """A job that goes on after the strike, with the connection that was struck."""
        async with self.session() as session:
            await self._ask_until_struck(session)
            await self.ask(session)
            self.mark("leave")

    async def caught_write(self) -> None:
        """Likewise; what it wrote before must be there if it is told that all is well."""
        number = self.told.begin()
        async with self.session() as session:
            await self.insert(session, number)
            await self._ask_until_struck(session, "caught_write")
            self.mark("leave")
        self.told.acknowledged.add(number)

    async def again(self) -> None:
        """A unit of work that may be run again."""
        number = self.told.begin()

        async def work(session: Any) -> None:
            await self.ask(session)
            await self.insert(session, number)
            self.mark("leave")

        self.mark("enter")
        await self.replayed(work)
        self.told.acknowledged.add(number)

    async def deadline(self) -> None:
        """A unit of work with a deadline that it keeps."""
        number = self.told.begin()
        self.mark("enter")
        await self.replayed(lambda session: self.insert(session, number), deadline=60.0)
        self.told.acknowledged.add(number)

    # -- the state before a job --------------------------------------------------------------------

    @asynccontextmanager
    async def stage(self, scene: str) -> AsyncIterator[Job]:
        """Prepare for *scene*: gives the job."""
        self._before = ""
        self.manner = "" if scene in PLAIN else scene
        if scene == "waiting":
            async with self._crowd():
                yield self.select
            return
        if scene == "connecting":
            await self.drain()
        if scene == "doubtful":
            for entry in list(self.state.kernel.idle):
                entry.last_used -= 1e6
        yield self.select if scene in ("connecting", "doubtful") else getattr(self, scene)

    @asynccontextmanager
    async def _crowd(self) -> AsyncIterator[None]:
        """All connections are in use, and are given back once somebody waits."""
        held = await self.hold()
        over = False

        async def give_back() -> None:
            end = time.monotonic() + PATIENCE
            while not over and not self.is_awaited() and time.monotonic() < end:
                await asyncio.sleep(0)
            await self.let_go(held)

        task = asyncio.create_task(give_back())
        try:
            yield
        finally:
            over = True
            await task


class AsyncPoolBody(AsyncBody):
    """``unbroken.AsyncPool``."""

    name = "pool"
    scenes = (*AsyncBody.scenes, "no_transaction")

    def open(self) -> None:
        self.pool = unbroken.AsyncPool(self.url, max_size=self.size, acquire_timeout=PATIENCE)

    def transaction(self) -> Any:
        return self.pool.connection()

    async def execute(self, session: Any, sql: str) -> Any:
        if self.driver == "asyncpg":
            return await session.fetchval(sql)
        cursor = session.cursor()
        if hasattr(cursor, "__await__"):
            cursor = await cursor
        await cursor.execute(sql)
        row = (await cursor.fetchone()) if cursor.description else None
        await cursor.close()
        return None if row is None else row[0]

    async def replayed(
        self, work: Callable[[Any], Awaitable[Any]], deadline: float | None = None
    ) -> Any:
        return await self.pool.run(work, deadline=deadline)

    async def acquire(self) -> None:
        await self.pool.release(await self.pool.acquire())

    async def no_transaction(self) -> None:
        """A lease without a transaction of its own, bounded in time."""
        async with self.pool.connection(transaction=False, deadline=60.0) as conn:
            await self.ask(conn)
            await self.ask(conn)

    async def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        if self.driver == "asyncpg":
            async with self.pool.connection(transaction=False) as conn:
                async with conn.transaction():
                    await self.insert(conn, stays)
                self.told.acknowledged.add(stays)
                transaction = conn.transaction()
                await transaction.start()
                await self.insert(conn, goes)
                await transaction.rollback()
            return
        async with self.pool.connection() as conn:
            await self.insert(conn, stays)
            self.mark("commit")
            await conn.commit()
            self.told.acknowledged.add(stays)
            await self.insert(conn, goes)
            self.mark("rollback")
            await conn.rollback()
            self.mark("leave")

    async def close(self) -> None:
        await self.pool.close(timeout=0.0)

    @property
    def state(self) -> Any:
        return self.pool._current()

    async def drain(self) -> None:
        await self.pool.drain()

    async def take(self) -> Any:
        return await self.pool.acquire()

    async def give(self, conn: Any) -> None:
        await self.pool.release(conn)

    async def ask_raw(self, held: Any) -> None:
        await self.ask(held)

    def stats(self) -> Stats:
        return self.pool.stats()


class AsyncSQLAlchemyBody(AsyncBody):
    """An async engine with the plugin."""

    name = "sqlalchemy"
    scenes = (*AsyncBody.scenes, "orm")

    def open(self) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        import unbroken.sqlalchemy

        self.engine = create_async_engine(
            self.url,
            plugins=["unbroken"],
            pool_size=self.size,
            max_overflow=0,
            pool_timeout=PATIENCE,
        )
        self._stats = unbroken.sqlalchemy.stats

    def transaction(self) -> Any:
        return self.engine.begin()

    async def execute(self, session: Any, sql: str) -> Any:
        result = await session.exec_driver_sql(sql)
        return result.scalar() if result.returns_rows else None

    async def replayed(
        self, work: Callable[[Any], Awaitable[Any]], deadline: float | None = None
    ) -> Any:
        async def whole() -> Any:
            async with self.engine.begin() as conn:
                return await work(conn)

        return await unbroken.replayable(whole, deadline=deadline)()

    async def acquire(self) -> None:
        await (await self.engine.connect()).close()

    async def orm(self) -> None:
        """A session of the ORM's."""
        from sqlalchemy.ext.asyncio import AsyncSession

        number = self.told.begin()
        async with AsyncSession(self.engine) as session:
            await self.ask(await session.connection())
            await self.insert(await session.connection(), number)
            await session.commit()
            self.told.acknowledged.add(number)
            await self.ask(await session.connection())

    async def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        async with self.engine.connect() as conn:
            await self.insert(conn, stays)
            self.mark("commit")
            await conn.commit()
            self.told.acknowledged.add(stays)
            await self.insert(conn, goes)
            self.mark("rollback")
            await conn.rollback()
            self.mark("leave")

    async def close(self) -> None:
        await self.engine.dispose()

    @property
    def state(self) -> Any:
        return self.engine.sync_engine.pool._body  # type: ignore[attr-defined] # the plugin's pool

    def is_awaited(self) -> bool:
        return bool(self.state.waiting)

    async def drain(self) -> None:
        await self.engine.dispose()

    async def take(self) -> Any:
        return await self.engine.connect()

    async def give(self, conn: Any) -> None:
        await conn.close()

    async def ask_raw(self, held: Any) -> None:
        await self.ask(held)

    def stats(self) -> Stats:
        return self._stats(self.engine)


class AsyncPeeweeBody(AsyncBody):
    """An asyncio database of ``unbroken.peewee``'s."""

    name = "peewee"
    scenes = (*AsyncBody.scenes, "autocommit")

    def open(self) -> None:
        import unbroken.peewee

        self.db = unbroken.peewee.connect(self.url, pool_size=self.size, acquire_timeout=PATIENCE)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with self.db, self.db.atomic():
            yield self.db

    async def execute(self, session: Any, sql: str) -> Any:
        cursor = await self.db.aexecute_sql(sql)
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]

    async def replayed(
        self, work: Callable[[Any], Awaitable[Any]], deadline: float | None = None
    ) -> Any:
        async def whole() -> Any:
            return await work(None)

        return await self.db.unit(whole, atomic=True, deadline=deadline)()

    async def acquire(self) -> None:
        await self.db.aconnect()
        await self.db.aclose()

    async def autocommit(self) -> None:
        """Statements outside of any scope."""
        number = self.told.begin()
        await self.ask(None)
        await self.insert(None, number)
        self.told.acknowledged.add(number)
        await self.ask(None)

    async def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        async with self.db:
            async with self.db.atomic():
                await self.insert(None, stays)
            self.told.acknowledged.add(stays)
            with suppress(AppError):
                async with self.db.atomic():
                    await self.insert(None, goes)
                    raise AppError

    async def close(self) -> None:
        await self.db.close_pool()

    @property
    def state(self) -> Any:
        return self.db.pool._current()

    async def drain(self) -> None:
        await self.db.pool.drain()

    async def take(self) -> Any:
        return await self.db.pool.acquire()

    async def give(self, conn: Any) -> None:
        await self.db.pool.release(conn)

    async def ask_raw(self, held: Any) -> None:
        number = next(self.told.numbers)
        if self.driver == "asyncpg":
            got = await held.fetchval(f"SELECT {number}")
        else:
            async with held.cursor() as cursor:
                await cursor.execute(f"SELECT {number}")
                (got,) = await cursor.fetchone()
        assert got == number, f"SELECT {number} gave {got!r}"

    def stats(self) -> Stats:
        return self.db.stats()  # type: ignore[no-any-return]


ABODIES: dict[str, tuple[type[AsyncBody], tuple[str, ...]]] = {
    "apool": (
        AsyncPoolBody,
        ("aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg"),
    ),
    "asqlalchemy": (AsyncSQLAlchemyBody, ("aiomysql", "asyncmy", "psycopg_async", "asyncpg")),
    "apeewee": (AsyncPeeweeBody, ("aiomysql", "asyncpg")),
}
