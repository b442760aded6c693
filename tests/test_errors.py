"""Errors are caught by who expects the driver's, travel between processes, and tell no secrets."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sqlite3
from importlib import import_module
from typing import Any

import pytest

from unbroken import errors
from unbroken.errors import (
    CommitUnknownError,
    ConfigurationError,
    ConnectRejectedError,
    DeadlineExceeded,
    DriverNotInstalledError,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    UnbrokenError,
    for_driver,
)

BARE = (UnbrokenError, ConfigurationError, DriverNotInstalledError)

#: Those that a pool raises in its driver's name; the bare ones come before there is a driver.
KINDS = [
    c
    for c in vars(errors).values()
    if isinstance(c, type) and issubclass(c, UnbrokenError) and c not in BARE
]

#: What callers of each driver catch.
FOREIGN = [
    "pymysql.err.OperationalError", "MySQLdb.OperationalError", "psycopg.OperationalError",
    "psycopg2.OperationalError", "pg8000.dbapi.OperationalError",
    "mysql.connector.errors.OperationalError", "mariadb.OperationalError",
    "sqlite3.OperationalError", "asyncpg.exceptions.PostgresConnectionError",
    "asyncpg.exceptions.InterfaceError", "unbroken_drill.fake.FakeOperationalError",
    "builtins.ConnectionError", "builtins.OSError", "builtins.Exception",
]  # fmt: skip


def found(path: str) -> type[BaseException]:
    module, _, name = path.rpartition(".")
    cls: type[BaseException] = getattr(import_module(module), name)
    return cls


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("kind", KINDS, ids=lambda c: c.__name__)
def test_every_error_is_both_ours_and_the_drivers(kind: type[UnbrokenError], path: str) -> None:
    foreign = found(path)
    error = for_driver(kind, foreign, "no connection within 1.0 s")
    if kind is DeadlineExceeded and not isinstance(error, foreign):
        # a deadline is a time-out first, where there is room for one of the two only
        foreign = TimeoutError
        assert path in ("psycopg2.OperationalError", "mariadb.OperationalError")
    for catches in (kind, UnbrokenError, foreign):
        with pytest.raises(catches):
            raise error
    assert str(error) == "no connection within 1.0 s"
    assert error.args == ("no connection within 1.0 s",)
    assert type(error).__name__ == kind.__name__


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda f: f.__name__)
def test_errors_travel(how: Any, path: str) -> None:
    foreign = found(path)
    error = for_driver(OutageError, foreign, "server away", retry_after=2.5)
    error.add_note("replayed 3 times")
    there = how(error)
    again = pickle.loads(there) if isinstance(there, bytes) else there
    assert isinstance(again, OutageError)
    assert isinstance(again, foreign)
    assert (str(again), again.retry_after, again.__notes__) == (
        "server away",
        2.5,
        ["replayed 3 times"],
    )


@pytest.mark.parametrize("path", FOREIGN)
def test_what_people_do_with_a_drivers_error_works_with_ours(path: str) -> None:
    """Looking at the attributes that the driver documents raises nothing."""
    error: Any = for_driver(OutageError, found(path), "server away")
    for name in (
        "sqlstate",
        "diag",
        "pgconn",
        "pgresult",
        "errno",
        "fault",
        "sqlite_errorcode",
        "detail",
    ):
        getattr(error, name, None)
    assert repr(error)
    assert error.args[0] not in (2006, 2013)


@pytest.mark.parametrize("path", [path for path in FOREIGN if "Fake" not in path])
def test_what_the_drivers_own_error_tells_ours_tells_too(path: str) -> None:
    foreign = found(path)
    theirs = foreign("no connection")
    for kind in (OutageError, PoolTimeoutError, PoolClosedError):
        ours = for_driver(kind, foreign, "no connection")
        for name, value in vars(theirs).items():
            if not hasattr(OSError, name):  # errno is OSError's there
                assert getattr(ours, name) == value, name


def test_psycopgs_diagnostics_can_be_asked_for_and_say_nothing() -> None:
    import psycopg

    error: Any = for_driver(OutageError, psycopg.OperationalError, "the server is away")
    assert error.diag.sqlstate is None
    assert error.pgconn is None
    again = pickle.loads(pickle.dumps(error))
    assert again.diag.message_primary is None


def test_the_combined_class_is_made_once() -> None:
    first, second = (for_driver(OutageError, sqlite3.OperationalError, "x") for _ in range(2))
    assert type(first) is type(second)


def test_without_a_driver_the_error_is_just_ours() -> None:
    assert type(for_driver(OutageError, None, "x")).__bases__ == (OutageError, ConnectionError)
    assert type(for_driver(PoolClosedError, None, "x")) is PoolClosedError


def test_what_is_the_drivers_already_is_not_combined_again() -> None:
    assert type(for_driver(OutageError, ConnectionError, "x")).__bases__ == (
        OutageError,
        ConnectionError,
    )
    assert type(for_driver(PoolClosedError, Exception, "x")) is PoolClosedError


def test_a_class_that_cannot_be_combined_leaves_ours() -> None:
    assert type(for_driver(OutageError, StopIteration, "x")) in (
        OutageError,
        type(for_driver(OutageError, StopIteration, "y")),
    )
    assert isinstance(for_driver(OutageError, KeyboardInterrupt, "x"), OutageError)


def test_errors_are_what_python_programmers_expect_them_to_be() -> None:
    for kind, besides in (
        (PoolTimeoutError, TimeoutError),
        (DeadlineExceeded, TimeoutError),
        (OutageError, ConnectionError),
        (ConnectRejectedError, ConnectionError),
        (CommitUnknownError, ConnectionError),
    ):
        assert isinstance(for_driver(kind, None, "x"), besides)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(DriverNotInstalledError, ImportError)
    assert asyncio.TimeoutError is TimeoutError


def test_an_outage_says_when_to_ask_again() -> None:
    assert OutageError("x").retry_after == 1.0
    assert for_driver(OutageError, sqlite3.OperationalError, "x").retry_after == 1.0
    assert (
        for_driver(OutageError, sqlite3.OperationalError, "x", retry_after=7.0).retry_after == 7.0
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda c: c.__name__)
def test_every_error_says_what_it_means(kind: type[UnbrokenError]) -> None:
    assert kind.__doc__
    assert kind.__name__ in vars(import_module("unbroken")), "it is part of the public face"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("psycopg.OperationalError", "diag pgconn pgresult sqlstate"),
        ("mysql.connector.OperationalError", "errno msg sqlstate"),
    ],
)
def test_what_a_drivers_error_always_has_ours_has_too(path: str, names: str) -> None:
    module, _, name = path.rpartition(".")
    foreign = getattr(pytest.importorskip(module), name)
    error: Any = for_driver(OutageError, foreign, "server away", retry_after=2.5)
    for each in (error, pickle.loads(pickle.dumps(error))):
        for attribute in names.split():
            getattr(each, attribute)
        assert str(each) == "server away"
        assert each.retry_after == 2.5
    if "psycopg" in path:
        assert error.diag.sqlstate is None
