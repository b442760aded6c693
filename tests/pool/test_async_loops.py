"""AsyncPool beyond one loop: loops one after the other and beside each other, loops that end,
forks, uvloop.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

import unbroken

#: The pool promises one second; the rest is for machines that are busy with something else.
SOON = 3.0


async def use(body: Any, pool: unbroken.AsyncPool) -> int:
    async with pool.connection() as conn:
        found: int = await body.who(conn)
        return found


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.005)


# -- loops -----------------------------------------------------------------------------------------


def test_a_pool_lives_through_one_loop_after_the_other(body: Any) -> None:
    pool = body.pool(max_size=3)
    before: set[int] = set()
    for _ in range(4):
        ids = set(body.run(body.fill(pool, 3)))
        assert not before & ids
        before = ids
        until(lambda: not body.ids())  # a loop's end closes in order what nobody closed


def test_a_loop_that_is_closed_without_a_word_costs_no_session_for_long(body: Any) -> None:
    """Not ``asyncio.run``: nothing was told of the end, the sockets are still open."""
    pool = body.pool(max_size=2)
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(body.fill(pool, 2))
        loop.close()
        gc.collect()
    assert body.run(use(body, pool))
    until(lambda: not body.ids())


def test_two_loops_in_two_threads_have_sessions_of_their_own(body: Any) -> None:
    pool = body.pool(max_size=3)
    seen: list[set[int]] = [set(), set()]
    errors: list[BaseException] = []
    both = threading.Barrier(2)

    async def main(number: int) -> None:
        async def work() -> None:
            for _ in range(30):
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    assert await body.who(conn) == me
                    seen[number].add(me)

        both.wait(10)
        await asyncio.gather(*(work() for _ in range(6)))
        assert pool.stats().idle == pool.stats().size <= 3
        both.wait(10)  # nobody's sessions end while the other still works
        await pool.close()

    def thread(number: int) -> None:
        try:
            body.run(main(number))
        except BaseException as error:
            errors.append(error)
            both.abort()

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert errors == []
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]
    until(lambda: not body.ids())


def test_a_loop_that_stands_still_in_an_outage_does_not_keep_the_others_from_the_server(
    own_body: Any,
) -> None:
    """The prober of the outage may stand on a loop that nobody runs just then."""
    body = own_body
    pool = body.pool(max_size=2, acquire_timeout=20.0, outage_wait=20.0)
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(use(body, pool))
        body.server.stop()

        async def notice() -> None:
            with pytest.raises(unbroken.OutageError):
                await pool.acquire(timeout=0.3)

        first.run_until_complete(notice())  # from here on it stands still, and its prober with it
        body.server.start()
        assert body.run(use(body, pool))
    finally:
        first.run_until_complete(pool.close())
        first.close()


def test_a_lease_belongs_to_the_loop_it_was_made_on(body: Any) -> None:
    pool = body.pool(max_size=2)
    loop = asyncio.new_event_loop()
    conn = loop.run_until_complete(pool.acquire())

    async def elsewhere() -> None:
        with pytest.raises(unbroken.NotYoursError):
            await pool.release(conn)

    body.run(elsewhere())
    loop.run_until_complete(pool.release(conn))
    loop.run_until_complete(pool.close())
    loop.close()


SCRIPT = """
    import asyncio, logging, sys
    import unbroken
    logging.getLogger("unbroken").setLevel(logging.ERROR)
    pool = unbroken.AsyncPool(sys.argv[1], max_size=3, min_size=2)

    async def use():
        async with pool.connection() as conn:
            await asyncio.sleep(0.01)

    async def hold():
        async with pool.connection() as conn:
            await asyncio.sleep(60)

    async def main():
        await asyncio.gather(*(use() for _ in range(6)))
        MORE

    for _ in range(2):
        asyncio.run(main())
    print("done")
"""
ENDINGS = {
    "idle": "pass",
    "lent": "global conn; conn = await pool.acquire()",
    # Longer than the pool has a question in transit: asyncpg is not quiet when that is cancelled.
    "in a task": "asyncio.create_task(hold()); await asyncio.sleep(0.3)",
    "waiting": "[asyncio.create_task(hold()) for _ in range(8)]; await asyncio.sleep(0.2)",
    "away": "await away.acquire(0.2)",
}


@pytest.mark.parametrize(
    ("ending", "flags"),
    [*((ending, ("-X", "dev")) for ending in ENDINGS), ("idle", ()), ("lent", ())],
)
def test_a_pool_that_is_never_closed_ends_quietly_with_its_loop(
    body: Any, ending: str, flags: tuple[str, ...]
) -> None:
    more = ENDINGS[ending]
    script = textwrap.dedent(SCRIPT).replace("MORE", more)
    if ending == "away":
        script = script.replace(
            "async def use", "away = unbroken.AsyncPool(sys.argv[2])\n\nasync def use"
        ).replace(
            more, "\n    ".join(["try:", f"    {more}", "except unbroken.OutageError:", "    pass"])
        )
    closed = body.server.url(body.name).replace(f":{body.server.port}/", ":1/")
    done = subprocess.run(
        [sys.executable, *flags, "-c", script, body.server.url(body.name), closed],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr
    # In development mode the drivers say that a connection which the application still holds was
    # not closed: that is theirs.
    noise = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    if flags and ending == "lent":
        noise = [line for line in noise if "unbroken" in line or "destroyed" in line]
    assert noise == [], done.stderr
    until(lambda: not body.ids())


# -- fork ------------------------------------------------------------------------------------------


def test_a_forked_child_has_its_own_sessions_and_leaves_the_parents_alone(body: Any) -> None:
    pool = body.pool(max_size=3)

    async def in_child() -> list[int]:
        ids = await body.fill(pool, 3)
        for _ in range(50):
            async with pool.connection() as conn:
                assert await body.who(conn) in ids
        await pool.close()
        return ids

    async def main() -> None:
        ids = set(await body.fill(pool, 3))
        lent = await pool.acquire()
        me = await body.who(lent)
        children = [_fork(lambda: _child(in_child)) for _ in range(3)]
        while any(each.poll() is None for each in children):
            async with pool.connection() as conn:
                assert await body.who(conn) in ids
            assert await body.who(lent) == me
            await asyncio.sleep(0.002)
        for each in children:
            assert each.wait() == 0, each.said()
            theirs = {int(number) for number in each.said().split()}
            assert len(theirs) == 3
            assert not theirs & ids
        gc.collect()
        assert await body.who(lent) == me
        await pool.release(lent)
        assert set(await body.fill(pool, 3)) == ids
        assert pool.stats().closed == {}
        await pool.close()

    body.run(main())


@pytest.mark.parametrize("end", ["os._exit", "sys.exit", "collect"])
def test_a_forked_child_that_does_nothing_ends_no_session_of_its_parent(
    body: Any, end: str
) -> None:
    pool = body.pool(max_size=3)

    def leave() -> None:
        nonlocal pool
        if end == "collect":
            del pool
            gc.collect()
        if end == "sys.exit":
            sys.exit(0)  # finalizers run

    async def main() -> None:
        ids = set(await body.fill(pool, 3))
        lent = await pool.acquire()
        me = await body.who(lent)
        child = _fork(leave, bare=end == "sys.exit")
        await body.until(lambda: child.poll() is not None)
        assert child.wait() == 0, child.said()
        await asyncio.sleep(0.05)
        assert await body.who(lent) == me
        await pool.release(lent)
        assert set(await body.fill(pool, 3)) == ids
        assert pool.stats().closed == {}
        await pool.close()

    body.run(main())


def test_a_lease_from_before_the_fork_ends_in_the_child_without_a_byte(body: Any) -> None:
    pool = body.pool(max_size=2)
    table = body.table()

    async def main() -> None:
        lease = pool.connection()
        conn = await lease.__aenter__()
        me = await body.who(conn)
        await body.do(conn, f"INSERT INTO {table} VALUES (1)")

        def in_child() -> None:
            async def leave() -> None:
                try:
                    await lease.__aexit__(None, None, None)
                except unbroken.NotYoursError:
                    return
                raise AssertionError("no error")

            asyncio.run(leave())

        child = _fork(in_child)
        await body.until(lambda: child.poll() is not None)
        assert child.wait() == 0, child.said()
        assert await body.who(conn) == me
        await lease.__aexit__(None, None, None)
        await pool.close()
        assert body.rows() == [1]

    body.run(main())


def _child(main: Callable[[], Any]) -> None:
    print(*asyncio.run(main()))


class _fork:  # noqa: N801 - used as a function
    """A child that runs *function*; what it prints and how it ends."""

    def __init__(self, function: Callable[[], Any], *, bare: bool = False) -> None:
        self.status: int | None = None
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.dup2(writing, 1)
                os.dup2(writing, 2)
                sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
                if bare:  # as a program's own end, but without pytest's
                    import atexit

                    try:
                        function()
                    except SystemExit:
                        gc.collect()
                        atexit._run_exitfuncs()
                        status = 0
                else:
                    function()
                    status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        self.reading = reading

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def said(self) -> str:
        text = b""
        while more := os.read(self.reading, 65536):
            text += more
        return text.decode()


# -- uvloop ----------------------------------------------------------------------------------------


@pytest.fixture
def on_uvloop(body: Any) -> Any:
    body.loop_factory = uvloop.new_event_loop
    return body


def test_uvloop_sees_the_deaths_of_idle_connections(on_uvloop: Any) -> None:
    body = on_uvloop

    async def main() -> None:
        async with body.pool(max_size=4) as pool:
            for _ in range(5):
                await body.fill(pool, 4)
                await asyncio.to_thread(body.server.kill_sessions)
                await body.until(lambda: pool.stats().size == 0, SOON)
                await body.until(lambda: body.close_waits() == 0, SOON)
            assert await asyncio.gather(*(use(body, pool) for _ in range(20)))

    body.run(main())


def test_uvloop_lends_commits_replays_and_keeps_deadlines(on_uvloop: Any) -> None:
    body = on_uvloop
    table = body.table()

    async def main() -> None:
        async with body.pool(max_size=4) as pool:
            calls = 0

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                me = await body.who(conn)
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                if calls == 1:
                    await asyncio.to_thread(body.server._kill_session, me)
                    await body.until(lambda: me not in body.ids())
                await body.who(conn)

            await pool.run(work)
            assert calls == 2
            error = await body.outcome(pool.run(lambda conn: body.slow(conn, 20), deadline=0.2))
            assert isinstance(error, unbroken.DeadlineExceeded), error
            await use(body, pool)
            assert pool.stats().used == 0
        await asyncio.to_thread(body.server.kill_sessions)

    body.run(main())
    assert body.rows() == [1]


def test_uvloop_ends_quietly_with_a_pool_that_nobody_closed(on_uvloop: Any) -> None:
    body = on_uvloop
    pool = body.pool(max_size=3)
    for _ in range(2):
        body.run(body.fill(pool, 3))
        until(lambda: not body.ids())
