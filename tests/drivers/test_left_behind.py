"""A connection whose holder left something half read, or closed it, is known for what it is, and nothing waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

ROWS = "SELECT n FROM generate_series(1, 100000) AS n"


def _stream(face: Any, conn: Any) -> Any:
    """psycopg's ``stream()`` after its first row, kept in a variable."""
    if not face.is_async:
        rows = conn.cursor().stream(ROWS)
        next(rows)
        return rows
    rows = conn.cursor().stream(ROWS)
    face.run(rows.__anext__())
    return rows


def _notifies(face: Any, conn: Any) -> Any:
    """psycopg's ``notifies()`` after its first notification."""
    face.execute(conn, "LISTEN half_read")
    face.call("commit", conn)
    face.server.admin("NOTIFY half_read")
    found = conn.notifies(timeout=5)
    face.run(found.__anext__()) if face.is_async else next(found)
    return found


def _copy(face: Any, conn: Any) -> Any:
    """A COPY that was not read to its end, or not written to it."""
    if face.is_async:

        async def begin() -> Any:
            copy = conn.cursor().copy("COPY (SELECT n FROM generate_series(1, 100000) AS n) TO STDOUT")
            inside = await copy.__aenter__()
            await inside.read()
            return copy

        return face.run(begin())
    copy = conn.cursor().copy("COPY (SELECT n FROM generate_series(1, 100000) AS n) TO STDOUT")
    copy.__enter__().read()
    return copy


CASES: list[tuple[str, Callable[[Any, Any], Any]]] = [
    (name, case) for name in ("psycopg", "psycopg_async") for case in (_stream, _notifies, _copy)
]


@pytest.mark.parametrize(("name", "leave"), CASES)
def test_what_was_left_half_read_is_neither_quiet_nor_waited_for(faces: Any, postgres: Any, name: str, leave: Any) -> None:
    face = faces(name, postgres)
    conn = face.connect()
    traits = face.driver.traits(conn)
    kept = leave(face, conn)
    assert not face.driver.is_quiet(conn)
    assert not face.driver.is_clean(conn, traits)
    for method, more in (("commit", ()), ("rollback", ()), ("ping", (1.0,)), ("restore", (traits,))):
        fault = face.fault(lambda method=method, more=more: face.call(method, conn, *more))
        assert fault.is_lost, method
    face.driver.close(conn)
    del kept


def _close(face: Any, conn: Any) -> None:
    face.run(conn.close())


def _with(face: Any, conn: Any) -> None:
    if not face.is_async:
        with conn:
            pass
        return

    async def leave() -> None:
        async with conn:
            pass

    face.run(leave())


CLOSES = [(name, _close) for name in ("psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000")] + [
    ("psycopg", _with), ("psycopg_async", _with), ("pg8000", _with), ("asyncpg", lambda _face, conn: conn.terminate()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "close"), CLOSES)
def test_a_connection_that_its_holder_closed_is_told_from_a_lost_one_and_fails_as_such(
    faces: Any, postgres: Any, name: str, close: Any
) -> None:
    face = faces(name, postgres)
    driver, conn = face.driver, face.connect()
    traits = driver.traits(conn)
    assert not driver.was_closed(conn)
    close(face, conn)
    assert driver.was_closed(conn)
    assert driver.fileno(conn) is None
    assert not driver.is_quiet(conn)
    assert not driver.is_clean(conn, traits)
    assert driver.is_in_transaction(conn) is None
    driver.watch(conn)
    for method, more in (("commit", ()), ("rollback", ()), ("ping", (1.0,)), ("restore", (traits,)), ("idle_limit", ()), ("begin", ())):
        fault = face.fault(lambda method=method, more=more: face.call(method, conn, *more))
        assert fault.is_lost, (method, fault)
    driver.unwatch(conn)
    driver.close(conn)


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"])
def test_a_connection_that_was_lost_and_closed_afterwards_was_not_closed_by_its_holder(faces: Any, postgres: Any, name: str) -> None:
    face = faces(name, postgres)
    conn = face.connect()
    postgres.kill_sessions()
    with contextlib.suppress(*face.driver.errors):
        face.execute(conn, "SELECT 1")
    with contextlib.suppress(*face.driver.errors):
        face.run(conn.close())
    assert not face.driver.was_closed(conn)
