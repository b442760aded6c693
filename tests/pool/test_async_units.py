"""AsyncPool: units of work.

Replayed where that is provably safe, never where it is not, across tasks and groups of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import unbroken


async def kill(body: Any, session: int) -> None:
    """End one session and wait until the server has let go of it."""
    await asyncio.to_thread(body.server._kill_session, session)
    await body.until(lambda: session not in body.ids())


# -- replay ----------------------------------------------------------------------------------------


def test_a_unit_gives_its_result_and_commits(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:

            async def work(conn: Any, number: int, *, twice: bool) -> int:
                await body.do(conn, f"INSERT INTO {table} VALUES ({number})")
                if twice:
                    await body.do(conn, f"INSERT INTO {table} VALUES ({number})")
                return number * 2

            assert await pool.run(work, 21, twice=True) == 42
            assert body.rows() == [21, 21]
            assert pool.stats().replays == 0

    body.run(main())


def test_any_callable_that_gives_an_awaitable_is_a_unit(body: Any) -> None:
    class Work:
        async def __call__(self, conn: Any) -> int:
            found: int = await body.who(conn)
            return found

    async def main() -> None:
        async with body.pool() as pool:
            assert await pool.run(Work())
            assert await pool.run(lambda conn: body.who(conn))

    body.run(main())


def test_an_error_of_the_work_is_raised_as_it_is_and_nothing_stored(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        calls = 0
        async with body.pool() as pool:

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                raise KeyError("mine")

            with pytest.raises(KeyError, match="mine"):
                await pool.run(work)
        assert calls == 1
        assert body.rows() == []

    body.run(main())


@pytest.mark.parametrize("way", ["run", "replayable"])
def test_a_unit_whose_connection_is_lost_is_run_again_and_stored_once(body: Any, way: str) -> None:
    table = body.table()

    async def main() -> None:
        sessions = []
        async with body.pool() as pool:

            async def work(conn: Any) -> str:
                sessions.append(await body.who(conn))
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                if len(sessions) <= 2:
                    await kill(body, sessions[-1])
                await body.do(conn, f"INSERT INTO {table} VALUES (2)")
                return "done"

            @unbroken.replayable
            async def function() -> str:
                async with pool.connection() as conn:
                    return await work(conn)

            assert await (pool.run(work) if way == "run" else function()) == "done"
            assert len(set(sessions)) == 3
            assert body.rows() == [1, 2]
            if way == "run":
                assert pool.stats().replays == 2

    body.run(main())


def test_a_loss_just_before_the_commit_is_run_again(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        calls = 0
        async with body.pool() as pool:

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                me = await body.who(conn)
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                if calls == 1:
                    await kill(body, me)
                    await asyncio.sleep(0.05)

            await pool.run(work)
            assert calls == 2
        assert body.rows() == [1]

    body.run(main())


def test_a_unit_that_is_lost_each_time_ends_with_the_drivers_error(body: Any) -> None:
    async def main() -> None:
        calls = 0
        async with body.pool(max_replays=2) as pool:

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                await kill(body, await body.who(conn))
                await body.who(conn)

            error = await body.outcome(pool.run(work))
            assert pool._driver.classify(error).is_lost
            assert any("2 replays" in note for note in error.__notes__)
            assert calls == 3

    body.run(main())


@pytest.mark.parametrize("how", ["autocommit", "commit"])
def test_what_may_be_committed_is_not_run_again(body: Any, how: str) -> None:
    table = body.table()

    async def main() -> None:
        calls = 0
        async with body.pool() as pool:

            async def work() -> None:
                nonlocal calls
                calls += 1
                async with pool.connection(transaction=False) as conn:
                    me = await body.who(conn)
                    await pool._driver.rollback(conn)
                    if how == "autocommit":
                        await _autocommit(body, conn)
                    else:
                        await body.do(conn, "BEGIN")
                    await body.do(conn, f"INSERT INTO {table} VALUES ({calls})")
                    if how == "commit":
                        await body.do(conn, "COMMIT")
                    await kill(body, me)
                    await body.who(conn)

            error = await body.outcome(unbroken.replayable(work)())
            assert error is not None
            assert any("did not replay" in note for note in error.__notes__)
        assert calls == 1
        assert body.rows() == [1]

    body.run(main())


async def _autocommit(body: Any, conn: Any) -> None:
    if body.is_mysql:
        await conn.autocommit(True)
    elif not body.is_asyncpg:
        await conn.set_autocommit(True)


def test_two_units_in_a_deadlock_are_both_done_in_the_end(body: Any) -> None:
    table = body.table()
    body.server.admin(f"ALTER TABLE {table} ADD PRIMARY KEY (n)")
    body.server.admin(f"INSERT INTO {table} VALUES (1), (100)")

    async def main() -> None:
        async with body.pool() as pool:
            first = asyncio.Barrier(2)
            calls = []

            async def work(conn: Any, one: int, other: int) -> None:
                calls.append(one)
                await body.do(conn, f"UPDATE {table} SET n = n WHERE n = {one}")
                if len(calls) <= 2:
                    await first.wait()
                await body.do(conn, f"UPDATE {table} SET n = n WHERE n = {other}")

            await asyncio.gather(pool.run(work, 1, 100), pool.run(work, 100, 1))
            assert len(calls) >= 3
            assert pool.stats().replays >= 1
            assert pool.stats().opened == 2  # a deadlock costs no connection

    body.run(main())


# -- a ---------------------------------------------------------------------------------------------
# COMMIT without an answer


class Cutter:
    """A way to the server that, once told to, carries the next COMMIT there and hangs up before its
    answer.

    *deliver* False: it hangs up without carrying it there.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.armed: str | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def back() -> None:
            with contextlib.suppress(OSError):
                while data := await up_reader.read(65536):
                    writer.write(data)
            writer.close()

        answers = asyncio.create_task(back())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.armed and b"COMMIT" in data.upper():
                    how, self.armed = self.armed, None
                    if how == "delivered":
                        answers.cancel()
                        up_writer.write(data)
                        await up_writer.drain()
                        await up_reader.read(65536)  # the answer: by now it is stored
                    break
                up_writer.write(data)
        answers.cancel()
        for each in (writer, up_writer):
            each.transport.abort()

    @contextlib.asynccontextmanager
    async def on(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


@pytest.mark.parametrize("way", ["run", "connection", "replayable"])
@pytest.mark.parametrize("how", ["delivered", "lost"])
def test_a_commit_without_an_answer_is_told_as_unknown_and_never_repeated(
    body: Any, way: str, how: str
) -> None:
    table = body.table()

    async def main() -> None:
        calls = 0
        cutter = Cutter(body.server.port)
        async with (
            cutter.on() as port,
            body.pool(
                url=body.server.url(body.name).replace(f":{body.server.port}/", f":{port}/")
            ) as pool,
        ):

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                cutter.armed = how

            async def lease() -> None:
                async with pool.connection() as conn:
                    await work(conn)

            ways = {
                "run": lambda: pool.run(work),
                "connection": lease,
                "replayable": unbroken.replayable(lease),
            }
            error = await body.outcome(ways[way]())
            assert isinstance(error, unbroken.CommitUnknownError), error
            assert isinstance(error, pool._driver.errors[0])
            assert "\n" not in str(error)
            assert calls == 1
            assert pool.stats().size == 0
        assert body.rows() == ([1] if how == "delivered" else [])

    body.run(main())


def test_a_commit_of_reads_without_an_answer_is_run_again(body: Any) -> None:
    async def main() -> None:
        calls = 0
        cutter = Cutter(body.server.port)
        async with (
            cutter.on() as port,
            body.pool(
                url=body.server.url(body.name).replace(f":{body.server.port}/", f":{port}/")
            ) as pool,
        ):

            async def work(conn: Any) -> int:
                nonlocal calls
                calls += 1
                cutter.armed = "lost" if calls == 1 else None
                found: int = await body.ask(conn, "SELECT 42")
                return found

            assert await pool.run(work) == 42
            assert calls in (1, 2)  # 1: nobody waited for that answer

    body.run(main())


# -- units and tasks -------------------------------------------------------------------------------


def test_units_beside_each_other_replay_each_for_itself(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        calls: dict[int, int] = {}
        async with body.pool(max_size=4) as pool:

            async def work(conn: Any, number: int) -> int:
                calls[number] = calls.get(number, 0) + 1
                me = await body.who(conn)
                await body.do(conn, f"INSERT INTO {table} VALUES ({number})")
                if number % 3 == 0 and calls[number] == 1:
                    await kill(body, me)
                    await body.who(conn)
                return number

            assert await asyncio.gather(*(pool.run(work, n) for n in range(12))) == list(range(12))
            assert calls == {n: 2 if n % 3 == 0 else 1 for n in range(12)}
        assert body.rows() == list(range(12))

    body.run(main())


def test_inside_a_unit_the_outermost_is_run_again(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        outer = inner = 0
        async with body.pool() as pool:

            async def part(conn: Any) -> None:
                nonlocal inner
                inner += 1
                me = await body.who(conn)
                await body.do(conn, f"INSERT INTO {table} VALUES (2)")
                if inner == 1:
                    await kill(body, me)
                    await body.who(conn)

            @unbroken.replayable
            async def whole() -> None:
                nonlocal outer
                outer += 1
                async with pool.connection() as conn:
                    await body.ask(conn, f"SELECT COUNT(*) FROM {table}")
                await pool.run(part)

            await whole()
        assert (outer, inner) == (2, 2)
        assert body.rows() == [2]

    body.run(main())


def test_after_an_inner_commit_the_outer_unit_is_not_run_again(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        outer = 0
        async with body.pool() as pool:

            @unbroken.replayable
            async def whole() -> None:
                nonlocal outer
                outer += 1
                async with pool.connection() as conn:
                    await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                async with pool.connection() as conn:
                    await kill(body, await body.who(conn))
                    await body.who(conn)

            error = await body.outcome(whole())
            assert error is not None
            assert any("COMMIT" in note for note in error.__notes__), error.__notes__
        assert outer == 1
        assert body.rows() == [1]

    body.run(main())


def test_tasks_of_a_unit_belong_to_it(body: Any) -> None:
    """Two tasks of one unit, each with a connection: one is lost, the group cancels the other, and
    all of it is run again.
    """
    table = body.table()

    async def main() -> None:
        attempts = 0
        async with body.pool() as pool:

            async def child(number: int, dies: bool) -> None:
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    if dies:
                        await kill(body, me)
                    else:
                        await asyncio.sleep(0.3)
                    await body.do(conn, f"INSERT INTO {table} VALUES ({number})")

            @unbroken.replayable
            async def whole() -> None:
                nonlocal attempts
                attempts += 1
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(child(1, attempts == 1))
                        group.create_task(child(2, False))
                except* Exception as errors:
                    raise errors.exceptions[0] from None

            await whole()
        assert attempts == 2
        assert body.rows() == [1, 2]

    body.run(main())


def test_a_write_of_a_task_that_its_unit_left_behind_is_not_doubled(body: Any) -> None:
    """``gather`` does not cancel: a task of the lost attempt goes on.

    Then nothing may be run again beside it.
    """
    table = body.table()

    async def main() -> None:
        attempts = 0
        left: list[Any] = []
        async with body.pool() as pool:
            holding = asyncio.Event()

            async def dies() -> None:
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    await holding.wait()
                    if attempts == 1:
                        await kill(body, me)
                    await body.who(conn)

            async def writes_late() -> None:
                left.append(asyncio.current_task())
                async with pool.connection() as conn:
                    await body.who(conn)
                    holding.set()
                    await asyncio.sleep(0.3)
                    await body.do(conn, f"INSERT INTO {table} VALUES (7)")

            @unbroken.replayable
            async def whole() -> None:
                nonlocal attempts
                attempts += 1
                await asyncio.gather(dies(), writes_late())

            await body.outcome(whole())
            await asyncio.gather(*left, return_exceptions=True)
        assert body.rows().count(7) <= 1

    body.run(main())


def test_a_task_of_an_attempt_that_was_run_again_is_lent_nothing(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        attempts = 0
        left: list[Any] = []
        async with body.pool() as pool:
            again = asyncio.Event()

            async def writes_late(number: int) -> None:
                if number == 1:
                    await again.wait()
                async with pool.connection() as conn:
                    await body.do(conn, f"INSERT INTO {table} VALUES (7)")

            @unbroken.replayable
            async def whole() -> None:
                nonlocal attempts
                attempts += 1
                task = asyncio.create_task(writes_late(attempts))
                left.append(task)
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    if attempts == 1:
                        await kill(body, me)
                    await body.who(conn)
                again.set()
                await task

            await whole()
            errors = await asyncio.gather(*left, return_exceptions=True)
            assert isinstance(errors[0], unbroken.UnbrokenError), errors
        assert attempts == 2
        assert body.rows() == [7]

    body.run(main())


def test_what_a_task_does_after_its_unit_is_over_is_its_own(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:
            over = asyncio.Event()

            async def later() -> None:
                await over.wait()
                async with pool.connection() as conn:
                    await body.do(conn, f"INSERT INTO {table} VALUES (1)")

            @unbroken.replayable
            async def unit() -> asyncio.Task[None]:
                return asyncio.create_task(later())

            task = await unit()
            over.set()
            await task
        assert body.rows() == [1]

    body.run(main())


def test_acquire_and_release_inside_a_unit_belong_to_it(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        calls = 0
        async with body.pool() as pool:

            @unbroken.replayable
            async def work() -> None:
                nonlocal calls
                calls += 1
                conn = await pool.acquire()
                try:
                    me = await body.who(conn)
                    await body.do(conn, "BEGIN")
                    await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                    if calls == 1:
                        await kill(body, me)
                    await body.do(conn, "COMMIT")
                finally:
                    await pool.release(conn)

            error = await body.outcome(work())
            # The COMMIT went out and no answer came: whether it was the server's death before or
            # after, nobody can tell.
            assert (
                error is None
                or isinstance(error, unbroken.UnbrokenError)
                or pool._driver.classify(error).is_lost
            )
            assert (calls == 2) == (error is None)
            assert body.rows() == ([1] if error is None else [])
            assert pool.stats().used == 0

    body.run(main())


def test_a_unit_that_is_cancelled_is_rolled_back_and_not_run_again(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        calls = 0
        async with body.pool() as pool:
            begun = asyncio.Event()

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                begun.set()
                await asyncio.sleep(30)

            task = asyncio.create_task(pool.run(work))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert calls == 1
            assert (pool.stats().idle, pool.stats().closed) == (1, {})
        assert body.rows() == []

    body.run(main())
