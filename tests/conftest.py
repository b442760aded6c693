"""Servers for all tests: shared ones, and fresh ones for tests that stop or kill."""

from __future__ import annotations

import ast
import gc
import logging
import os
import re
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from unbroken import DriverNotInstalledError, logs
from unbroken.brain.budget import Budget
from unbroken.pool import crowd, servers
from unbroken_drill.servers import MariaDB, MongoDB, MySQL, PostgreSQL

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background job; the programs that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.version_info < (3, 12):
    # These versions count the depth of all parsers of a process together, so two threads that parse
    # at the same moment get a SystemError (CPython's issue 106905). Tracebacks of log lines are
    # parsed on any thread. pytest parses the source of a failed test, and such an error ended the
    # whole run.
    _parser, _parse = threading.RLock(), ast.parse

    def _one_at_a_time(*args: Any, **kwargs: Any) -> Any:
        with _parser:
            return _parse(*args, **kwargs)

    ast.parse = _one_at_a_time

# A slow machine is no finding, and coverage slows every example down. pytest's timeout stays.
hypothesis.settings.register_profile("unbroken", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("unbroken")

#: What tests call a library that has not been released for free-threaded Pythons, or would bring
#: the lock back: by its module.
_LIBRARIES = {
    "mysqldb": "MySQLdb", "mysqlclient": "MySQLdb", "mariadbconnector": "mariadb",
    "psycopg2": "psycopg2", "asyncpg": "asyncpg", "asyncmy": "asyncmy", "uvloop": "uvloop",
    "gevent": "gevent", "uwsgi": "uwsgi",
}  # fmt: skip
_FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
_MISSING = {name for name, module in _LIBRARIES.items() if _FREE and find_spec(module) is None}


def pytest_report_header() -> str | None:
    """On a free-threaded Python only: what is not run."""
    return f"free-threaded, without {', '.join(sorted(_MISSING))}" if _MISSING else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was to be tested without the interpreter's lock must have been: a module that needs it
    brings it back.
    """
    if _FREE and sys._is_gil_enabled():  # type: ignore[attr-defined] # from Python 3.13 on
        print("\nthe interpreter's lock was brought back by a module that was imported")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def sessions_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pool asks its server how many sessions it has.

    Upkeep does that once a minute on an idle connection. Exact counts of round trips must not
    contain it.
    """
    monkeypatch.setattr(crowd, "_is_wanted", lambda *_: False)


@pytest.fixture(autouse=True)
def _nothing_was_logged_before() -> None:
    """Each test sees the lines that its own events log, whatever the test before it logged."""
    logs.forget()
    for part in ("", *(f".{name}" for name in logs.PARTS)):
        logger = logging.getLogger(f"unbroken{part}")
        if logger.level or logger.disabled:  # an example of the docs sets them
            logger.setLevel(logging.NOTSET)
            logger.disabled = False


@pytest.fixture(autouse=True)
def _no_replay_was_paid_for_before() -> None:
    """Tests lose connections all the time, of servers that all of them share."""
    for record in list(servers._records.values()):
        record.budget = Budget()


@contextmanager
def _without_what_is_missing() -> Iterator[None]:
    """A driver that is not released for free-threaded Pythons fails no test there."""
    try:
        yield
    except (DriverNotInstalledError, ModuleNotFoundError) as error:
        missing = {*_MISSING, *(_LIBRARIES[name] for name in _MISSING)}
        if not missing & set(re.findall(r"\w+", str(error))):
            raise
        pytest.skip(f"not released for free-threaded Pythons: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """See above."""
    with _without_what_is_missing():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """See above."""
    with _without_what_is_missing():
        return (yield)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Files that are about such a library."""
    about = {
        "test_gevent.py": "gevent", "test_async_loops.py": "uvloop",
        "test_async_storm.py": "uvloop",
    }  # fmt: skip
    return about.get(collection_path.name) in _MISSING or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of tests are made and stay until the end: no collection of garbage looks at them,
    neither now nor while they run. Pools and tests collect often.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_unconfigure() -> None:
    """The end of the interpreter is as usual."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that have the name of such a library in their own, or are given it."""
    names = [
        {
            *item.name.partition("[")[0].split("_"),
            *item.name.partition("[")[2].rstrip("]").split("-"),
        }
        for item in items
    ]
    left_out = [item for item, words in zip(items, names, strict=True) if _MISSING & words]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n 2``: see order.py. Another ``--dist`` than the usual one is left to xdist."""
    if config.getvalue("dist") != "load":
        return None
    from .order import Order

    return Order(config, log)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """One MariaDB for the whole run: change its settings only with ``temporarily``, and leave no
    table behind.
    """
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[MySQL]:
    """One MySQL for the whole run, likewise."""
    with MySQL() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """One PostgreSQL for the whole run: change its settings only with ``temporarily``, and leave no
    table behind.
    """
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def mongodb() -> Iterator[MongoDB]:
    """One MongoDB for the whole run: use a database of your own, and drop it."""
    with MongoDB() as server:
        yield server


@pytest.fixture
def new_mariadb() -> Iterator[Callable[..., MariaDB]]:
    """Makes started MariaDB servers that are this test's own: ``new_mariadb({"wait_timeout":
    2})``.
    """
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(MariaDB(*args, **kwargs))


@pytest.fixture
def new_postgres() -> Iterator[Callable[..., PostgreSQL]]:
    """Makes started PostgreSQL servers that are this test's own: ``new_postgres({"max_connections":
    20})``.
    """
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(PostgreSQL(*args, **kwargs))


def _sockets() -> set[str]:
    """The names of this process's sockets."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


def _hung_up() -> set[str]:
    """The names of TCP sockets whose other side has closed."""
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with suppress(OSError), open(table) as lines:
            rows = [line.split() for line in lines][1:]
            found |= {f"socket:[{row[9]}]" for row in rows if row[3] == "08"}
    return found


@pytest.fixture
def in_close_wait() -> Callable[[], int]:
    """How many of this test's sockets the other side has closed and we have not.

    Those that an earlier test left to the collector, of an event loop that has ended, do not count.
    """
    before = _sockets()
    return lambda: len(_hung_up() & _sockets() - before)
