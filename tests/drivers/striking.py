"""The sweep (sweep.py) for the drivers of MySQL: ``striking.py pymysql '{"host": …, "port": …, …}'
[--every opcode]``.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sweep import Call, Subject, go, main  # type: ignore[import-not-found] # beside this file

from unbroken.drivers import open_driver
from unbroken.drivers._shared import AUTOCOMMIT_OFF, AUTOCOMMIT_ON

ASYNC = {"aiomysql", "asyncmy", "mysqlconnector_async"}


class MySQL(Subject):  # type: ignore[misc] # its module is found at run time
    """A driver of MySQL."""

    #: A strike in the standard library's executor leaves its lock taken: no driver can help that.
    spared = ("/threading.py", "/concurrent/futures/thread.py", "/concurrent/futures/_base.py")

    def __init__(self, name: str, where: dict[str, Any]) -> None:
        self.name, self.where = name, where
        self.is_async = name in ASYNC
        if name in ("mysqldb", "mariadbconnector"):  # their cursors read the rest when they end
            self.resumes_after = ("stream", "half_read", "left_and_streamed")
        spelling = name.removesuffix("_async")
        query = "?allow_local_infile=1" if spelling == "mysqlconnector" else "?local_infile=1"
        scheme = "mariadb" if spelling == "mariadbconnector" else "mysql"
        place = f"{where['user']}:{where['password']}@{where['host']}:{where['port']}/{where['database']}"  # noqa: E501
        self.driver: Any = open_driver(
            f"{scheme}+{spelling}://{place}{query}", is_async=self.is_async
        )

    async def cursor(self, conn: Any, *, stream: bool = False, prepared: bool = False) -> Any:
        how: tuple[Any, ...] = ()
        options: dict[str, Any] = {}
        if stream:
            library = {
                "pymysql": "pymysql.cursors",
                "mysqldb": "MySQLdb.cursors",
                "aiomysql": "aiomysql",
                "asyncmy": "asyncmy.cursors",
            }
            if self.name in library:
                how = (importlib.import_module(library[self.name]).SSCursor,)
            else:
                options = {"buffered": False}
        elif self.name.startswith("mysqlconnector") and not prepared:
            options = {"buffered": True}
        if prepared:
            options["prepared"] = True
        return await go(conn.cursor(*how, **options))

    async def execute(self, conn: Any, sql: str, *args: Any, **how: Any) -> Any:
        cursor = await self.cursor(conn, **how)
        try:
            await go(cursor.execute(sql, *args))
            return list(await go(cursor.fetchall())) if cursor.description else []
        finally:
            await go(cursor.close())

    async def prepare(self) -> None:
        conn = await self.connect()
        for sql in (
            "DROP TABLE IF EXISTS strikes", "CREATE TABLE strikes (id INT PRIMARY KEY AUTO_INCREMENT, n INT)",  # noqa: E501
            "INSERT INTO strikes (n) VALUES (1), (2), (3), (4), (5), (6)", "DROP PROCEDURE IF EXISTS strikes_two",  # noqa: E501
            "CREATE PROCEDURE strikes_two() BEGIN SELECT 1; SELECT 2; END",
        ):  # fmt: skip
            await self.execute(conn, sql)
        await go(conn.commit())
        self.driver.close(conn)

    async def denies(self, conn: Any) -> str | None:
        mode = (await self.execute(conn, "SELECT @@autocommit"))[0][0]
        return None if mode == 0 else f"autocommit is {mode}"

    async def ask(self, conn: Any, number: int) -> Any:
        return (await self.execute(conn, f"SELECT {number}"))[0][0]

    async def set_autocommit(self, conn: Any, on: bool) -> None:
        if self.name in ("mariadbconnector", "mysqlconnector"):
            conn.autocommit = on
        elif self.name == "mysqlconnector_async":
            await conn.set_autocommit(on)
        else:
            await go(conn.autocommit(on))


async def select(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "SELECT 7, 'x', NULL")


async def parameters(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "SELECT %s, %s", (7, "it's"))


async def rows(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "SELECT id, n FROM strikes LIMIT 3")


async def insert(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")


async def update(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "UPDATE strikes SET n = 9 WHERE id < 0")


async def refused(it: MySQL, conn: Any) -> None:
    with suppress(*it.driver.errors):
        await it.execute(conn, "SELECT * FROM no_such_table")


async def many(it: MySQL, conn: Any) -> None:
    cursor = await it.cursor(conn)
    await go(cursor.executemany("INSERT INTO strikes (n) VALUES (%s)", [(1,), (2,), (3,)]))
    await go(cursor.close())


async def commit(it: MySQL, conn: Any) -> None:
    await go(conn.commit())


async def rollback(it: MySQL, conn: Any) -> None:
    await go(conn.rollback())


async def driver_rollback(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
    await go(it.driver.rollback(conn))


async def ping(it: MySQL, conn: Any) -> None:
    await go(it.driver.ping(conn, 5.0))


async def switching(it: MySQL, conn: Any) -> None:
    await it.set_autocommit(conn, True)
    await it.set_autocommit(conn, False)


async def warnings_shown(it: MySQL, conn: Any) -> None:
    await it.execute(conn, "SELECT 1/0")
    if hasattr(conn, "show_warnings"):
        await go(conn.show_warnings())


async def charset(it: MySQL, conn: Any) -> None:
    for name, args in (
        ("set_character_set", ("utf8mb4",)),
        ("set_charset", ("utf8mb4",)),
        ("set_charset_collation", ("utf8mb4",)),
    ):
        if hasattr(conn, name):
            with suppress(AttributeError):  # asyncmy's is mistaken in a name
                await go(getattr(conn, name)(*args))
            return


async def database(it: MySQL, conn: Any) -> None:
    name = it.where["database"]
    if hasattr(conn, "select_db"):
        await go(conn.select_db(name))
    elif it.is_async:
        await conn.cmd_init_db(name)
    else:
        conn.database = name


async def results(it: MySQL, conn: Any) -> None:
    cursor = await it.cursor(conn)
    try:
        if it.name.startswith("mysqlconnector"):
            await go(cursor.callproc("strikes_two"))
        else:
            await go(cursor.execute("CALL strikes_two()"))
            while await go(cursor.nextset()):
                pass
    finally:
        await go(cursor.close())


async def stream(it: MySQL, conn: Any) -> None:
    cursor = await it.cursor(conn, stream=True)
    await go(cursor.execute("SELECT id, n FROM strikes LIMIT 4"))
    await go(cursor.fetchone())
    await go(cursor.fetchmany(2))
    await go(cursor.fetchall())
    await go(cursor.close())


async def half_read(it: MySQL, conn: Any) -> None:
    cursor = await it.cursor(conn, stream=True)
    await go(cursor.execute("SELECT id, n FROM strikes LIMIT 4"))
    await go(cursor.fetchone())
    if hasattr(it.driver, "is_streaming") and it.driver.is_streaming(conn):
        await go(it.driver.drain(conn))
    await go(cursor.close())


async def prepared(it: MySQL, conn: Any) -> None:
    if it.name in ("mariadbconnector",) or it.name.startswith("mysqlconnector"):
        cursor = await it.cursor(conn, prepared=True)
        for number in (1, 2):
            await go(
                cursor.execute(
                    "SELECT ?" if it.name == "mariadbconnector" else "SELECT %s", (number,)
                )
            )
            await go(cursor.fetchall())
        await go(cursor.close())
    elif hasattr(conn, "prepare"):
        statement = await conn.prepare("SELECT ?")
        await statement.execute((1,))
        await statement.execute((2,))
        await statement.close()


async def load(it: MySQL, conn: Any) -> None:
    if it.name == "asyncmy":
        return  # it is mistaken in a type there
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("77\n78\n")
        file.flush()
        await it.execute(conn, f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE strikes (n)")


async def restored(it: MySQL, conn: Any) -> None:
    traits = it.driver.traits(conn)
    await it.set_autocommit(conn, True)
    await go(it.driver.restore(conn, traits))


async def left(it: MySQL, conn: Any) -> None:
    """A ROLLBACK whose answer nobody waits for."""
    if hasattr(it.driver, "send_end"):
        await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
        await go(it.driver.send_end(conn, "ROLLBACK"))


async def left_and_taken(it: MySQL, conn: Any) -> None:
    await left(it, conn)
    if hasattr(it.driver, "send_end"):
        await go(it.driver.take_answer(conn, 5.0))


async def left_and_asked(it: MySQL, conn: Any) -> None:
    await left(it, conn)
    await select(it, conn)


async def left_and_pinged(it: MySQL, conn: Any) -> None:
    await left(it, conn)
    await ping(it, conn)


async def left_and_streamed(it: MySQL, conn: Any) -> None:
    await left(it, conn)
    await stream(it, conn)


async def wanted(it: MySQL, conn: Any) -> None:
    """Transactions that begin with their first statement, of which the first only reads."""
    if hasattr(it.driver, "want"):
        await it.set_autocommit(conn, True)
        it.driver.let_fly(conn, True)
        it.driver.want(conn, AUTOCOMMIT_OFF, lambda _: True)
        await rows(it, conn)
        await go(it.driver.send_end(conn, "COMMIT"))
        await go(it.driver.send_end(conn, AUTOCOMMIT_ON))
        it.driver.want(conn, AUTOCOMMIT_OFF, lambda _: False)
        await insert(it, conn)


async def reset(it: MySQL, conn: Any) -> None:
    for name in ("reset", "cmd_reset_connection"):
        if hasattr(conn, name):
            await go(getattr(conn, name)())
            return


CALLS: Sequence[Call] = [
    select, parameters, rows, insert, update, refused, many, commit, rollback, driver_rollback,
    ping, switching, warnings_shown, charset, database, results, stream, half_read, prepared, load,
    restored, reset, left, left_and_taken, left_and_asked, left_and_pinged, left_and_streamed,
    wanted,
]  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(MySQL, CALLS, __file__))
