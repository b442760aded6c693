"""How each body of unbroken's runs a unit of work. Whoever has something else that runs units adds
a class here, and a case to cases.py.

A client is made of a URL. ``unit(work, again=, deadline=)`` runs ``work``, which gives an iterator
of steps (statements, and seconds to be waited), as one transaction: with *again* as a unit of work
that is replayed where that is safe, *deadline* seconds at most. It raises what an application would
see. ``forget(work)``, where a client has it, runs ``work`` and gives the connection back without a
COMMIT. Those of asyncio have the same methods, awaited.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import unbroken
from unbroken.brain.stats import Stats

from .workload import Step, heard

Work = Callable[[], Iterator[Step]]

#: Time enough for every fault, and replays without a budget, so that nobody is refused who did not
#: ask for haste.
PATIENCE: dict[str, Any] = {
    "acquire_timeout": 60.0, "outage_wait": 60.0, "max_replays": 100, "retry_budget": "off",
}  # fmt: skip
MAX_SIZE = 4


class Client(Protocol):
    """What a history needs of whatever it is that talks to a database."""

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> Any:
        """Run *work* as one transaction (asyncio: awaited)."""

    def stats(self) -> Stats:
        """The numbers of its pool."""

    def close(self) -> Any:
        """End it (asyncio: awaited)."""


def steps(work: Work, execute: Callable[[str], Any]) -> None:
    """Do the steps of *work*."""
    for step in work():
        if isinstance(step, float):
            time.sleep(step)
        else:
            heard(step, execute(str(step)))  # asyncpg takes no subclass


async def asteps(work: Work, execute: Callable[[str], Any]) -> None:
    """As :func:`steps`, awaited."""
    for step in work():
        if isinstance(step, float):
            await asyncio.sleep(step)
        else:
            heard(step, await execute(str(step)))


class PoolClient:
    """``unbroken.Pool``."""

    def __init__(self, url: str) -> None:
        self.pool = unbroken.Pool(url, max_size=MAX_SIZE, **PATIENCE)
        self.stats, self.close = self.pool.stats, self.pool.close

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        if again:
            return self.pool.run(self._do, work, deadline=deadline)
        with self.pool.connection(deadline=deadline) as conn:
            return self._do(conn, work)

    def forget(self, work: Work) -> None:
        conn = self.pool.acquire()
        try:
            self._do(conn, work)
        finally:
            self.pool.release(conn)

    def _do(self, conn: Any, work: Work) -> None:
        def execute(sql: str) -> Any:
            cursor = conn.cursor()
            cursor.execute(sql)
            rows = list(cursor.fetchall()) if cursor.description else None
            cursor.close()
            return rows

        steps(work, execute)


class CarelessClient(PoolClient):
    """What many an application does: on any lost connection, try again.

    The checker has to find out.
    """

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        while True:
            try:
                return super().unit(work, again=False, deadline=deadline)
            except self.pool._driver.errors[0]:
                if not again:
                    raise


class AsyncPoolClient:
    """``unbroken.AsyncPool``."""

    def __init__(self, url: str) -> None:
        self.pool = unbroken.AsyncPool(url, max_size=MAX_SIZE, **PATIENCE)
        self.stats, self.close = self.pool.stats, self.pool.close
        driver = url.partition("://")[0].partition("+")[2]
        self._execute = self._by_conn if driver == "asyncpg" else self._by_cursor
        self._awaits_cursor = driver in ("aiomysql", "mysqlconnector")

    async def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        if again:
            return await self.pool.run(self._do, work, deadline=deadline)
        async with self.pool.connection(deadline=deadline) as conn:
            return await self._do(conn, work)

    async def forget(self, work: Work) -> None:
        conn = await self.pool.acquire()
        try:
            if self._execute == self._by_conn:
                await conn.execute("BEGIN")  # asyncpg begins none by itself
            await self._do(conn, work)
        finally:
            await self.pool.release(conn)

    async def _do(self, conn: Any, work: Work) -> None:
        await asteps(work, lambda sql: self._execute(conn, sql))

    async def _by_conn(self, conn: Any, sql: str) -> Any:
        if sql.startswith("SELECT"):
            return list(await conn.fetch(sql))
        await conn.execute(sql)
        return None

    async def _by_cursor(self, conn: Any, sql: str) -> Any:
        cursor = (await conn.cursor()) if self._awaits_cursor else conn.cursor()
        await cursor.execute(sql)
        rows = list(await cursor.fetchall()) if cursor.description else None
        await cursor.close()
        return rows


class SQLAlchemyClient:
    """An engine with the plugin."""

    def __init__(self, url: str) -> None:
        import sqlalchemy as sa

        import unbroken.sqlalchemy

        self.engine = sa.create_engine(
            url, plugins=["unbroken"], pool_size=MAX_SIZE, max_overflow=0, **_patient_engine()
        )
        self.stats, self.close = lambda: unbroken.sqlalchemy.stats(self.engine), self.engine.dispose

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        def transaction() -> None:
            with self.engine.begin() as conn:
                steps(work, lambda sql: _rows(conn.exec_driver_sql(sql)))

        _again(transaction, again, deadline)()

    def forget(self, work: Work) -> None:
        with self.engine.connect() as conn:
            steps(work, lambda sql: _rows(conn.exec_driver_sql(sql)))


class HealingClient(SQLAlchemyClient):
    """An engine with the plugin, and an application that has no units of work."""

    replays = False

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        return super().unit(work, again=False, deadline=None)


class AsyncSQLAlchemyClient:
    """An async engine with the plugin."""

    def __init__(self, url: str) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        import unbroken.sqlalchemy

        self.engine = create_async_engine(
            url, plugins=["unbroken"], pool_size=MAX_SIZE, max_overflow=0, **_patient_engine()
        )
        self.stats, self.close = lambda: unbroken.sqlalchemy.stats(self.engine), self.engine.dispose

    async def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        async def transaction() -> None:
            async with self.engine.begin() as conn:
                await self._do(conn, work)

        await _again(transaction, again, deadline)()

    async def forget(self, work: Work) -> None:
        async with self.engine.connect() as conn:
            await self._do(conn, work)

    async def _do(self, conn: Any, work: Work) -> None:
        async def execute(sql: str) -> Any:
            return _rows(await conn.exec_driver_sql(sql))

        await asteps(work, execute)


class AsyncHealingClient(AsyncSQLAlchemyClient):
    """The same, async."""

    replays = False

    async def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        return await super().unit(work, again=False, deadline=None)


def _rows(result: Any) -> Any:
    return list(result.all()) if result.returns_rows else None


def _patient_engine() -> dict[str, Any]:
    return {
        "pool_timeout": PATIENCE["acquire_timeout"],
        "unbroken": {name: PATIENCE[name] for name in ("outage_wait", "retry_budget")},
    }


def _again(
    function: Any, again: bool, deadline: float | None, replayable: Any = unbroken.replayable
) -> Any:
    return (
        replayable(function, deadline=deadline, max_replays=PATIENCE["max_replays"])
        if again
        else function
    )


class PeeweeClient:
    """A database of ``unbroken.peewee``'s."""

    def __init__(self, url: str) -> None:
        import unbroken.peewee

        self.db = unbroken.peewee.connect(url, max_size=MAX_SIZE, **PATIENCE)
        self.stats, self.close = self.db.stats, self.db.close_all

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        def execute(sql: str) -> Any:
            cursor = self.db.execute_sql(sql)
            return list(cursor.fetchall()) if cursor.description else None

        def statements() -> None:
            steps(work, execute)

        if again:
            self.db.unit(statements, atomic=True, deadline=deadline)()
        else:
            with self.db.connection_context(), self.db.atomic():
                statements()


class HealingPeeweeClient(PeeweeClient):
    """The same, in an application that has no units of work."""

    replays = False

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        return super().unit(work, again=False, deadline=None)


class AsyncPeeweeClient:
    """An asyncio database of ``unbroken.peewee``'s."""

    def __init__(self, url: str) -> None:
        import unbroken.peewee

        self.db = unbroken.peewee.connect(url, pool_size=MAX_SIZE, **PATIENCE)
        self.stats, self.close = self.db.stats, self.db.close_pool

    async def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        async def statements() -> None:
            await asteps(work, self.db.aexecute_sql)

        if again:
            await self.db.unit(statements, atomic=True, deadline=deadline)()
        else:
            async with self.db, self.db.atomic():
                await statements()


class AsyncHealingPeeweeClient(AsyncPeeweeClient):
    """The same, async."""

    replays = False

    async def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        return await super().unit(work, again=False, deadline=None)


class DjangoClient:
    """An alias of a Django site, whose settings this process gets from it."""

    def __init__(self, url: str) -> None:
        import django
        from django.conf import settings
        from django.db import connections

        if not settings.configured:
            settings.configure(DATABASES={}, USE_TZ=True)
            django.setup()
        self.alias = f"shop{len(connections.settings)}"
        given = connections.configure_settings({"default": {}, self.alias: _django_settings(url)})
        connections.settings[self.alias] = given[self.alias]

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        from django.db import connections, transaction

        import unbroken.django

        def statements() -> None:
            with transaction.atomic(using=self.alias):
                steps(work, self._execute)

        try:
            _again(statements, again, deadline, unbroken.django.replayable)()
        finally:
            connections[self.alias].close()  # as at the end of a request

    def _execute(self, sql: str) -> Any:
        from django.db import connections

        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else None

    def stats(self) -> Stats:
        from django.db import connections

        return connections[self.alias].unbroken_pool.stats()  # type: ignore[no-any-return]

    def close(self) -> None:
        from django.db import connections

        connections[self.alias].close()
        connections[self.alias].close_pool()


class HealingDjangoClient(DjangoClient):
    """The same, without the middleware and without units of work."""

    replays = False

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        return super().unit(work, again=False, deadline=None)


def _django_settings(url: str) -> dict[str, Any]:
    from unbroken.drivers.url import parse

    target = parse(url)
    is_mysql = url.startswith("mysql")
    options: dict[str, Any] = {"unbroken": {"max_size": MAX_SIZE, **PATIENCE}}
    return {
        "ENGINE": f"unbroken.django.{'mysql' if is_mysql else 'postgresql'}",
        "NAME": target.database, "USER": target.user, "PASSWORD": target.password,
        "HOST": target.host, "PORT": target.port,
        "OPTIONS": options if is_mysql else options | {"sslmode": "disable"},
    }  # fmt: skip
