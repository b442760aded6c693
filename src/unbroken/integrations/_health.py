"""Does a database answer? For /readyz: a pool of ours, or an engine of SQLAlchemy's, sync or async."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from typing import Any

from unbroken.integrations._http import log, one_line


def name_of(database: Any) -> str:
    """What a database is called on the page of /readyz: never more than its name."""
    url = getattr(database, "url", None)
    if url is not None and getattr(url, "database", None):
        return str(url.database)
    return str(getattr(database, "name", type(database).__name__)).rsplit("/", 1)[-1]


def ask(database: Any, timeout: float) -> None:
    """Have *database* answer once. Raises what it raises."""
    if hasattr(database, "check"):
        database.check(timeout)
        return
    with database.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


async def ask_async(database: Any, timeout: float) -> None:
    """As :func:`ask`, for async pools and engines too; blocking ones are asked on a thread."""
    if hasattr(database, "sync_engine"):
        async with asyncio.timeout(timeout), database.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
    elif inspect.iscoroutinefunction(getattr(database, "check", None)):
        await database.check(timeout)
    else:
        await asyncio.to_thread(ask, database, timeout)


def ready(databases: Iterable[Any], timeout: float) -> tuple[bool, dict[str, str]]:
    """Whether all of *databases* answer, and the state of each by its name."""
    states: dict[str, str] = {}
    for database in databases:
        try:
            ask(database, timeout)
        except Exception as exc:
            _note(states, database, exc)
        else:
            _note(states, database, None)
    return all(state == "ok" for state in states.values()), states


async def ready_async(databases: Iterable[Any], timeout: float) -> tuple[bool, dict[str, str]]:
    """As :func:`ready`."""
    states: dict[str, str] = {}
    for database in databases:
        try:
            await ask_async(database, timeout)
        except Exception as exc:
            _note(states, database, exc)
        else:
            _note(states, database, None)
    return all(state == "ok" for state in states.values()), states


def _note(states: dict[str, str], database: Any, exc: Exception | None) -> None:
    name = key = name_of(database)
    number = 1
    while key in states:
        number += 1
        key = f"{name} ({number})"
    states[key] = "ok" if exc is None else "away"
    if exc is not None:
        log.info("not ready: %s: %s", name, one_line(exc))
