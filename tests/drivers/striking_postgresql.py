"""The sweep (sweep.py) for the drivers of PostgreSQL: ``striking_postgresql.py psycopg '{"host": …,
"port": …, …}'``.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sweep import Call, Subject, go, main  # type: ignore[import-not-found] # beside this file

from unbroken.drivers import open_driver
from unbroken.ledger import scope, unit

ASYNC = {"psycopg_async", "asyncpg"}


class PostgreSQL(Subject):  # type: ignore[misc] # its module is found at run time
    """A driver of PostgreSQL."""

    spares_loop = (
        True  # asyncpg's C code crashes on some exceptions in an event loop's own transports
    )

    def __init__(self, name: str, where: dict[str, Any]) -> None:
        self.name, self.where = name, where
        self.is_async = name in ASYNC
        # libpq ends a COPY that was broken off, asyncpg waits for the answer, an event loop closes
        # generators that were left
        self.resumes = name in ("psycopg2", "asyncpg", "psycopg_async")
        place = f"{where['user']}:{where['password']}@{where['host']}:{where['port']}/{where['database']}"  # noqa: E501
        self.driver = open_driver(
            f"postgresql+{name.removesuffix('_async')}://{place}", is_async=self.is_async
        )
        self.observer = open_driver(f"postgresql+psycopg2://{place}?autocommit=true").connect(5.0)

    async def connect(self) -> Any:
        """As a pool opens it: known not to lead through a pooler."""
        conn = await super().connect()
        self.driver.share(conn, False)
        self.driver.let_fly(conn, True)
        return conn

    async def prepare(self) -> None:
        self.observed("DROP TABLE IF EXISTS strikes")
        self.observed("CREATE TABLE strikes (id SERIAL PRIMARY KEY, n INT)")
        self.observed("INSERT INTO strikes (n) VALUES (1), (2), (3), (4), (5), (6)")

    def observed(self, sql: str) -> Any:
        """Ask on another connection."""
        with self.observer.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None

    async def execute(self, conn: Any, sql: str, *args: Any) -> Any:
        """As an application does."""
        if self.name == "asyncpg":
            return await conn.fetch(sql, *args)
        cursor = conn.cursor()
        await go(cursor.execute(sql, *args))
        return await go(cursor.fetchall()) if cursor.description else None

    async def ask(self, conn: Any, number: int) -> Any:
        try:
            return (await self.execute(conn, f"SELECT {number}"))[0][0]
        except self.driver.errors as error:
            if "current transaction is aborted" not in str(error):
                raise
        # that was the answer to this question; the strike made a statement of the call fail
        await self.rollback(conn)
        return (await self.execute(conn, f"SELECT {number}"))[0][0]

    async def commit(self, conn: Any) -> None:
        await (conn.execute("COMMIT") if self.name == "asyncpg" else go(conn.commit()))

    async def rollback(self, conn: Any) -> None:
        await go(self.driver.rollback(conn) if self.name == "asyncpg" else conn.rollback())

    async def denies(self, conn: Any) -> str | None:
        is_due = getattr(self.driver, "owes_answer", lambda _conn: False)(conn)
        sql = f"SELECT state FROM pg_stat_activity WHERE pid = {self.driver.session_id(conn)}"
        for left in reversed(range(500 if is_due else 1)):
            state = self.observed(sql)[0][0]
            if state == "idle":
                return None
            if left:  # the end of its transaction was sent, and nobody waited for the server
                time.sleep(0.002)
        return str(state)

    async def set_autocommit(self, conn: Any, on: bool) -> None:
        """By its own name."""
        if self.name == "psycopg_async":
            await conn.set_autocommit(on)
        elif self.name != "asyncpg":
            conn.autocommit = on


async def select(it: PostgreSQL, conn: Any) -> None:
    await it.execute(conn, "SELECT 7, 'x', NULL")


async def parameters(it: PostgreSQL, conn: Any) -> None:
    if it.name == "asyncpg":
        await it.execute(conn, "SELECT $1::int, $2::text", 7, "it's")
    else:
        await it.execute(conn, "SELECT %s, %s", (7, "it's"))


async def rows(it: PostgreSQL, conn: Any) -> None:
    await it.execute(conn, "SELECT id, n FROM strikes LIMIT 3")


async def insert(it: PostgreSQL, conn: Any) -> None:
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")


async def refused(it: PostgreSQL, conn: Any) -> None:
    with suppress(*it.driver.errors):
        await it.execute(conn, "SELECT * FROM no_such_table")


async def refused_by_value(it: PostgreSQL, conn: Any) -> None:
    with suppress(*it.driver.errors):
        if it.name == "asyncpg":
            await it.execute(conn, "SELECT 1 / $1::int", 0)
        else:
            await it.execute(conn, "SELECT 1 / %s", (0,))


async def many(it: PostgreSQL, conn: Any) -> None:
    if it.name == "asyncpg":
        await conn.executemany("INSERT INTO strikes (n) VALUES ($1)", [(1,), (2,), (3,)])
    else:
        await go(
            conn.cursor().executemany("INSERT INTO strikes (n) VALUES (%s)", [(1,), (2,), (3,)])
        )


async def commit(it: PostgreSQL, conn: Any) -> None:
    if it.name == "asyncpg":
        await it.driver.begin(conn)
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
    await go(it.driver.commit(conn))


async def rollback(it: PostgreSQL, conn: Any) -> None:
    if it.name == "asyncpg":
        await it.driver.begin(conn)
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
    await go(it.driver.rollback(conn))


async def library_commit(it: PostgreSQL, conn: Any) -> None:
    await it.execute(conn, "SELECT 1")
    await it.commit(conn)


async def ping(it: PostgreSQL, conn: Any) -> None:
    await go(it.driver.ping(conn, 5.0))


async def idle_limit(it: PostgreSQL, conn: Any) -> None:
    await go(it.driver.idle_limit(conn))


async def probe(it: PostgreSQL, conn: Any) -> None:
    await go(it.driver.probe(conn))


async def restored(it: PostgreSQL, conn: Any) -> None:
    traits = it.driver.traits(conn)
    await it.set_autocommit(conn, True)
    if it.name == "asyncpg":
        await conn.execute("SET search_path TO nowhere")
        await conn.add_listener("strikes", print)
    await go(it.driver.restore(conn, traits))


async def in_autocommit(it: PostgreSQL, conn: Any) -> None:
    await it.set_autocommit(conn, True)
    await it.execute(conn, "SELECT 1")
    await it.set_autocommit(conn, False)


async def watched(it: PostgreSQL, conn: Any) -> None:
    ledger = unit.Unit()
    token = scope.enter(ledger)
    ledger.join(id(conn))
    it.driver.watch(conn)
    try:
        if it.name == "asyncpg":
            await it.driver.begin(conn)
        await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
        await go(it.driver.commit(conn))
    finally:
        it.driver.unwatch(conn)
        scope.leave(token)


async def wanted(it: PostgreSQL, conn: Any) -> None:
    """Transactions in autocommit that begin with their first statement."""
    if it.name.startswith("psycopg") and hasattr(it.driver, "want"):
        await it.set_autocommit(conn, True)
        it.driver.want(conn, "BEGIN", bool)
        await select(it, conn)
        await go(it.driver.send_end(conn, "COMMIT"))
        it.driver.want(conn, "BEGIN", bool)
        await many(it, conn)
        await go(it.driver.send_end(conn, "COMMIT"))
        await it.set_autocommit(conn, False)


async def block(it: PostgreSQL, conn: Any) -> None:
    if it.is_async:
        async with conn.transaction():
            await it.execute(conn, "SELECT 1")
            async with conn.transaction():
                await it.execute(conn, "SELECT 2")
    elif it.name == "psycopg":
        with conn.transaction():
            await it.execute(conn, "SELECT 1")
            with conn.transaction():
                await it.execute(conn, "SELECT 2")


async def stream(it: PostgreSQL, conn: Any) -> None:
    if it.name == "psycopg":
        for _ in conn.cursor().stream("SELECT id, n FROM strikes LIMIT 4"):
            pass
    elif it.name == "psycopg_async":
        async for _ in conn.cursor().stream("SELECT id, n FROM strikes LIMIT 4"):
            pass
    elif it.name == "asyncpg":
        async with conn.transaction():
            async for _ in conn.cursor("SELECT id, n FROM strikes LIMIT 4", prefetch=2):
                pass


async def server_cursor(it: PostgreSQL, conn: Any) -> None:
    if it.name == "psycopg_async":
        async with conn.cursor("strikes") as cursor:
            await cursor.execute("SELECT id, n FROM strikes LIMIT 4")
            await cursor.fetchone()
            await cursor.fetchall()
    elif it.name in ("psycopg", "psycopg2"):
        with conn.cursor("strikes") as cursor:
            cursor.execute("SELECT id, n FROM strikes LIMIT 4")
            cursor.fetchone()
            cursor.fetchall()
    if it.name != "asyncpg":
        await it.rollback(conn)


async def copy_in(it: PostgreSQL, conn: Any) -> None:
    if it.name == "psycopg":
        with conn.cursor().copy("COPY strikes (n) FROM STDIN") as copy:
            copy.write_row((1,))
            copy.write_row((2,))
    elif it.name == "psycopg_async":
        async with conn.cursor().copy("COPY strikes (n) FROM STDIN") as copy:
            await copy.write_row((1,))
            await copy.write_row((2,))
    elif it.name == "psycopg2":
        conn.cursor().copy_expert("COPY strikes (n) FROM STDIN", io.StringIO("1\n2\n"))
    elif it.name == "pg8000":
        conn.cursor().execute("COPY strikes (n) FROM STDIN", stream=io.StringIO("1\n2\n"))
    else:
        await conn.copy_records_to_table("strikes", records=[(1,), (2,)], columns=["n"])


async def copy_out(it: PostgreSQL, conn: Any) -> None:
    sql = "COPY (SELECT n FROM strikes LIMIT 3) TO STDOUT"
    if it.name == "psycopg":
        with conn.cursor().copy(sql) as copy:
            list(copy.rows())
    elif it.name == "psycopg_async":
        async with conn.cursor().copy(sql) as copy:
            [row async for row in copy.rows()]
    elif it.name == "psycopg2":
        conn.cursor().copy_expert(sql, io.StringIO())
    elif it.name == "pg8000":
        conn.cursor().execute(sql, stream=io.StringIO())
    else:
        await conn.copy_from_query("SELECT n FROM strikes LIMIT 3", output=io.BytesIO())


async def prepared(it: PostgreSQL, conn: Any) -> None:
    if it.name == "asyncpg":
        statement = await conn.prepare("SELECT $1::int")
        await statement.fetchval(1)
        await statement.fetchval(2)
    elif it.name.startswith("psycopg") and it.name != "psycopg2":
        for number in (1, 2):
            await go(conn.execute("SELECT %s", (number,), prepare=True))


async def codec(it: PostgreSQL, conn: Any) -> None:
    if it.name == "asyncpg":
        traits = it.driver.traits(conn)
        await conn.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=int)
        await it.driver.restore(conn, traits)


async def leave(it: PostgreSQL, conn: Any, sql: str = "ROLLBACK") -> bool:
    """Do something in a transaction, and send its end. False: it cannot be sent alone here."""
    if not hasattr(it.driver, "send_end"):
        return False
    if it.name == "asyncpg":
        await it.driver.begin(conn)
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
    await go(it.driver.send_end(conn, sql))
    return True


async def taken(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await go(it.driver.take_answer(conn, 5.0))


async def due_select(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn, "COMMIT"):
        await it.execute(conn, "SELECT 7")


async def due_refused(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await refused(it, conn)


async def due_prepared(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await prepared(it, conn)


async def due_ping(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await ping(it, conn)


async def due_block(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await block(it, conn)


async def due_autocommit(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await in_autocommit(it, conn)


async def due_many(it: PostgreSQL, conn: Any) -> None:
    if await leave(it, conn):
        await many(it, conn)


CALLS: Sequence[Call] = [
    select, parameters, rows, insert, refused, refused_by_value, many, commit, rollback,
    library_commit, ping, idle_limit, probe, restored, in_autocommit, watched, block, stream,
    server_cursor, copy_in, copy_out, prepared, codec, taken, due_select, due_refused, due_prepared,
    due_ping, due_block, due_autocommit, due_many, wanted,
]  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(PostgreSQL, CALLS, __file__))
