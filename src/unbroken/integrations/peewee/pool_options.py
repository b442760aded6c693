"""A peewee database's arguments: its driver, its address, how to connect, and the pool's
settings.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import peewee

from unbroken.abc import Login
from unbroken.drivers import open_driver
from unbroken.drivers._login import Opener
from unbroken.drivers._takes import refuse_strays, takes
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.integrations.peewee.where import hosts_of, turned
from unbroken.messages.configuration import BAD_SETTING, NOT_INSTALLED
from unbroken.messages.integrations import PEEWEE_DATABASE
from unbroken.pool.arguments import by_our_names
from unbroken.settings import MOST, Settings

#: playhouse's value for no limit.
_UNBOUNDED = 1_000_000
#: Each driver's name for its connect timeout, and its minimum in whole seconds (libpq: 2; see each
#: driver's file).
_CONNECT_TIMEOUT = {
    "psycopg": 2,
    "psycopg2": 2,
    "mysqlclient": 1,
    "mariadb": 1,
    "mysqlconnector": 1,
    "pymysql": 1,
}

#: Two settings under the names of aiomysql's and asyncpg's own pools.
_RENAMED = {"pool_recycle": "max_age", "max_inactive_connection_lifetime": "max_idle"}


#: The drivers that a database's class may connect with.
_DRIVERS = {
    "MySQLConnectorDatabase": ("mysqlconnector",),
    "MariaDBConnectorDatabase": ("mariadb",),
    "AsyncMySQLDatabase": ("aiomysql", "pymysql"),
    "AsyncPostgresqlDatabase": ("asyncpg",),
    "MySQLDatabase": ("pymysql", "mysqlclient"),
    "PostgresqlDatabase": ("psycopg2", "psycopg"),
}
_HOW = "Give unbroken's settings as keywords of the database, such as max_size=5."


def settings_of(
    max_connections: Any, stale_timeout: Any, timeout: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings for the pool from playhouse's arguments (None: not given) and unbroken's own,
    which take precedence.
    """
    out: dict[str, Any] = {}
    if max_connections is not None:
        out["max_size"] = _number("max_connections", max_connections, int) or _UNBOUNDED
    if stale_timeout:
        out["max_age"] = _number("stale_timeout", stale_timeout, float)
    if timeout is not None:
        out["acquire_timeout"] = _number("timeout", timeout, float) or math.inf
    return {**out, **given}


def _number(name: str, value: Any, kind: type[Any]) -> Any:
    """Return *value* of playhouse's argument *name*, which may be a text, as from a URL."""
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError):
        found = -1
    if not 0 <= found <= MOST:
        what = "whole number" if kind is int else "number of seconds"
        raise ConfigurationError(
            BAD_SETTING(f"{name}={shown(value)} must be a {what} from 0 to {MOST}")
        )
    return found


def check_names(database: Any, options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a setting of ours, misspelled, or another pool's name for one,
    among the *options* that *database* gives to its driver. Raise it for an invalid port, too.
    """
    kinds = {kind.__name__ for kind in type(database).__mro__}
    drivers = next((all_ for kind, all_ in _DRIVERS.items() if kind in kinds), ())
    if not drivers:
        return
    known = set[str]().union(*(takes(each) or () for each in drivers))
    for kind in type(database).__mro__:
        for name in ("__init__", "init"):
            if name in vars(kind):
                known.update(inspect.signature(vars(kind)[name]).parameters)
    refuse_strays(options, known, f"{drivers[0]} has no option", _HOW)
    hosts_of(options, "postgresql" if "PostgresqlDatabase" in kinds else "mysql")


def async_settings(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split *kwargs* into the pool's settings and the driver's. The pool's come from pwasyncio's
    names, the blocking databases', and unbroken's own, which take precedence.
    """
    ours, theirs = Settings.split(by_our_names(kwargs))
    sizes = [theirs.pop(name, None) for name in ("max_connections", "pool_size")]
    out = settings_of(
        next((n for n in sizes if n is not None), None), theirs.pop("stale_timeout", None), None, {}
    )
    if (least := theirs.pop("pool_min_size", None)) is not None:
        out["min_size"] = _number("pool_min_size", least, int)
    for name, setting in _RENAMED.items():
        if (seconds := theirs.pop(name, None)) is not None:
            is_never = seconds == -1
            out[setting] = 0.0 if is_never else _number(name, seconds, float)
            out[setting] = out[setting] or math.inf
    theirs.pop("max_queries", None)
    if ours.get("acquire_timeout", 0) is None:  # pwasyncio: wait for ever
        ours["acquire_timeout"] = math.inf
    return {**out, **ours}, theirs


def driver_of(database: Any) -> str:
    """Return the name of the library that *database* connects with."""
    kinds = {kind.__name__ for kind in type(database).__mro__}
    if "MySQLConnectorDatabase" in kinds:
        return "mysqlconnector"
    if "MariaDBConnectorDatabase" in kinds:
        return "mariadb"
    if isinstance(database, peewee.MySQLDatabase):
        library = peewee.mysql
        if library is None:
            raise peewee.ImproperlyConfigured(
                NOT_INSTALLED("no MySQL driver is installed; pip install pymysql")
            )
        name: str = library.__name__.split(".")[0]
        return {"MySQLdb": "mysqlclient"}.get(name, name)
    if isinstance(database, peewee.PostgresqlDatabase):
        database._adapter.check_driver()
        return "psycopg" if isinstance(database._adapter, peewee.Psycopg3Adapter) else "psycopg2"
    raise ConfigurationError(
        PEEWEE_DATABASE(
            f"{type(database).__name__} is not one of peewee's databases for MySQL, MariaDB or"
            " PostgreSQL; unbroken pools only those"
        )
    )


def _pymysql_opener(database: Any, settings: Settings) -> Opener:
    """Return an opener for PyMySQL. Its own timeout ends before the handshake, and it reads the CA
    store at each connect (19 of 20 ms); this opener avoids both.
    """
    helper: Any = open_driver(driver="pymysql", connect=_never)

    def open_one(login: Login | None) -> Any:
        params = turned(database.connect_params, login, "mysql")
        given = {"database": database.database, "autocommit": True, **params}
        for old, new in (("db", "database"), ("passwd", "password")):
            if old in given:
                given[new] = given.pop(old)
        return helper.open(given, settings.connect_timeout)

    return Opener(open_one)


def _never() -> Any:
    raise NotImplementedError  # only open() of that helper is used


def opener(database: Any, connect: Callable[[Any], Any], driver: str, settings: Settings) -> Opener:
    """Return how the pool opens a connection. *connect* is peewee's own, called with a copy of
    *database* that holds the time limit.
    """
    if driver == "pymysql":
        return _pymysql_opener(database, settings)

    backend = "postgresql" if driver.startswith("psycopg") else "mysql"

    def open_one(login: Login | None) -> Any:
        one = copy.copy(database)
        limit = min(
            settings.connect_timeout,
            float(database.connect_params.get("connect_timeout") or math.inf),
        )
        one.connect_params = turned(database.connect_params, login, backend)
        least = _CONNECT_TIMEOUT.get(driver)
        if least is not None and "connection_timeout" not in one.connect_params:
            one.connect_params["connect_timeout"] = max(least, math.ceil(limit))
        if driver == "psycopg2":
            # written in C: only a class that is used from the start can report to a unit of work
            from unbroken.drivers._psycopg2_connection import reporting

            plain = peewee.psycopg2.extensions.connection
            one.connect_params["connection_factory"] = reporting(
                one.connect_params.get("connection_factory") or plain
            )
        return connect(one)

    return Opener(open_one)
