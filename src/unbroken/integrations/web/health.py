"""Checks for /readyz whether a database answers: a pool of ours, an engine of SQLAlchemy's, a
client or a database of PyMongo's, sync or async.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Iterable
from typing import Any

from unbroken.integrations.web.answers import one_line
from unbroken.integrations.web.exchange import log
from unbroken.pool.callers import priority


def name_of(database: Any) -> str:
    """Return the label of a database on the page of /readyz: never more than its name."""
    if mongo_client(database) is not None:
        return _mongo_name(database)
    url = getattr(database, "url", None)
    if url is not None and getattr(url, "database", None):
        return str(url.database)
    return str(getattr(database, "name", type(database).__name__)).rsplit("/", 1)[-1]


def ask(database: Any, timeout: float) -> None:
    """Make *database* answer once. Raises the database's own error."""
    client = mongo_client(database)
    if client is not None:
        with sys.modules["pymongo"].timeout(timeout):
            client.admin.command("ping")
        return
    if hasattr(database, "check"):
        database.check(timeout)
        return
    with database.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


async def ask_async(database: Any, timeout: float) -> None:
    """Do the same as :func:`ask`, for async pools and engines too; blocking ones are asked on a
    thread.
    """
    client = mongo_client(database)
    if client is not None and inspect.iscoroutinefunction(client.close):
        with sys.modules["pymongo"].timeout(timeout):
            await client.admin.command("ping")
    elif client is None and hasattr(database, "sync_engine"):
        async with asyncio.timeout(timeout), database.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
    elif client is None and inspect.iscoroutinefunction(getattr(database, "check", None)):
        await database.check(timeout)
    else:
        await asyncio.to_thread(ask, database, timeout)


def mongo_client(database: Any) -> Any:
    """Return the client that *database* is or belongs to, if it is PyMongo's, else None. (For any
    attribute, these objects report that they have it.)
    """
    pymongo = sys.modules.get("pymongo")
    if pymongo is None:
        return None
    if isinstance(database, (pymongo.MongoClient, pymongo.AsyncMongoClient)):
        return database
    from pymongo.asynchronous.database import AsyncDatabase
    from pymongo.database import Database

    return database.client if isinstance(database, (Database, AsyncDatabase)) else None


def _mongo_name(database: Any) -> str:
    if mongo_client(database) is not database:
        return str(database.name)
    named = database.get_default_database(default="mongodb")
    return str(named.name)


def ready(databases: Iterable[Any], timeout: float) -> tuple[bool, dict[str, str]]:
    """Return whether all of *databases* answer, and the state of each by its name.

    The check is served first if callers wait for a connection.
    """
    states: dict[str, str] = {}
    for database in databases:
        try:
            with priority("health"):
                ask(database, timeout)
        except Exception as exc:
            _note(states, database, exc)
        else:
            _note(states, database, None)
    return all(state == "ok" for state in states.values()), states


async def ready_async(databases: Iterable[Any], timeout: float) -> tuple[bool, dict[str, str]]:
    """Do the same as :func:`ready`."""
    states: dict[str, str] = {}
    for database in databases:
        try:
            with priority("health"):
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
        log.info("not ready", f"not ready: {name}: {one_line(exc)}", about=name)
