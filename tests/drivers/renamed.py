"""A library in which one private name was renamed, and what a pool does with it. Run as a program,
it is the pool's process.

``renamed(package, name, folder)`` copies the library and replaces the name wherever it stands in
its Python sources, so that the library works as before, and only those who relied on the name do
not find it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import re
import shutil
import sys
from importlib.util import find_spec
from inspect import isawaitable
from pathlib import Path
from typing import Any

from unbroken_drill.servers import wire

NEW = "renamed_by_a_test"


def renamed(package: str, name: str, folder: Path, after: str = r"\b") -> None:
    """Put a copy of *package* into *folder* in which *name* is called otherwise, where it follows
    *after*.

    What Python had compiled is copied too: only the files that mention the name are compiled again.
    """
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    target = folder / package
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("tests", "vendor", "ai"))
    for libraries in source.parent.glob(f"{package.replace('-', '_')}*.libs"):
        (folder / libraries.name).symlink_to(libraries)
    found = 0
    for file in target.rglob("*.py"):
        text, count = re.subn(rf"({after}{name})\b", rf"\1_{NEW}", file.read_text())
        if count:
            file.write_text(text)
        found += count
    assert found, f"{package} does not mention {name}"


def hide(owner: str, name: str) -> None:
    """As if the class *owner* (``module:Class``), written in C, had no *name*.

    Its library is told of the class that has none.
    """
    module_name, _, class_name = owner.partition(":")
    module = importlib.import_module(module_name)

    class Meta(type):
        def __getattribute__(cls, attribute: str) -> Any:
            if attribute == name:
                raise AttributeError(f"{class_name} has no {name}")
            return super().__getattribute__(attribute)

    base: Any = getattr(module, class_name)
    setattr(module, class_name, Meta(class_name, (base,), {"__module__": base.__module__}))


def route_around(name: str) -> None:
    """As if asyncpg's protocol, written in C, called *name* otherwise; asyncpg's Python sources
    were renamed already.
    """
    from asyncpg import connection

    class Protocol:
        def __init__(self, real: Any) -> None:
            self.__dict__["real"] = real

        def __getattr__(self, attribute: str) -> Any:
            if attribute == name:
                raise AttributeError(f"the protocol has no {name}")
            return getattr(self.real, name if attribute == f"{name}_{NEW}" else attribute)

    plain = connection.Connection.__init__

    def init(self: Any, protocol: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, Protocol(protocol), *args, **kwargs)

    connection.Connection.__init__ = init


class Warnings(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


KILL = {
    "postgresql": "SELECT pg_terminate_backend(pg_backend_pid())",
    "mysql": "SELECT CONNECTION_ID()",
}


def end(job: dict[str, Any], rows: Any) -> None:
    """With MySQL, end the session whose number is in *rows* as an administrator does; PostgreSQL's
    has ended itself.
    """
    if not job["url"].startswith("postgresql"):
        wire.mysql_query(job["socket"], "root", f"KILL {rows[0][0]}")


def use(pool: Any, job: dict[str, Any], execute: Any) -> dict[str, Any]:
    """Plain use, then a unit of work that writes and loses its connection: how it went."""
    table, kill = (
        job["table"],
        KILL["postgresql" if job["url"].startswith("postgresql") else "mysql"],
    )
    for n in range(3):
        with pool.connection() as conn:
            execute(conn, f"INSERT INTO {table} VALUES ({n})")
        with contextlib.suppress(ZeroDivisionError), pool.connection() as conn:
            execute(conn, f"INSERT INTO {table} VALUES (100)")
            raise ZeroDivisionError
        with pool.connection(transaction=False) as conn:
            execute(conn, f"INSERT INTO {table} VALUES (101)")
    attempts = []

    def unit(conn: Any) -> None:
        attempts.append(conn)
        execute(conn, f"INSERT INTO {table} VALUES (200)")
        if len(attempts) == 1:
            end(job, execute(conn, kill))
            execute(conn, kill)

    error = None
    try:
        pool.run(unit)
    except Exception as exc:
        error = type(exc).__name__
    with pool.connection() as conn:
        rows = execute(conn, f"SELECT n FROM {table} ORDER BY n")
    return {"attempts": len(attempts), "error": error, "rows": [row[0] for row in rows]}


async def use_async(pool: Any, job: dict[str, Any], execute: Any) -> dict[str, Any]:
    """As :func:`use`."""
    table, kill = (
        job["table"],
        KILL["postgresql" if job["url"].startswith("postgresql") else "mysql"],
    )
    for n in range(3):
        async with pool.connection() as conn:
            await execute(conn, f"INSERT INTO {table} VALUES ({n})")
        with contextlib.suppress(ZeroDivisionError):
            async with pool.connection() as conn:
                await execute(conn, f"INSERT INTO {table} VALUES (100)")
                raise ZeroDivisionError
    attempts = []

    async def unit(conn: Any) -> None:
        attempts.append(conn)
        await execute(conn, f"INSERT INTO {table} VALUES (200)")
        if len(attempts) == 1:
            end(job, await execute(conn, kill))
            await execute(conn, kill)

    error = None
    try:
        await pool.run(unit)
    except Exception as exc:
        error = type(exc).__name__
    async with pool.connection() as conn:
        rows = await execute(conn, f"SELECT n FROM {table} ORDER BY n")
    return {"attempts": len(attempts), "error": error, "rows": [row[0] for row in rows]}


def by_cursor(conn: Any, sql: str) -> Any:
    """As the DB-API has it."""
    cursor = conn.cursor()
    cursor.execute(sql)
    return cursor.fetchall() if cursor.description else None


async def by_async_cursor(conn: Any, sql: str) -> Any:
    """As the libraries for asyncio have it; some await a cursor."""
    cursor = conn.cursor()
    if isawaitable(cursor):
        cursor = await cursor
    await cursor.execute(sql)
    return await cursor.fetchall() if cursor.description else None


async def by_fetch(conn: Any, sql: str) -> Any:
    """As asyncpg has it."""
    return await conn.fetch(sql)


async def run_async(job: dict[str, Any]) -> dict[str, Any]:
    """The whole, for asyncio."""
    from unbroken import AsyncPool

    async with AsyncPool(job["url"], max_size=2) as pool:
        return await use_async(pool, job, by_fetch if "asyncpg" in job["url"] else by_async_cursor)


def main(job: dict[str, Any]) -> None:
    """Do *job* and print what became of it."""
    from unbroken import Pool

    warnings = Warnings()
    logging.getLogger("unbroken").addHandler(warnings)
    if job["hide"] is not None:
        hide(*job["hide"])
    if job["route"] is not None:
        route_around(job["route"])
    if job["async"]:
        outcome = asyncio.run(run_async(job))
    else:
        with Pool(job["url"], max_size=2) as pool:
            outcome = use(pool, job, by_cursor)
    print(json.dumps({**outcome, "warnings": warnings.texts}, default=str))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
