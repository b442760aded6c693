"""A connection whose holder left something half read is not quiet, and nothing waits for it or takes the rest for its answer."""

from __future__ import annotations

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
    face.execute(conn, "NOTIFY half_read")
    face.call("commit", conn)
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
