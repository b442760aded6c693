"""Every body of unbroken's with every driver, blocking to its caller: those of asyncio run on a
loop in a thread of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import unbroken
from unbroken.drivers.url import parse
from unbroken_drill.servers import PostgreSQL, Server

#: Longer than anything here may take: what is not over by then hangs.
HANGS = 40.0

_numbers = itertools.count(1)


def nothing() -> None:
    """Do nothing."""


class PoolBody:
    """``unbroken.Pool``."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.pool = unbroken.Pool(url, **settings)

    def work(self, sql: str, before_commit: Callable[[], None] = nothing) -> Any:
        """Run *sql* in a transaction: its first value, if it has any."""
        with self.pool.connection() as conn:
            found = self._execute(conn, sql)
            before_commit()
            return found

    def _execute(self, conn: Any, sql: str) -> Any:
        cursor = conn.cursor()
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        cursor.close()
        return row[0] if row else None

    def stats(self) -> Any:
        return self.pool.stats()

    def close(self) -> None:
        self.pool.close(0)


class OnLoop:
    """What the bodies of asyncio share: a loop that runs in a thread."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._wait(self.begin(url, settings))

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(HANGS)

    async def begin(self, url: str, settings: dict[str, Any]) -> None:
        raise NotImplementedError

    async def awork(self, sql: str, before_commit: Callable[[], None]) -> Any:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    async def counted(self) -> Any:
        raise NotImplementedError

    def work(self, sql: str, before_commit: Callable[[], None] = nothing) -> Any:
        return self._wait(self.awork(sql, before_commit))

    def stats(self) -> Any:
        return self._wait(self.counted())

    def close(self) -> None:
        self._wait(self.end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class AsyncPoolBody(OnLoop):
    """``unbroken.AsyncPool``."""

    async def begin(self, url: str, settings: dict[str, Any]) -> None:
        self.pool = unbroken.AsyncPool(url, **settings)
        self.driver = url.partition("://")[0].partition("+")[2]

    async def awork(self, sql: str, before_commit: Callable[[], None]) -> Any:
        async with self.pool.connection() as conn:
            if self.driver == "asyncpg":
                found = await conn.fetchval(sql)
            else:
                made = conn.cursor()
                cursor = (await made) if self.driver in ("aiomysql", "mysqlconnector") else made
                await cursor.execute(sql)
                row = await cursor.fetchone() if cursor.description else None
                await cursor.close()
                found = row[0] if row else None
            before_commit()
            return found

    async def counted(self) -> Any:
        return self.pool.stats()

    async def end(self) -> None:
        await self.pool.close(0)


def _engine_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    ours = dict(settings)
    return {
        "pool_size": ours.pop("max_size", 5), "max_overflow": 0,
        "pool_timeout": ours.pop("acquire_timeout", 10.0), "plugins": ["unbroken"],
        "unbroken": ours,
    }  # fmt: skip


class SQLAlchemyBody:
    """An engine with the plugin."""

    def __init__(self, url: str, **settings: Any) -> None:
        import sqlalchemy as sa

        self.engine = sa.create_engine(
            _for_sqlalchemy(url), **_engine_arguments(settings), **_tls(url)
        )

    def work(self, sql: str, before_commit: Callable[[], None] = nothing) -> Any:
        with self.engine.begin() as conn:
            result = conn.exec_driver_sql(sql)
            found = result.scalar() if result.returns_rows else None
            before_commit()
            return found

    def stats(self) -> Any:
        import unbroken.sqlalchemy

        return unbroken.sqlalchemy.stats(self.engine)

    def close(self) -> None:
        self.engine.dispose()


class AsyncSQLAlchemyBody(OnLoop):
    """An async engine with the plugin."""

    async def begin(self, url: str, settings: dict[str, Any]) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        self.engine = create_async_engine(
            _for_sqlalchemy(url), **_engine_arguments(settings), **_tls(url)
        )

    async def awork(self, sql: str, before_commit: Callable[[], None]) -> Any:
        async with self.engine.begin() as conn:
            result = await conn.exec_driver_sql(sql)
            found = result.scalar() if result.returns_rows else None
            before_commit()
            return found

    async def counted(self) -> Any:
        import unbroken.sqlalchemy

        return unbroken.sqlalchemy.stats(self.engine)

    async def end(self) -> None:
        await self.engine.dispose()


def _for_sqlalchemy(url: str) -> str:
    """*url* without the query, whose options :func:`_tls` gives in the driver's own way."""
    return url.partition("?")[0]


def _tls(url: str) -> dict[str, Any]:
    """``connect_args`` for what *url* says of TLS, in the words that each driver's connect has for
    it.
    """
    import ssl

    query, driver = parse(url).options, parse(url).scheme.partition("+")[2]
    root = query.get("ssl_ca") or query.get("sslrootcert")
    if driver in ("aiomysql", "asyncmy"):
        given: dict[str, Any] = {"ssl": ssl.create_default_context(cafile=root)} if root else {}
    elif driver == "pg8000":
        given = {"ssl_context": ssl.create_default_context(cafile=root) if root else False}
    elif driver == "asyncpg":
        given = {"ssl": ssl.create_default_context(cafile=root) if root else "disable"}
    elif driver in ("pymysql", "mysqldb"):
        given = (
            {"ssl": {"ca": root}} if root else {"ssl_disabled": True} if driver == "pymysql" else {}
        )
    else:
        given = dict(query)
        if "use_pure" in given:
            given["use_pure"] = given["use_pure"] == "true"
        if "ssl_disabled" in given:
            given["ssl_disabled"] = True
    return {"connect_args": given}


class PeeweeBody:
    """A database of ``unbroken.peewee``'s."""

    def __init__(self, url: str, **settings: Any) -> None:
        import unbroken.peewee

        self.db = unbroken.peewee.connect(url, **settings)

    def work(self, sql: str, before_commit: Callable[[], None] = nothing) -> Any:
        with self.db.connection_context(), self.db.atomic():
            cursor = self.db.execute_sql(sql)
            row = cursor.fetchone() if cursor.description else None
            before_commit()
            return row[0] if row else None

    def stats(self) -> Any:
        return self.db.stats()

    def close(self) -> None:
        self.db.close_all()


class AsyncPeeweeBody(OnLoop):
    """An asyncio database of ``unbroken.peewee``'s."""

    async def begin(self, url: str, settings: dict[str, Any]) -> None:
        import unbroken.peewee

        given = _tls(url)["connect_args"] if "?" in url else {}  # both drivers take a context only
        self.db = unbroken.peewee.connect(url.partition("?")[0], **given, **settings)

    async def awork(self, sql: str, before_commit: Callable[[], None]) -> Any:
        async with self.db, self.db.atomic():
            cursor = await self.db.aexecute_sql(sql)
            rows = list(cursor) if getattr(cursor, "description", True) else []
            before_commit()
            return rows[0][0] if rows else None

    async def counted(self) -> Any:
        return self.db.stats()

    async def end(self) -> None:
        await self.db.close_pool()


class DjangoBody:
    """An alias of a Django site."""

    def __init__(self, url: str, **settings: Any) -> None:
        import django
        from django.conf import settings as site
        from django.db import connections

        if not site.configured:
            site.configure(DATABASES={}, SECRET_KEY="of tests only", USE_TZ=True)
            django.setup()
        self.alias = f"bounds{next(_numbers)}"
        given = connections.configure_settings(
            {"default": {}, self.alias: _django_settings(url, settings)}
        )
        connections.settings[self.alias] = given[self.alias]

    def work(self, sql: str, before_commit: Callable[[], None] = nothing) -> Any:
        from django.db import connections, transaction

        try:
            with transaction.atomic(using=self.alias), connections[self.alias].cursor() as cursor:
                cursor.execute(sql)
                row = cursor.fetchone() if cursor.description else None
                before_commit()
                return row[0] if row else None
        finally:
            connections[self.alias].close()  # as at the end of a request

    def stats(self) -> Any:
        from django.db import connections

        return connections[self.alias].unbroken_pool.stats()

    def close(self) -> None:
        from django.db import connections

        connections[self.alias].close()
        connections[self.alias].close_pool()
        del connections.settings[self.alias]


def _django_settings(url: str, settings: dict[str, Any]) -> dict[str, Any]:
    target = parse(url)
    is_mysql = target.backend != "postgresql"
    root = target.options.get("ssl_ca")
    options: dict[str, Any] = {"unbroken": settings}
    if not is_mysql:
        options |= target.options
    elif root:
        options["ssl"] = {"ca": root}
    return {
        "ENGINE": f"unbroken.django.{'mysql' if is_mysql else 'postgresql'}",
        "NAME": target.database, "USER": target.user, "PASSWORD": target.password,
        "HOST": target.host, "PORT": target.port, "OPTIONS": options,
    }  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A body, the driver in its URL, and the kind of its server."""

    name: str
    body: type[Any]
    driver: str
    is_mysql: bool

    def url(self, server: Server, *, tls: bool) -> str:
        """Where *server*, which has a certificate, is to be found by this driver."""
        if isinstance(server, PostgreSQL):
            plain = {} if self.body is AsyncPeeweeBody else {"sslmode": "disable"}
            query: dict[str, object] = (
                {"sslmode": "verify-ca", "sslrootcert": str(server.ca_file)} if tls else plain
            )
        elif tls:
            query = {"ssl_ca": str(server.ca_file)}
        else:
            query = (
                {"ssl_disabled": "true"}
                if self.driver in ("pymysql", "mysqlconnector") and self.body is not AsyncPeeweeBody
                else {}
            )
        return server.url(self.driver, **query)

    def make(self, url: str, **settings: Any) -> Any:
        """The body, connected to nothing yet."""
        return self.body(url, **settings)


def _kinds(body: type[Any], prefix: str, mysql: str, postgresql: str) -> list[Kind]:
    def one(name: str, is_mysql: bool) -> Kind:
        return Kind(f"{prefix}{name}", body, name.removesuffix("_"), is_mysql)

    return [
        *(one(name, True) for name in mysql.split()),
        *(one(name, False) for name in postgresql.split()),
    ]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *_kinds(
            PoolBody,
            "",
            "pymysql mysqldb mariadbconnector mysqlconnector",
            "psycopg psycopg2 pg8000",
        ),
        *_kinds(AsyncPoolBody, "async-", "aiomysql asyncmy mysqlconnector", "psycopg asyncpg"),
        *_kinds(
            SQLAlchemyBody,
            "sqlalchemy-",
            "pymysql mysqldb mariadbconnector mysqlconnector",
            "psycopg psycopg2 pg8000",
        ),
        *_kinds(AsyncSQLAlchemyBody, "sqlalchemy-async-", "aiomysql asyncmy", "psycopg asyncpg"),
        *_kinds(
            PeeweeBody, "peewee-", "pymysql mysqlconnector mariadbconnector", "psycopg psycopg2"
        ),
        *_kinds(AsyncPeeweeBody, "peewee-async-", "aiomysql", "asyncpg"),
        *_kinds(DjangoBody, "django-", "mysqldb", "psycopg psycopg2"),
    )
}
