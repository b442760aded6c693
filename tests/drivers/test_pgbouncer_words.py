"""PgBouncer's refusals, provoked on a real one, mean the same through every driver: at the login
and in use.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from unbroken.abc import Cause, FaultKind
from unbroken.drivers import open_driver
from unbroken.ledger import scope, unit
from unbroken.ledger.verdicts import Fate
from unbroken_drill.servers import PgBouncer, PostgreSQL

from .conftest import POSTGRESQL, Face

K = FaultKind
OPTIONS = {
    "default_pool_size": 1, "max_client_conn": 20, "server_login_retry": 1,
    "client_login_timeout": 3, "log_connections": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as made:
        yield made


@pytest.fixture(scope="module")
def bouncer(server: PostgreSQL) -> Iterator[PgBouncer]:
    with PgBouncer(server, "transaction", OPTIONS) as made:
        yield made


@pytest.fixture(params=POSTGRESQL)
def face(request: pytest.FixtureRequest, bouncer: PgBouncer) -> Iterator[Face]:
    """A driver in front of a PgBouncer with one session."""
    if not bouncer.server.is_running:
        bouncer.server.start()
    with asyncio.Runner() as runner:
        made = Face(request.param, bouncer, runner)
        # it may still remember a failed login to the server
        deadline = time.monotonic() + 20
        while True:
            try:
                conn = made.connect()
                made.execute(conn, "SELECT 1")
                break
            except Exception:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        made.driver.close(conn)
        yield made
        made.close()


def connecting(face: Face, driver: Any = None) -> Any:
    return face.fault(lambda: face.connect(driver=driver))


def executing(face: Face, conn: Any, sql: str = "SELECT 1") -> Any:
    fault = face.fault(lambda: face.execute(conn, sql))
    return face.driver.told(conn) or fault


# -- at the login ----------------------------------------------------------------------------------


def test_a_client_too_many(face: Face, bouncer: PgBouncer) -> None:
    with bouncer.temporarily(max_client_conn=1):
        with suppress(Exception):
            face.connect()
        fault = connecting(face)
    assert (fault.kind, "max_client_conn" in fault.text) == (K.TOO_MANY, True)


def test_a_wrong_password_and_unknown_names(face: Face, bouncer: PgBouncer) -> None:
    right = face.url()
    for wrong in (
        right.replace(f":{bouncer.password}@", ":hunter2-planted@"),
        right.replace(f"//{bouncer.user}:", "//nobody_known:"),
        right.replace(f"/{bouncer.database}", "/no_such_database"),
    ):
        driver = face.make(wrong)
        fault = face.fault(lambda driver=driver: face.connect(driver=driver), driver)
        assert fault.kind is K.REJECTED, fault
        assert "hunter2-planted" not in fault.text


def test_a_startup_parameter_that_it_does_not_know(face: Face) -> None:
    driver = face.make(face.url(options="-c work_mem=1MB"))
    fault = face.fault(lambda: face.connect(driver=driver), driver)
    assert (fault.kind, "unsupported startup parameter" in fault.text) == (K.REJECTED, True)


def test_a_database_that_was_disabled(face: Face, bouncer: PgBouncer) -> None:
    with told(bouncer, f"DISABLE {bouncer.database}", f"ENABLE {bouncer.database}"):
        fault = connecting(face)
    assert (fault.kind, "is disabled" in fault.text) == (K.NOT_READY, True)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "pg8000"])
def test_a_client_without_tls(driver: str, server: PostgreSQL) -> None:
    with ExitStack() as stack:
        try:
            tls = stack.enter_context(
                PgBouncer(server, options={"client_tls_sslmode": "require"}, tls=True)
            )
        except Exception as missing:
            pytest.skip(f"this pgbouncer has no TLS: {missing}")
        face = Face(driver, tls, stack.enter_context(asyncio.Runner()))
        plain = face.make(face.url(sslmode="disable"))
        fault = face.fault(lambda: face.connect(driver=plain), plain)
        assert (fault.kind, "SSL required" in fault.text) == (K.REJECTED, True), fault


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async"])
def test_several_answers_to_a_command_of_psycopgs_own_are_a_loss(
    name: str, bouncer: PgBouncer
) -> None:
    """An error, and another one for the hang-up behind it: psycopg shows neither."""
    import psycopg

    driver = open_driver(bouncer.url("psycopg"), is_async=name == "psycopg_async")
    several = psycopg.InternalError("received 2 results from command 'BEGIN'")
    assert driver.classify(several).kind is K.LOST
    assert driver.classify(psycopg.InternalError("something else")).kind is K.OTHER


# -- in use ----------------------------------------------------------------------------------------


@contextmanager
def told(bouncer: PgBouncer, before: str, after: str) -> Iterator[None]:
    bouncer.admin(before)
    try:
        yield
    finally:
        bouncer.admin(after)


def test_no_session_became_free_in_time(face: Face, bouncer: PgBouncer) -> None:
    with bouncer.temporarily(query_wait_timeout=1):
        holder, waiter = face.connect(), face.connect()
        face.call("begin", holder)
        face.execute(holder, "SELECT 1")
        fault = executing(face, waiter)
        face.call("rollback", holder)
    assert (fault.kind, "query_wait_timeout" in fault.text) == (K.TOO_MANY, True)
    assert fault.is_lost


@pytest.mark.parametrize(
    ("options", "sql", "cause"),
    [
        ({"client_idle_timeout": 1}, None, Cause.IDLE_LIMIT),
        ({"idle_transaction_timeout": 1}, "SELECT 1", Cause.TRANSACTION_LIMIT),
        ({"query_timeout": 1}, "SELECT pg_sleep(20)", None),
    ],
    ids=["client_idle_timeout", "idle_transaction_timeout", "query_timeout"],
)
def test_a_time_limit_of_its_own(
    face: Face, bouncer: PgBouncer, options: dict[str, int], sql: str | None, cause: Cause | None
) -> None:
    with bouncer.temporarily(**options):
        conn = face.connect()
        if sql is not None:
            face.call("begin", conn)
            with suppress(Exception):
                first = face.fault(lambda: face.execute(conn, sql))
                assert (first.kind, first.cause) in ((K.LOST, cause), (K.LOST, None)), first
                return
        fault = eventually(lambda: executing(face, conn))
    assert fault.is_lost, fault
    assert fault.cause in (cause, None, Cause.CLOSED_BY_PEER, Cause.CONNECTION_RESET), fault


def eventually(action: Callable[[], Any]) -> Any:
    """The Fault of *action* once it fails; it is not called again while it might be in time."""
    time.sleep(2.5)  # PgBouncer looks at its clients three times a second
    return action()


def test_its_clients_are_killed(face: Face, bouncer: PgBouncer) -> None:
    conn = face.connect()
    face.call("begin", conn)
    face.execute(conn, "SELECT 1")
    bouncer.kill_sessions()
    fault = executing(face, conn)
    assert fault.kind is K.LOST, fault


def test_its_server_is_gone(face: Face, bouncer: PgBouncer) -> None:
    with bouncer.temporarily(query_wait_timeout=1):
        busy = face.connect()
        face.call("begin", busy)
        face.execute(busy, "SELECT 1")
        bouncer.server.stop()
        assert executing(face, busy).kind is K.LOST
        deadline = time.monotonic() + 10
        seen = refused(face)
        while seen.kind is not K.NOT_READY:  # the first waits for PgBouncer's own login
            assert seen.kind in (K.TOO_MANY, K.LOST)
            assert time.monotonic() < deadline
            seen = refused(face)
        assert "server login has been failing" in seen.text
    bouncer.server.start()


def refused(face: Face) -> Any:
    """What a client is told that comes while the server is away."""
    try:
        conn = face.connect()
    except Exception as error:
        return face.driver.classify(error)
    return executing(face, conn)


def test_a_write_that_was_given_to_no_server_is_known_to_be_not_stored(
    face: Face, bouncer: PgBouncer
) -> None:
    if face.name == "psycopg2":
        pytest.skip("it hides the words from the one who executes")
    with bouncer.temporarily(query_wait_timeout=1):
        holder, writer = face.connect(), face.connect()
        face.call("begin", holder)
        face.execute(holder, "SELECT 1")
        face.autocommit(writer, True)
        ledger = unit.Unit(observing=True)
        token = scope.enter(ledger)
        try:
            ledger.join(id(writer))
            face.driver.watch(writer)
            fault = executing(face, writer, "INSERT INTO entries VALUES (1)")
        finally:
            scope.leave(token)
        face.call("rollback", holder)
    assert fault.kind is K.TOO_MANY
    assert ledger.fate() is Fate.NOTHING
