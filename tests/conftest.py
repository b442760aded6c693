"""Servers for all tests: shared ones, and fresh ones for tests that stop or kill."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from unbroken.testing.servers import MariaDB, MongoDB, MySQL, PostgreSQL

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the programs that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """One MariaDB for the whole run: change its settings only with ``temporarily``, and leave no table behind."""
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[MySQL]:
    """One MySQL for the whole run, likewise."""
    with MySQL() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """One PostgreSQL for the whole run: change its settings only with ``temporarily``, and leave no table behind."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def mongodb() -> Iterator[MongoDB]:
    """One MongoDB for the whole run: use a database of your own, and drop it."""
    with MongoDB() as server:
        yield server


@pytest.fixture
def new_mariadb() -> Iterator[Callable[..., MariaDB]]:
    """Makes started MariaDB servers that are this test's own: ``new_mariadb({"wait_timeout": 2})``."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(MariaDB(*args, **kwargs))


@pytest.fixture
def new_postgres() -> Iterator[Callable[..., PostgreSQL]]:
    """Makes started PostgreSQL servers that are this test's own: ``new_postgres({"max_connections": 20})``."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(PostgreSQL(*args, **kwargs))
