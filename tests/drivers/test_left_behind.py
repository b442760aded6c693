"""A connection whose holder left something half read, or closed it, is known for what it is, and
nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from unbroken import Pool
from unbroken.drivers import _mysql_exchange
from unbroken.net import fork_guard

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
            copy = conn.cursor().copy(
                "COPY (SELECT n FROM generate_series(1, 100000) AS n) TO STDOUT"
            )
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
def test_what_was_left_half_read_is_neither_quiet_nor_waited_for(
    faces: Any, postgres: Any, name: str, leave: Any
) -> None:
    face = faces(name, postgres)
    conn = face.connect()
    traits = face.driver.traits(conn)
    kept = leave(face, conn)
    assert not face.driver.is_quiet(conn)
    assert not face.driver.is_clean(conn, traits)
    for method, more in (
        ("commit", ()),
        ("rollback", ()),
        ("ping", (1.0,)),
        ("restore", (traits,)),
    ):
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


CLOSES = [(name, _close) for name in ("psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000")] + [  # noqa: E501
    ("psycopg", _with), ("psycopg_async", _with), ("pg8000", _with),
    ("asyncpg", lambda _face, conn: conn.terminate()),
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
    for method, more in (
        ("commit", ()),
        ("rollback", ()),
        ("ping", (1.0,)),
        ("restore", (traits,)),
        ("idle_limit", ()),
        ("begin", ()),
    ):
        fault = face.fault(lambda method=method, more=more: face.call(method, conn, *more))
        assert fault.is_lost, (method, fault)
    driver.unwatch(conn)
    driver.close(conn)


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"])
def test_a_connection_that_was_lost_and_closed_afterwards_was_not_closed_by_its_holder(
    faces: Any, postgres: Any, name: str
) -> None:
    face = faces(name, postgres)
    conn = face.connect()
    postgres.kill_sessions()
    with contextlib.suppress(*face.driver.errors):
        face.execute(conn, "SELECT 1")
    with contextlib.suppress(*face.driver.errors):
        face.run(conn.close())
    assert not face.driver.was_closed(conn)


@pytest.mark.parametrize(("name", "leave"), CASES)
def test_a_holder_that_would_wait_for_itself_is_told_so(
    faces: Any, postgres: Any, name: str, leave: Any
) -> None:
    face = faces(name, postgres)
    conn = face.connect()
    kept = leave(face, conn)
    for action in (
        lambda: face.execute(conn, "SELECT 1"),
        lambda: face.run(conn.commit()),
        lambda: face.run(conn.rollback()),
    ):
        assert face.fault(action).is_lost
    face.driver.close(conn)
    del kept


def test_a_thread_that_waits_for_anothers_half_read_result_ends_with_the_socket(
    faces: Any, postgres: Any
) -> None:
    face = faces("psycopg", postgres)
    conn = face.connect()
    kept, errors = _stream(face, conn), []

    def wait() -> None:
        try:
            conn.execute("SELECT 1")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    fd = face.driver.fileno(conn)
    fork_guard.abort(fd, fork_guard.identity(fd))  # as a deadline does
    thread.join(10)
    assert not thread.is_alive()
    assert face.driver.classify(errors[0]).is_lost
    del kept


def test_threads_that_share_a_connection_wait_for_each_other_as_ever(
    faces: Any, postgres: Any
) -> None:
    face = faces("psycopg", postgres)
    conn = face.connect()
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(
                conn.execute(f"SELECT {n} FROM pg_sleep(0.02)").fetchone()[0]
            )
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == list(range(8))


def test_tasks_that_share_a_connection_wait_for_each_other_as_ever(
    faces: Any, postgres: Any
) -> None:
    face = faces("psycopg_async", postgres)
    conn = face.connect()

    async def ask(n: int) -> int:
        cursor = await conn.execute(f"SELECT {n} FROM pg_sleep(0.02)")
        return int((await cursor.fetchone())[0])

    async def all_of_them() -> list[int]:
        return list(await asyncio.gather(*map(ask, range(8))))

    assert face.run(all_of_them()) == list(range(8))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_pool_takes_back_a_half_read_stream_at_once(
    postgres: Any, error: type[BaseException]
) -> None:
    with Pool(postgres.url("psycopg"), max_size=1) as pool:
        with pytest.raises(error), pool.connection(deadline=30) as conn:
            rows = conn.cursor().stream(ROWS)
            next(rows)
            raise error
        with pool.connection(timeout=5) as another:
            assert another is not conn
            assert another.execute("SELECT 5").fetchone() == (5,)
        del rows


@pytest.fixture(params=["aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg"])
def outlived(request: pytest.FixtureRequest, faces: Any) -> tuple[Any, list[Any], str]:
    """A driver, a connection whose event loop was closed without it, and its number."""
    kind = "postgres" if request.param in ("psycopg_async", "asyncpg") else "mariadb"
    face = faces(request.param, request.getfixturevalue(kind))

    async def connect() -> tuple[Any, str]:
        conn = await face.driver.connect(5.0)
        return conn, face.driver.session_id(conn)

    conn, number = asyncio.run(connect())
    return face, [conn], number


def is_on(server: Any, number: str) -> bool:
    return int(number) in {session.id for session in server.sessions()}


def test_a_connection_that_outlived_its_loop_is_collected_without_a_word(
    outlived: tuple[Any, list[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it is said within whatever runs when the collector comes by."""
    face, conns, number = outlived
    said: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", said.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        conns.clear()
        gc.collect()
    assert said == []
    until(lambda: not is_on(face.server, number))


def test_a_connection_that_outlived_its_loop_is_closed_at_once(
    outlived: tuple[Any, list[Any], str],
) -> None:
    face, (conn,), number = outlived
    assert is_on(face.server, number)
    face.driver.close(conn)
    face.driver.close(conn)
    until(lambda: not is_on(face.server, number))


@pytest.mark.parametrize("name", ["pymysql", "aiomysql", "asyncmy"])
def test_an_answer_to_a_file_whose_sending_was_struck_is_not_waited_for(
    faces: Any, mariadb: Any, name: str
) -> None:
    """The libraries read it before they let the error go on; the server waits for the file."""
    face = faces(name, mariadb)
    conn = face.connect()
    with pytest.raises(face.driver.errors[0], match="out of sync"), _mysql_exchange.loading(conn):
        try:
            raise RuntimeError("struck")
        except RuntimeError:
            face.run(conn.read_packet() if name == "asyncmy" else conn._read_packet())
    assert face.execute(conn, "SELECT 7") == [(7,)]


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.005)
