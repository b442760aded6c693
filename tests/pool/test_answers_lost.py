"""What may happen to a connection while the answer to its last COMMIT or ROLLBACK is due: nobody
gets another's answer, with each driver that leaves it for later, on real servers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

import unbroken
from unbroken_drill.servers import MySQL

from .answering import relay_to
from .conftest import wait_until
from .due import FAR, Bench


def test_a_session_that_is_killed_while_due_is_lent_to_nobody(bench: Bench) -> None:
    pool = bench.pool()
    for _ in range(5):
        session = bench.due(pool)
        assert bench.server.kill_sessions() >= 1
        bench.rest(0.02)
        assert bench.answers_its_own(pool) != session


def test_a_unit_of_work_whose_first_statement_meets_a_kill_runs_again(bench: Bench) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()))
    session = bench.due(pool)
    proxy.latency(FAR)
    bench.use(pool)
    bench.server.kill_sessions()  # what tells of it is on its way

    async def awaited(conn: Any) -> Any:
        return (await bench._do(conn, "SELECT CONNECTION_ID()"))[0][0]

    found = bench.wait(pool.run(awaited if bench.is_async else bench.me))
    assert int(found) != session


def test_a_server_that_is_frozen_while_due_costs_one_ping_timeout(bench: Bench) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()), ping_timeout=0.3)
    session = bench.due(pool)
    proxy.latency(FAR)
    bench.use(pool)
    proxy.blackhole("hold")
    bench.rest(0.3)
    begun = time.monotonic()
    with pytest.raises(unbroken.UnbrokenError):
        bench.wait(pool.acquire(timeout=0.6))
    assert time.monotonic() - begun < 2.0
    proxy.heal()
    assert bench.answers_its_own(pool) != session


def test_an_error_in_place_of_the_answer_ends_the_connection(bench: Bench) -> None:
    if isinstance(bench.server, MySQL):
        pytest.skip("the relay speaks no TLS, and MySQL lets nobody in without")
    relay = bench.stack.enter_context(relay_to(bench.server))
    plain = bench.name in ("pymysql", "mysqlconnector", "mysqlconnector_async")
    more = {"ssl_disabled": "true"} if plain else {}
    pool = bench.pool(relay.url(bench.url(**more)))
    for pause in (0.3, 0.05, 0.0):
        bench.use(pool)
        bench.answers_its_own(pool)
        code = "XX000" if bench.is_postgresql else 1180
        relay.answer(code, "a strange ROLLBACK", stored=True, words="ROLLBACK")
        session = bench.use(pool)
        bench.rest(pause)
        with suppress(*bench.driver.errors), bench.lent(pool) as conn:
            assert bench.ask(conn, "SELECT 1234") == 1234
        assert bench.answers_its_own(pool) != session


def _sell(bench: Bench, pool: Any, times: int, *, releases: bool = False) -> tuple[int, int]:
    """So many rows were told to be stored, and so many uses failed.

    *releases*: the server closes each connection a moment after it has answered the end of a
    transaction. The next use comes when that is done.
    """
    bench.sold()  # the rows of a test that failed before
    stored = failed = 0

    def use(sql: str, **how: Any) -> Any:
        with bench.lent(pool, **how) as conn:
            session = bench.me(conn) if releases else 0
            found = bench.do(conn, sql)
        if releases:
            _until_gone(bench, session)
        return found

    for number in range(times):
        try:
            assert use(f"SELECT {number} FROM stock LIMIT 1")[0][0] == number
            use(f"INSERT INTO sold VALUES ({number})")
            stored += 1
            found = use(f"SELECT -{number} FROM stock LIMIT 1", transaction=False)
            assert found[0][0] == -number
        except bench.driver.errors:
            failed += 1
    return stored, failed


def _until_gone(bench: Bench, session: int) -> None:
    """Wait until the server has closed *session*."""
    wait_until(
        lambda: (
            session not in {int(each.id) for each in bench.server.sessions()} or bench.rest(0.002)
        ),  # an event loop reads what comes meanwhile
        10.0,
    )


@pytest.mark.parametrize("kind", ["CHAIN", "RELEASE"])
def test_a_server_on_which_each_end_chains_or_releases_answers_each_its_own(
    bench: Bench, kind: str
) -> None:
    if bench.is_postgresql:
        pytest.skip("completion_type is MySQL's")
    if bench.name == "mysqldb":
        pytest.skip("mysqlclient cannot be followed there, for the rest of the process")
    with bench.lent(bench.pool()):
        pass  # a driver proves itself once in a process, by a COMMIT behind which it sends more
    with bench.server.temporarily(completion_type=kind):
        pool = bench.pool()
        stored, failed = _sell(bench, pool, 10, releases=kind == "RELEASE")
        assert failed == 0
        assert bench.sold() == stored


@pytest.mark.parametrize("kind", ["CHAIN", "RELEASE"])
def test_a_session_on_which_each_end_chains_or_releases_is_left_to_nobody(
    bench: Bench, kind: str
) -> None:
    if bench.is_postgresql:
        pytest.skip("completion_type is MySQL's")
    pool = bench.pool()
    # mysql-connector sends several at once without being told to
    several = ("SELECT 1; SET completion_type",) if bench.is_connector else ()
    for words in (
        "SET SESSION completion_type", "set @@completion_type", " SET completion_type",
        "/* why */ SET completion_type", "sEt completion_type", "\nSET @x = 1, completion_type",
        *several,
    ):  # fmt: skip
        bench.due(pool)
        conn = bench.take(pool)
        bench.do(conn, f"{words} = '{kind}'")
        bench.do(conn, "SELECT n FROM stock FOR UPDATE")
        bench.give(pool, conn)
        stored, failed = _sell(bench, pool, 2)
        assert failed == 0
        assert bench.sold() == stored


CHAINS, RELEASES = 1, 2


@pytest.mark.parametrize("kind", [CHAINS, RELEASES])
def test_a_routine_that_has_each_end_chain_or_release_harms_nobody_else(
    bench: Bench, kind: int
) -> None:
    """No text on the wire names ``completion_type``."""
    if bench.is_postgresql:
        pytest.skip("completion_type is MySQL's")
    pool = bench.pool()
    for texts in (
        ["CALL ends({})"], ["/* why */ call ends({})", "SELECT n FROM stock"],
        ["PREPARE p FROM 'CALL ends({})'", "SELECT n FROM stock", "EXECUTE p"],
    ):  # fmt: skip
        bench.due(pool)
        bench.rest(0.02)
        conn = bench.take(pool)
        for sql in texts:
            bench.do(conn, sql.format(kind))
        bench.give(pool, conn)
        stored, failed = _sell(bench, pool, 2)  # the first of them right behind it
        # a goodbye by TLS takes its time, and a quick driver comes before the plain one
        assert failed <= (kind == RELEASES and (bench.has_tls or bench.is_mariadb))
        assert bench.sold() == stored


def test_with_autocommit_on_nothing_is_due(bench: Bench) -> None:
    pool = bench.pool(bench.url(autocommit="true"))
    session = bench.use(pool)
    assert not bench.is_due(pool)
    assert bench.answers_its_own(pool) == session


def test_an_answer_that_is_late_costs_no_other_connection(bench: Bench) -> None:
    if bench.name in ("asyncmy", "mysqlconnector_async"):
        pytest.skip("what its event loop has read is not seen")
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()), max_size=3, ping_timeout=0.3)

    def use(count: int) -> None:
        lent = [bench.take(pool) for _ in range(count)]
        for conn in lent:
            bench.do(conn, "SELECT n FROM stock")
        if count == 1:
            proxy.stall()
        for conn in lent:
            bench.give(pool, conn)
        bench.rest(0.1)

    use(3)
    use(3)
    use(1)
    bench.rest(0.3)
    healing = threading.Timer(0.7, proxy.heal)
    healing.start()
    conn = bench.take(pool)
    assert bench.ask(conn, "SELECT 42") == 42
    bench.give(pool, conn)
    healing.join()
    assert sum(bench.state(pool).stats().closed.values()) == 1


def test_upkeep_reads_an_answer_that_nobody_came_for(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    if bench.is_async:
        for _ in range(40):
            bench.rest(0.1)
            if not bench.is_due(pool):
                break
    else:
        wait_until(lambda: not bench.is_due(pool), 4.0)
    assert not bench.is_due(pool)
    assert bench.answers_its_own(pool) == session


# -- the ends of things ----------------------------------------------------------------------------


def _aborted(bench: Bench) -> int:
    if bench.is_postgresql:
        return bench.server.log.read_text(errors="replace").count("unexpected EOF")
    return int(bench.server.admin("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1])


@pytest.mark.parametrize("how", ["close", "drain"])
def test_a_pool_that_ends_while_due_says_goodbye_as_ever(bench: Bench, how: str) -> None:
    pool = bench.pool()
    before = _aborted(bench)
    sessions = {bench.due(pool)}
    if how == "drain":
        bench.wait(pool.drain())
        sessions.add(bench.answers_its_own(pool))
        assert len(sessions) == 2
    bench.wait(pool.close())
    wait_until(lambda: not sessions & {each.id for each in bench.server.sessions()}, 5.0)
    if not bench.is_async:  # whose transports are aborted
        assert _aborted(bench) == before


def test_a_fork_while_due_leaves_the_answer_to_the_parent(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    child = os.fork()
    if not child:
        try:
            if bench.is_async:
                mine = bench.pool()
                asyncio.set_event_loop(None)
                os._exit(0 if asyncio.run(_in_child(bench, mine)) != session else 1)
            os._exit(0 if bench.answers_its_own(pool) != session else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert bench.answers_its_own(pool) == session


async def _in_child(bench: Bench, pool: Any) -> int:
    async with pool.connection() as conn:
        return int((await bench._do(conn, "SELECT CONNECTION_ID()"))[0][0])


class _Struck(Exception):  # noqa: N818 - what happened
    pass


def test_a_use_that_is_struck_or_cancelled_while_due_costs_nobody_an_answer(bench: Bench) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()), max_size=2)
    bench.due(pool)
    proxy.latency(0.004)
    ended = 0
    for step in range(24):
        bench.use(pool)
        ended += _broken_off(bench, pool, 0.0005 * step)
        conn = bench.take(pool)
        assert bench.ask(conn, f"SELECT {step}") == step
        assert bench.ask(conn, f"SELECT {step} + 1") == step + 1
        bench.give(pool, conn)
    assert ended > 8


def _broken_off(bench: Bench, pool: Any, after: float) -> bool:
    """Whether a use, broken off so many seconds after it began, was: cancelled, or by a signal."""
    if bench.is_async:

        async def work() -> None:
            async with pool.connection() as conn:
                await bench._do(conn, "SELECT 999 FROM stock")
                await bench._do(conn, "SELECT 998 FROM stock")

        async def run() -> bool:
            task = asyncio.create_task(work())
            await asyncio.sleep(after)
            task.cancel()
            # mysql-connector 9.2 makes a time limit of a cancellation
            with suppress(asyncio.CancelledError, *bench.driver.errors):
                await task
            return task.cancelled() or task.exception() is not None

        return bool(bench.wait(run()))

    def strike(*_: Any) -> None:
        raise _Struck

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(after, 0.0001))
        with bench.lent(pool) as conn:
            bench.do(conn, "SELECT 999 FROM stock")
            bench.do(conn, "SELECT 998 FROM stock")
    except (_Struck, *bench.driver.errors):  # a struck cursor of mysqlclient fails to close, too
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    return False
