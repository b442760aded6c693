"""The work of one request on the database, and the check of its answer.

Every request has a number of its own. A reading unit asks the server to repeat that number and to
name the session. It does a little work, and reads a row whose content follows from its key. So an
answer that belongs to another request is detected. A writing unit inserts its number into a journal
without a unique key. The administrator reads the journal afterwards, which reveals a lost or
doubled write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = list[Row | None]
Step: TypeAlias = tuple[str, tuple[Any, ...]]

ITEMS: Final = 64  #: rows in drill_items

_WHO: Final = {
    "postgresql": "SELECT %s::bigint, pg_backend_pid()",
    "mariadb": "SELECT %s, CONNECTION_ID()",
}
ITEM: Final = "SELECT body FROM drill_items WHERE id = %s"
NOTE: Final = "INSERT INTO drill_journal (n) VALUES (%s)"


@dataclass(frozen=True, slots=True)
class Unit:
    """One request's work on the database: steps, with *pause* seconds of the application's own work
    between them.
    """

    number: int
    steps: tuple[Step, ...]
    pause: float
    writes: bool


def reading(backend: str, number: int, pause: float) -> Unit:
    """Return a unit that only reads: its own number and its session's, then an item."""
    return Unit(
        number, ((_WHO[backend], (number,)), (ITEM, (number % ITEMS,))), pause, writes=False
    )


def writing(backend: str, number: int, pause: float) -> Unit:
    """Return a unit that asks which session it has, then writes its number into the journal."""
    return Unit(number, ((_WHO[backend], (number,)), (NOTE, (number,))), pause, writes=True)


def who(backend: str, number: int) -> Unit:
    """Return the shortest unit: its own number and its session's."""
    return Unit(number, ((_WHO[backend], (number,)),), 0.0, writes=False)


def perform(unit: Unit, execute: Callable[[str, tuple[Any, ...]], Row | None]) -> Rows:
    """Run the unit's steps through *execute*, which returns a statement's first row, or None."""
    rows: Rows = []
    for sql, values in unit.steps:
        if rows and unit.pause:
            time.sleep(unit.pause)
        rows.append(execute(sql, values))
    return rows


async def perform_async(
    unit: Unit, execute: Callable[[str, tuple[Any, ...]], Awaitable[Row | None]]
) -> Rows:
    """Act like :func:`perform`, awaited, with placeholders spelled ``$1``."""
    rows: Rows = []
    for sql, values in unit.steps:
        if rows and unit.pause:
            await asyncio.sleep(unit.pause)
        rows.append(await execute(numbered(sql), values))
    return rows


def on_cursor(unit: Unit, conn: Any) -> Rows:
    """Run the unit's steps on a DB-API connection, one cursor each as in tutorials."""

    def execute(sql: str, values: tuple[Any, ...]) -> Row | None:
        cursor = conn.cursor()
        try:
            cursor.execute(sql, values)
            return tuple(cursor.fetchone() or ()) if cursor.description else None
        finally:
            cursor.close()

    return perform(unit, execute)


@cache
def numbered(sql: str) -> str:
    """Return *sql* with ``%s`` replaced by ``$1``, ``$2`` …"""
    first, *rest = sql.split("%s")
    return first + "".join(f"${at}{text}" for at, text in enumerate(rest, 1))


def problem(unit: Unit, rows: Rows) -> str | None:
    """Return the error in the answer, or None.

    Any wrong answer is worse than an error: the user got false data.
    """
    told = rows[0][0] if rows and rows[0] else None
    if told != unit.number:
        return f"asked for {unit.number}, got {told!r}"
    if not unit.writes and len(unit.steps) > 1:
        body = rows[1][0] if rows[1] else None
        if body != body_of(unit.number % ITEMS):
            return f"asked for item {unit.number % ITEMS}, got {body!r}"
    return None


def session(rows: Rows) -> int | None:
    """Return the number of the session that answered."""
    return int(rows[0][1]) if rows and rows[0] and len(rows[0]) > 1 else None


def body_of(item: int) -> str:
    """Return the content of drill_items for *item*."""
    return f"item {item}"


def tables(backend: str, user: str) -> str:
    """Return the administrator's SQL that creates both tables again and grants *user* access."""
    serial = "bigserial" if backend == "postgresql" else "bigint AUTO_INCREMENT"
    rows = ", ".join(f"({item}, '{body_of(item)}')" for item in range(ITEMS))
    statements = [
        "DROP TABLE IF EXISTS drill_items, drill_journal",
        "CREATE TABLE drill_items (id int PRIMARY KEY, body varchar(40) NOT NULL)",
        # n is not unique, so that doubled writes are visible
        f"CREATE TABLE drill_journal (id {serial} PRIMARY KEY, n bigint NOT NULL)",
        f"INSERT INTO drill_items VALUES {rows}",
    ]
    if backend == "postgresql":
        name = '"' + user.replace('"', '""') + '"'
        statements.append(
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}; GRANT ALL ON ALL SEQUENCES IN"
            f" SCHEMA public TO {name}"
        )
    return "; ".join(statements)
