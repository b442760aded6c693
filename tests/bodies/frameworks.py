"""The bodies for frameworks: a Django site, and peewee's databases, blocking and for asyncio."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from unbroken.brain.stats import Stats

from .bodies import Blocking, OnLoop

_numbers = itertools.count(1)


class DjangoBody(Blocking):
    """An alias of a Django site. Each use of a connection is a request, on the thread that asks."""

    name, driver = "django", "psycopg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        import django
        from django.conf import settings as site
        from django.db import connections, transaction

        if not site.configured:
            site.configure(DATABASES={}, SECRET_KEY="of tests only", USE_TZ=True)
            django.setup()
        where = urlsplit(url)
        hosts, password = where.netloc.rpartition("@")[2], where.password
        given = {
            "ENGINE": "unbroken.django.postgresql", "NAME": where.path[1:], "USER": where.username,
            "PASSWORD": settings.pop("password", password), "HOST": hosts, "PORT": "",
            "OPTIONS": {"unbroken": {"max_size": size, "acquire_timeout": patience, **settings}},
        }  # fmt: skip
        self.alias = f"body{next(_numbers)}"
        self.wrappers, self.atomic = connections, transaction.atomic
        connections.settings[self.alias] = connections.configure_settings(
            {"default": {}, self.alias: given}
        )[self.alias]

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """See Blocking. In a transaction: a thread at rest between two yields to waiters."""
        wrapper = self.wrappers[self.alias]
        try:
            with self.atomic(using=self.alias):
                wrapper.ensure_connection()
                yield wrapper
        finally:
            wrapper.close_if_unusable_or_obsolete()

    def replay(self, sql: str) -> Any:
        """See Body."""
        import unbroken.django

        return unbroken.django.replayable(self.change)(sql)

    def execute(self, conn: Any, sql: str) -> Any:
        """See Blocking."""
        with conn.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]

    def stats(self) -> Stats:
        """See Body."""
        return self.wrappers[self.alias].unbroken_pool.stats()  # type: ignore[no-any-return]

    def close(self) -> None:
        """See Body."""
        self.wrappers[self.alias].close()
        self.wrappers[self.alias].close_pool()
        del self.wrappers[self.alias]
        self.wrappers.settings.pop(self.alias)


class PeeweeBody(Blocking):
    """A database of ``unbroken.peewee``'s."""

    name, driver = "peewee", "psycopg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        import unbroken.peewee

        self.db = unbroken.peewee.connect(url, max_size=size, acquire_timeout=patience, **settings)

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """See Blocking."""
        with self.db.connection_context():
            yield self.db

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """See Blocking."""
        with self.db.atomic():
            yield self.db

    def replay(self, sql: str) -> Any:
        """See Body."""
        return self.db.unit(self.change)(sql)

    def execute(self, conn: Any, sql: str) -> Any:
        """See Blocking."""
        return conn.execute_sql(sql).fetchone()[0]

    def stats(self) -> Stats:
        """See Body."""
        return self.db.stats()  # type: ignore[no-any-return]

    def close(self) -> None:
        """See Body."""
        self.db.close_all()


class AsyncPeeweeBody(OnLoop):
    """A database of ``unbroken.peewee``'s for asyncio."""

    name, driver = "async peewee", "asyncpg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        import unbroken.peewee

        self.db = unbroken.peewee.connect(url, max_size=size, acquire_timeout=patience, **settings)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """See OnLoop."""
        async with self.db:
            yield self.db

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """See OnLoop."""
        async with self.db.atomic():
            yield self.db

    def replay(self, sql: str) -> Any:
        """See Body."""
        return self.run(self.db.unit(self._change)(sql))

    async def execute(self, conn: Any, sql: str) -> Any:
        """See OnLoop."""
        return (await conn.aexecute_sql(sql)).fetchone()[0]

    async def end(self) -> None:
        """See OnLoop."""
        await self.db.close_pool()

    def stats(self) -> Stats:
        """See Body."""
        return self.run(self.later(self.db.stats))  # type: ignore[no-any-return]


class MongoBody(Blocking):
    """A client of ``unbroken.mongo``'s. PyMongo's own pool has the connections."""

    name, driver, backend = "mongodb", "mongodb", "mongodb"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        import unbroken.mongo

        given = {"maxPoolSize": size, "timeoutMS": int(patience * 1000), **settings}
        self.client = unbroken.mongo.MongoClient(url, **given)

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """See Blocking."""
        yield self.client

    def execute(self, conn: Any, sql: str) -> Any:
        """See Blocking. Whatever *sql* is: a read, which PyMongo tries twice, then the number."""
        conn.body.thing.find_one()
        return conn.admin.command("hello")["connectionId"]

    def stats(self) -> Stats:
        """See Body."""
        import unbroken.mongo

        return unbroken.mongo.stats(self.client)

    def close(self) -> None:
        """See Body."""
        self.client.close()
