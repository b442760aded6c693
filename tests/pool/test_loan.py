"""What happens to a connection while a caller has it: only one that is known to be good goes back
to the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import unbroken
from unbroken import ClosedByHolderError, ConnectionLostError, DeadlineExceeded
from unbroken.ledger.verdicts import Fate
from unbroken.pool import acquire as acquiring


class TimeLimit(Exception):  # noqa: N818 - a limit is what it is
    """What a signal handler or a worker's time limit raises."""


class Stop(BaseException):
    """The same, from one that derives from BaseException."""


STRIKES = [TimeLimit, Stop, TimeoutError, OSError]


def strike_on(function: str, error: type[BaseException], event: str = "call") -> Callable[..., Any]:
    """A trace function that raises *error* at the next *event* of a function of that name."""

    def trace(frame: Any, happens: str, _arg: Any) -> Any:
        if happens == event and frame.f_code.co_name == function:
            sys.settrace(None)
            raise error
        return trace

    return trace


@contextlib.contextmanager
def struck(function: str, error: type[BaseException], event: str = "call") -> Any:
    """Inside, *error* is raised once at *event* of *function*; what comes out of the block is let
    through.
    """
    sys.settrace(strike_on(function, error, event))
    try:
        yield
    finally:
        sys.settrace(None)


@pytest.fixture
def pool(faces: Any, mariadb: Any) -> unbroken.Pool:
    pool: unbroken.Pool = faces("pymysql", mariadb).pool(max_size=1)
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS loan (n INT)")
        cursor.execute("DELETE FROM loan")
    return pool


def ask(conn: Any, sql: str) -> Any:
    with contextlib.closing(conn.cursor()) as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else None


def answers_are_in_step(pool: unbroken.Pool) -> bool:
    for number in range(3):
        with pool.connection() as conn:
            if ask(conn, f"SELECT {number}") != ((number,),):
                return False
    return True


# -- an exchange that is not known to have ended ---------------------------------------------------


@pytest.mark.parametrize("error", STRIKES, ids=lambda kind: kind.__name__)
def test_a_statement_whose_answer_was_not_read_ends_its_connection(
    pool: unbroken.Pool, error: type[BaseException]
) -> None:
    with pytest.raises(error), pool.connection() as conn, struck("_read_query_result", error):
        ask(conn, "INSERT INTO loan VALUES (1)")
    assert answers_are_in_step(pool)
    assert pool.run(ask, "SELECT COUNT(*) FROM loan") == ((0,),)


@pytest.mark.parametrize("error", STRIKES, ids=lambda kind: kind.__name__)
def test_a_strike_that_the_application_swallows_is_no_commit(
    pool: unbroken.Pool, error: type[BaseException]
) -> None:
    with (
        pytest.raises(ConnectionLostError, match="the pool sent no COMMIT") as caught,
        pool.connection() as conn,
    ):
        ask(conn, "INSERT INTO loan VALUES (1)")
        with contextlib.suppress(error), struck("_read_query_result", error):
            ask(conn, "UPDATE loan SET n = 2")
    assert "the open transaction is not stored" in str(caught.value)
    # true of such tables, too, which no ROLLBACK concerns
    assert "without transactions (MyISAM" in str(caught.value)
    assert answers_are_in_step(pool)
    assert pool.run(ask, "SELECT COUNT(*) FROM loan") == ((0,),)


def test_a_connection_that_is_out_of_step_does_not_go_back_whatever_reset_says(
    faces: Any, mariadb: Any
) -> None:
    pool = faces("pymysql", mariadb).pool(max_size=1, reset=None)
    conn = pool.acquire()
    with pytest.raises(TimeLimit), struck("_read_query_result", TimeLimit):
        ask(conn, "SELECT 1")
    pool.release(conn)
    assert answers_are_in_step(pool)
    assert pool.stats().closed == {"cancelled": 1}


def test_a_reset_of_the_applications_own_is_not_asked_about_a_broken_exchange(
    faces: Any, mariadb: Any
) -> None:
    seen: list[Any] = []
    pool = faces("pymysql", mariadb).pool(max_size=1, reset=seen.append)
    with pytest.raises(Stop), pool.connection() as conn, struck("_read_query_result", Stop):
        ask(conn, "SELECT 1")
    assert not seen
    assert answers_are_in_step(pool)


# -- what a holder leaves behind -------------------------------------------------------------------


def test_a_half_read_result_is_read_to_its_end_before_the_commit(pool: unbroken.Pool) -> None:
    from pymysql.cursors import SSCursor

    with pool.connection() as conn:
        ask(conn, "INSERT INTO loan VALUES (1)")
        cursor = conn.cursor(SSCursor)
        cursor.execute("SELECT seq FROM seq_1_to_5000")
        cursor.fetchone()
    del cursor
    assert pool.run(ask, "SELECT COUNT(*) FROM loan") == ((1,),)
    assert pool.stats().closed == {}


def test_autocommit_that_a_holder_left_on_does_not_reach_the_next(face: Any) -> None:
    pool, table = face.pool(max_size=1), face.table()
    with pool.connection() as conn:
        switch = conn.autocommit
        if callable(switch):
            switch(True)
        else:
            conn.autocommit = True
    with pytest.raises(TimeLimit), pool.connection() as conn:
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        raise TimeLimit
    with pool.connection() as conn:
        assert face.ask(conn, f"SELECT COUNT(*) FROM {table}") == 0


def test_what_the_holder_closed_is_a_cause_of_its_own_and_no_lost_connection(face: Any) -> None:
    pool = face.pool(max_size=1)
    with (
        pytest.raises(
            ClosedByHolderError,
            match="a transaction that this code committed is stored if its COMMIT was answered",
        ),
        pool.connection() as conn,
    ):
        face.do(conn, "SELECT 1")
        conn.close()
    held = pool.acquire()
    held.close()
    pool.release(held)
    assert pool.stats().closed == {"closed by its holder": 2}
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_work_that_closes_its_connection_is_run_once(face: Any) -> None:
    pool, runs = face.pool(), []

    def work(conn: Any) -> None:
        runs.append(conn)
        conn.close()
        face.do(conn, "SELECT 1")

    with pytest.raises(Exception, match=r".+"):
        pool.run(work)
    assert len(runs) == 1


# -- words -----------------------------------------------------------------------------------------


def test_a_deadline_says_what_the_ledger_knows(face: Any) -> None:
    pool, table = face.pool(), face.table()
    with (
        pytest.raises(DeadlineExceeded, match="nothing is stored") as nothing,
        pool.connection(deadline=0.3) as conn,
    ):
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        face.sleep(conn, 5)
    assert nothing.value.fate is Fate.NOTHING
    with (
        pytest.raises(DeadlineExceeded, match="its earlier commits are stored") as stored,
        pool.connection(deadline=0.3) as conn,
    ):
        face.do(conn, f"INSERT INTO {table} VALUES (2)")
        conn.commit()
        face.sleep(conn, 5)
    assert stored.value.fate is Fate.STORED
    with pool.connection() as conn:
        assert [row[0] for row in face.do(conn, f"SELECT n FROM {table}")] == [2]


# -- places ----------------------------------------------------------------------------------------


def all_places_are_there(pool: unbroken.Pool, size: int) -> bool:
    conns = [pool.acquire(timeout=1.0) for _ in range(size)]
    for conn in conns:
        pool.release(conn)
    return pool.stats().idle == pool.stats().size == size


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("way", ["with", "acquire and release"])
def test_a_strike_at_any_line_of_taking_and_giving_back_loses_no_place(
    faces: Any, mariadb: Any, size: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, collected = [""], list[str]()
    monkeypatch.setattr(acquiring, "_collect", lambda _state: collected.append(where[0]))
    pool = faces("pymysql", mariadb).pool(max_size=size)
    kept: list[
        BaseException
    ] = []  # a caller may keep its traceback, and so every variable on the way

    def job() -> None:
        if way == "with":
            with pool.connection():
                pass
        else:
            pool.release(pool.acquire())

    job()
    lines = [0]

    def count(frame: Any, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        if event == "return":
            return count  # no signal is noticed there
        lines[0] += 1
        if lines[0] == target:
            sys.settrace(None)
            where[:] = [frame.f_code.co_qualname]
            raise Stop
        return count

    target, points = 0, 0
    sys.settrace(count)
    job()
    sys.settrace(None)
    points, target = lines[0], 1
    assert points > 10
    while target <= points:
        lines[0] = 0
        sys.settrace(count)
        try:
            job()
        except Stop as struck_by:
            if where[0] not in ("Lease.__exit__", "Pool.release"):
                # at their first line the caller has the connection still
                kept.append(struck_by)
        finally:
            sys.settrace(None)
        assert all_places_are_there(pool, size), f"point {target} of {points}, {where[0]}"
        kept.clear()
        target += 1
    assert collected == []  # a place comes back without a collection, which may take a second


_OURS = unbroken.__path__[0]


def test_a_copy_of_a_pool_is_the_pool(pool: unbroken.Pool) -> None:
    held: dict[str, Any] = {"pool": pool}
    assert copy.copy(pool) is pool
    assert copy.deepcopy(held)["pool"] is pool
    gc.collect()
    assert answers_are_in_step(pool)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(pool)


# -- asyncio ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy", "mysqlconnector", "psycopg", "asyncpg"])
def test_a_foreign_error_in_the_middle_of_an_answer_reaches_no_other_task(
    driver: str, mariadb: Any, postgres: Any
) -> None:
    server = postgres if driver in ("psycopg", "asyncpg") else mariadb

    async def ask_async(conn: Any, number: int) -> Any:
        if driver == "asyncpg":
            return await conn.fetchval(f"SELECT {number}")
        cursor = conn.cursor()
        cursor = await cursor if asyncio.iscoroutine(cursor) else cursor
        await cursor.execute(f"SELECT {number}")
        row = await cursor.fetchone()
        await cursor.close()
        return row[0]

    async def main() -> None:
        scheme = {"mysqlconnector": "mysql+mysqlconnector"}.get(driver, driver)
        async with unbroken.AsyncPool(
            server.url(driver) if scheme == driver else server.url("mysqlconnector"), max_size=1
        ) as pool:
            for at in range(1, 40):
                steps = 0

                async def job() -> None:
                    async with pool.connection() as conn:
                        await ask_async(conn, 1)

                coroutine, thrown = job(), False
                until = time.monotonic() + 10
                waits: Any = None
                while time.monotonic() < until:
                    steps += 1
                    try:
                        if steps == at:
                            thrown = True
                            coroutine.throw(TimeLimit())
                        waits = coroutine.send(None)
                    except (StopIteration, TimeLimit):
                        break
                    if waits is not None:
                        waits._asyncio_future_blocking = False
                        await asyncio.wait([waits], timeout=5)
                    else:
                        await asyncio.sleep(0)
                for number in (7, 8):
                    async with pool.connection() as conn:
                        assert await ask_async(conn, number) == number
                if not thrown:
                    return

    asyncio.run(main())
