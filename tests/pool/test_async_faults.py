"""AsyncPool: connections that die while idle or in use, servers that stop, crash, freeze, refuse
and come back.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import unbroken

#: The pool promises one second; the rest is for machines that are busy with something else.
SOON = 3.0

# -- dying while idle ------------------------------------------------------------------------------


def test_what_is_killed_while_idle_is_evicted_without_traffic_and_is_no_error(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=5) as pool:
            for _ in range(3):
                await body.fill(pool, 5)
                await asyncio.to_thread(body.server.kill_sessions)
                await body.until(lambda: pool.stats().size == 0, SOON)
                await body.until(lambda: body.close_waits() == 0, SOON)
            assert await asyncio.gather(*(use(body, pool) for _ in range(20)))
            assert sum(pool.stats().closed.values()) == 15
            assert pool.stats().pings == 0

    body.run(main())


def test_what_is_killed_unseen_by_the_loop_is_not_lent(body: Any) -> None:
    """The loop has no turn between the death and the acquire: the look at the sockets must see
    it.
    """

    async def main() -> None:
        async with body.pool(max_size=4) as pool:
            for _ in range(5):
                dead = set(await body.fill(pool, 4))
                body.server.kill_sessions()  # blocks the loop
                time.sleep(0.05)  # until the FINs are here; the loop must not run
                conns = await asyncio.gather(*(pool.acquire() for _ in range(4)))
                assert not dead & {await body.who(conn) for conn in conns}
                for conn in conns:
                    await pool.release(conn)
            assert pool.stats().idle == pool.stats().size == 4

    body.run(main())


async def use(body: Any, pool: unbroken.AsyncPool, **options: Any) -> int:
    async with pool.connection(**options) as conn:
        found: int = await body.who(conn)
        return found


def test_one_that_is_killed_costs_the_others_nothing(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=4) as pool:
            ids = await body.fill(pool, 4)
            await asyncio.to_thread(body.server._kill_session, ids[0])
            await body.until(lambda: pool.stats().size == 3, SOON)
            assert set(ids[1:]) <= set(await body.fill(pool, 4))
            assert pool.stats().opened == 5

    body.run(main())


def test_the_servers_idle_limit_is_no_error(own_body: Any) -> None:
    body = own_body
    body.server.set(**({"wait_timeout": 1} if body.is_mysql else {"idle_session_timeout": "1s"}))

    ends: list[Any] = []

    def see(event: str, fields: Any) -> None:
        if event == "closed":
            ends.append(fields)

    async def main() -> None:
        async with body.pool(max_size=4, observers=(see,), max_idle=100) as pool:
            await body.fill(pool, 4)
            # so that the server is first
            pool._current().policy = replace(pool._current().policy, idle_limit=math.inf)
            await body.until(lambda: not body.ids())
            await body.until(lambda: pool.stats().size == 0, SOON)
            await body.until(lambda: body.close_waits() == 0, SOON)
            used = set(await asyncio.gather(*(use(body, pool) for _ in range(8))))
            # on a slow machine the limit may strike again: one more for each that ended since
            assert len(used) <= len(ends)
            assert pool.stats().idle_limit == 1.0
            assert [end["cause"] for end in ends[:4]] == ["idle limit"] * 4
            if body.name == "psycopg":
                # asyncpg keeps the server's last words to itself, MariaDB has none
                assert all(end["words"] for end in ends[:4])

    body.run(main())


def test_min_size_is_kept_alive_below_the_servers_idle_limit(own_body: Any, steadily: Any) -> None:
    body = own_body
    body.server.set(**({"wait_timeout": 2} if body.is_mysql else {"idle_session_timeout": "2s"}))

    async def main() -> None:
        async with body.pool(min_size=2) as pool:
            ids = set(await body.fill(pool, 2))
            await asyncio.sleep(3.5)
            assert pool.stats().pings > 4
            assert set(await body.fill(pool, 2)) == ids

    steadily(0.2, lambda: body.run(main()))


_FATAL = b"SFATAL\0VFATAL\0C57P05\0Mterminating connection due to idle-session timeout\0\0"
_GOODBYE = b"E" + (len(_FATAL) + 4).to_bytes(4, "big") + _FATAL


@pytest.mark.parametrize(
    "before", [b"", b"N\0\0\0\x0cMwell?\0\0"], ids=["alone", "behind a notice"]
)
def test_a_goodbye_that_the_loop_has_read_ends_an_idle_connection_at_once(
    body: Any, before: bytes
) -> None:
    """asyncpg would keep it to itself, and fail at the next statement until the hang-up comes."""
    if body.name != "asyncpg":
        pytest.skip(
            "asyncpg only: nobody else takes what arrives off an idle PostgreSQL connection"
        )

    async def main() -> None:
        async with body.pool() as pool:
            async with pool.connection() as conn:
                me, layer = await body.who(conn), conn._protocol
            layer.data_received(before + _GOODBYE)
            async with pool.connection(transaction=False) as conn:  # no turn of the loop in between
                assert await body.who(conn) != me
            await body.until(lambda: pool.stats().closed == {"idle limit": 1}, SOON)

    body.run(main())


def test_a_goodbye_to_a_connection_in_use_is_told_by_the_next_statement(body: Any) -> None:
    if body.name != "asyncpg":
        pytest.skip(
            "asyncpg only: nobody else takes what arrives off an idle PostgreSQL connection"
        )

    async def main() -> None:
        async with body.pool() as pool:
            import asyncpg

            with pytest.raises(asyncpg.PostgresConnectionError, match="idle-session timeout"):
                async with pool.connection(transaction=False) as conn:
                    conn._protocol.data_received(_GOODBYE)
                    await conn.fetchval("SELECT 1")
            await body.until(lambda: pool.stats().size == 0, SOON)

    body.run(main())


def test_a_goodbye_that_comes_together_with_an_answer_keeps_the_connection_from_the_next_user(
    body: Any,
) -> None:
    if body.name != "asyncpg":
        pytest.skip(
            "asyncpg only: nobody else takes what arrives off an idle PostgreSQL connection"
        )

    async def main() -> None:
        async with body.pool() as pool:
            async with pool.connection(transaction=False) as conn:
                me, layer = await body.who(conn), conn._protocol
                conn._transport.set_protocol(_Appending(layer, _GOODBYE))
                await conn.execute("SELECT 1")
            async with pool.connection(transaction=False) as conn:
                assert await body.who(conn) != me

    body.run(main())


class _Appending:
    """asyncpg's protocol, to which each chunk comes with something behind it."""

    def __init__(self, real: Any, more: bytes) -> None:
        self._real, self._more = real, more

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def data_received(self, data: bytes) -> None:
        self._real.data_received(data + self._more)


def test_notices_and_notifications_end_no_connection(body: Any) -> None:
    if body.name != "asyncpg":
        pytest.skip(
            "asyncpg only: nobody else takes what arrives off an idle PostgreSQL connection"
        )
    heard: list[str] = []

    async def main() -> None:
        async with body.pool(max_size=2) as pool, pool.connection(transaction=False) as conn:
            me = await body.who(conn)
            await conn.add_listener("news", lambda *told: heard.append(told[-1]))
            async with pool.connection(transaction=False) as other:
                await other.execute("SELECT pg_notify('news', repeat('E', 7000))")
            await body.until(lambda: heard)
            assert await body.who(conn) == me

    body.run(main())


def test_last_words_that_the_loop_has_read_already_are_heard(body: Any) -> None:
    """MySQL's 4031 before it ends an idle session (MariaDB says nothing)."""
    if not body.is_mysql:
        pytest.skip(
            "PostgreSQL's are tested above: asyncpg; psycopg reads nothing of an idle connection"
        )
    text = b"\xbf\x0f#HY000The client was disconnected by the server because of inactivity."

    async def main() -> None:
        async with body.pool() as pool:
            conn = await pool.acquire()
            me = await body.who(conn)
            reader = conn._reader
            await pool.release(conn)
            reader.feed_data((len(text) + 1).to_bytes(3, "little") + b"\0\xff" + text)
            await asyncio.to_thread(body.server._kill_session, me)
            await body.until(lambda: pool.stats().size == 0, SOON)
            assert pool.stats().closed == {"idle limit": 1}

    body.run(main())


def test_what_the_application_closes_itself_is_not_lent_again(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=2) as pool:
            for _ in range(4):
                async with pool.connection(transaction=False) as conn:
                    await body.who(conn)
                    closed = conn.close()
                    if closed is not None:
                        await closed
                    await use(body, pool)  # opens another one, which may get the same descriptor
                conn = await pool.acquire()
                await pool._driver.rollback(conn)
                if (closed := conn.close()) is not None:
                    await closed
                await pool.release(conn)
            for _ in range(3):
                ids = await body.fill(pool, 2)
            await asyncio.to_thread(body.server._kill_session, ids[0])
            # each descriptor is still watched
            await body.until(lambda: pool.stats().size == 1, SOON)

    body.run(main())


# -- dying in use ----------------------------------------------------------------------------------


def test_what_dies_in_use_is_the_drivers_error_and_gone(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=2) as pool:

            async def work() -> None:
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    await asyncio.to_thread(body.server._kill_session, me)
                    await body.who(conn)

            error = await body.outcome(work())
            assert error is not None
            assert pool._driver.classify(error).is_lost
            assert pool.stats().size == 0
            if body.name == "psycopg":  # the others lose the server's word for it
                assert pool.stats().closed == {"killed": 1}
            await body.until(lambda: not body.close_waits(), SOON)
            await use(body, pool)

    body.run(main())


def test_what_dies_before_its_commit_is_told_as_lost_not_as_unknown(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:

            async def work() -> None:
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                    await asyncio.to_thread(body.server._kill_session, me)
                    await body.until(lambda: me not in body.ids())
                    await asyncio.sleep(0.1)

            error = await body.outcome(work())
            assert isinstance(error, unbroken.ConnectionLostError), error
            assert isinstance(error, pool._driver.errors[0])
        assert body.rows() == []

    body.run(main())


@pytest.mark.parametrize(
    "error", [TimeoutError("of an HTTP call"), ConnectionResetError(104, "of a cache")]
)
def test_an_error_about_something_else_does_not_cost_the_connection(
    body: Any, error: Exception
) -> None:
    async def main() -> None:
        async with body.pool() as pool:
            calls = 0

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                await body.who(conn)
                raise error

            assert await body.outcome(pool.run(work)) is error
            assert calls == 1
            assert (pool.stats().idle, pool.stats().closed) == (1, {})

    body.run(main())


# -- outages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_traffic_goes_on_through_a_restart(own_body: Any, how: str) -> None:
    body = own_body

    async def main() -> None:
        errors, done, stop = [], [0], False
        async with body.pool(max_size=4) as pool:

            async def traffic() -> None:
                while not stop:
                    # each use is a unit of its own: what was open when the server went is run again
                    error = await body.outcome(pool.run(body.who))
                    done[0] += 1
                    if error is not None:
                        errors.append(error)
                    await asyncio.sleep(0.002)

            tasks = [asyncio.create_task(traffic()) for _ in range(8)]
            await body.until(lambda: done[0] > 50)
            await asyncio.to_thread(getattr(body.server, how), 0.5)
            ready = body.server.ready_at
            before = done[0]
            await body.until(lambda: done[0] > before + 50)
            assert ready is not None
            stop = True
            await asyncio.gather(*tasks)
            assert errors == []
            await body.until(lambda: body.close_waits() == 0, SOON)
            await body.until(lambda: pool.stats().idle == pool.stats().size <= 4)
            assert (pool.stats().outages, pool.stats().away_for) == (1, 0.0)

    body.run(main())


def test_callers_wait_for_a_server_that_comes_back_and_are_served_at_once(own_body: Any) -> None:
    body = own_body

    async def main() -> None:
        async with body.pool(max_size=4) as pool:
            await use(body, pool)
            body.server.stop()
            callers = [asyncio.create_task(use(body, pool)) for _ in range(12)]
            await body.until(lambda: pool.stats().away_for > 0.3)
            assert pool.stats().waiting == 12
            failures = pool.stats().connect_failures
            assert 3 < failures < 60  # one prober, at 10 to 40 ms
            await asyncio.to_thread(body.server.start)
            await asyncio.gather(*callers)
            assert pool.stats().size <= 4

    body.run(main())


def test_an_outage_ends_in_a_true_word_at_the_callers_time_and_then_at_once(own_body: Any) -> None:
    body = own_body

    async def main() -> None:
        async with body.pool(outage_wait=0.6) as pool:
            await use(body, pool)
            body.server.stop()
            error = await body.outcome(pool.acquire(timeout=0.2))
            assert isinstance(error, unbroken.OutageError), error
            assert isinstance(error, pool._driver.errors[0])
            assert "efused" in str(error) or "(2003" in str(error) or "Errno 111" in str(error)
            assert body.server.password not in str(error)
            assert "\n" not in str(error)
            await body.until(lambda: pool.stats().away_for > 0.7)
            before = pool.stats().turned_away
            for _ in range(10):
                error = await body.outcome(asyncio.wait_for(pool.acquire(), 5.0))
                assert isinstance(error, unbroken.OutageError)
                assert error.retry_after > 0
            assert pool.stats().turned_away == before + 10
            assert pool.stats().waiting == 0
            await asyncio.to_thread(body.server.start)
            # nobody waits: the prober goes on by itself
            await body.until(lambda: pool.stats().away_for == 0.0, 3.0)
            await use(body, pool)

    body.run(main())


@pytest.mark.parametrize("what", ["password", "database"])
def test_what_waiting_cannot_cure_is_told_at_once(body: Any, what: str) -> None:
    url = body.server.url(body.name).replace(
        body.server.password if what == "password" else "/shop",
        "nope" if what == "password" else "/no",
    )

    async def main() -> None:
        async with body.pool(url=url) as pool:
            errors = await asyncio.wait_for(
                asyncio.gather(*(body.outcome(pool.acquire()) for _ in range(20))), 4.0
            )
            assert all(isinstance(e, unbroken.ConnectRejectedError) for e in errors), errors
            assert all(body.server.password not in str(e) and "\n" not in str(e) for e in errors)
            await body.until(lambda: pool.stats().opening == 0)
            assert (pool.stats().size, pool.stats().waiting, pool.stats().away_for) == (0, 0, 0.0)

    body.run(main())


def test_a_limit_of_the_user_is_waited_for_without_hammering(own_body: Any) -> None:
    body = own_body
    if body.is_mysql:
        body.server.admin(f"ALTER USER {body.server.user} WITH MAX_USER_CONNECTIONS 2")
    else:
        body.server.admin(f"ALTER ROLE {body.server.user} CONNECTION LIMIT 2")

    async def main() -> None:
        async with body.pool(max_size=6) as pool:
            conns = [await pool.acquire() for _ in range(2)]
            waiter = asyncio.create_task(pool.acquire())
            began = time.monotonic()
            await body.until(lambda: pool.stats().connect_failures >= 5)
            assert time.monotonic() - began > 0.2
            assert pool.stats().away_for == 0.0  # the server lets others in
            assert not waiter.done()
            await pool.release(conns.pop())
            conns.append(await asyncio.wait_for(waiter, 2.0))
            for conn in conns:
                await pool.release(conn)

    body.run(main())


# -- a server that does not answer -----------------------------------------------------------------


def test_a_frozen_server_holds_nobody_longer_than_the_time_given(own_body: Any) -> None:
    body = own_body

    async def main() -> None:
        async with body.pool(max_size=2, connect_timeout=1.0) as pool:
            await body.fill(pool, 2)
            body.server.freeze()
            try:
                started = time.monotonic()
                errors = await asyncio.gather(
                    *(body.outcome(use(body, pool, deadline=0.5)) for _ in range(6))
                )
                assert time.monotonic() - started < 5.0
                assert all(
                    isinstance(e, unbroken.UnbrokenError)
                    and isinstance(e, TimeoutError | unbroken.OutageError)
                    for e in errors
                ), errors
                assert any(isinstance(e, unbroken.DeadlineExceeded) for e in errors)
            finally:
                body.server.thaw()
            assert await asyncio.gather(*(use(body, pool) for _ in range(6)))
            await body.until(lambda: pool.stats().idle == pool.stats().size <= 2)
            await body.until(lambda: len(body.ids()) <= 2)
            await body.until(lambda: body.close_waits() == 0, SOON)

    body.run(main())


@pytest.mark.parametrize("way", ["connection", "run", "setting"])
def test_a_slow_statement_ends_at_the_deadline(body: Any, way: str) -> None:
    async def main() -> None:
        async with body.pool(deadline=0.3 if way == "setting" else None) as pool:

            async def work(conn: Any) -> None:
                await body.slow(conn, 20)

            async def lease(**options: Any) -> None:
                async with pool.connection(**options) as conn:
                    await work(conn)

            # the deadline is for the statement, not for a slow machine's connect
            await pool.check()
            started = time.monotonic()
            if way == "run":
                error = await body.outcome(pool.run(work, deadline=0.3))
            else:
                error = await body.outcome(lease(deadline=0.3) if way == "connection" else lease())
            assert isinstance(error, unbroken.DeadlineExceeded), error
            assert isinstance(error, TimeoutError)
            assert isinstance(error, pool._driver.errors[0])
            assert "None" not in str(error)
            assert 0.29 < time.monotonic() - started < 10.0
            assert pool.stats().closed == {"deadline": 1}
            await use(body, pool)
        # PostgreSQL sleeps on, although nobody listens
        await asyncio.to_thread(body.server.kill_sessions)

    body.run(main())


def test_a_deadline_is_not_replayed(body: Any) -> None:
    async def main() -> None:
        calls = 0
        async with body.pool(deadline=0.2) as pool:

            @unbroken.replayable
            async def work() -> None:
                nonlocal calls
                calls += 1
                async with pool.connection() as conn:
                    await body.slow(conn, 20)

            assert isinstance(await body.outcome(work()), unbroken.DeadlineExceeded)
            assert calls == 1
        await asyncio.to_thread(body.server.kill_sessions)

    body.run(main())


def test_work_that_ends_in_time_is_not_touched_by_its_deadline(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=1) as pool:
            ids = {await use(body, pool, deadline=0.2) for _ in range(5)}
            async with pool.connection() as conn:
                # the same connection, in use when those deadlines pass
                await body.slow(conn, 0.5)
                ids.add(await body.who(conn))
            assert len(ids) == 1

    body.run(main())


class _Silent:
    """A port that accepts and never says a word."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.sock.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[_Silent]:
    made = _Silent()
    yield made
    made.sock.close()


def test_a_connect_without_an_answer_is_bounded(body: Any, silent: _Silent) -> None:
    async def main() -> None:
        url = body.server.url(body.name).replace(f":{body.server.port}/", f":{silent.port}/")
        async with body.pool(url=url, connect_timeout=0.2, acquire_timeout=1.5) as pool:
            started = time.monotonic()
            errors = await asyncio.gather(*(body.outcome(pool.acquire()) for _ in range(5)))
            assert time.monotonic() - started < 4.0
            assert all(isinstance(e, unbroken.OutageError) for e in errors), errors

    body.run(main())


def test_a_statements_own_timeout_is_neither_a_loss_nor_run_again(body: Any) -> None:
    """asyncpg's ``timeout=`` and ``command_timeout``; for the others asyncio's."""

    async def main() -> None:
        calls = 0
        async with body.pool(max_size=1) as pool:

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                if body.is_asyncpg:
                    await conn.execute("SELECT pg_sleep(20)", timeout=0.1)
                else:
                    await asyncio.wait_for(body.slow(conn, 20), 0.1)

            assert type(await body.outcome(pool.run(work))) is TimeoutError
            assert calls == 1
            assert await asyncio.wait_for(pool.run(body.who), 10.0)
        await asyncio.to_thread(body.server.kill_sessions)

    body.run(main())


def test_a_statements_own_timeout_on_a_frozen_server_does_not_hang_at_the_end_of_the_block(
    own_body: Any,
) -> None:
    body = own_body
    if body.name == "psycopg":
        pytest.skip(
            "psycopg itself waits for ever: it lets no cancelled task go before its query has ended"
            " (use deadline=)"
        )

    async def main() -> None:
        async with body.pool(max_size=1) as pool:
            await use(body, pool)

            async def work() -> None:
                async with pool.connection(transaction=False) as conn:
                    body.server.freeze()
                    if body.is_asyncpg:
                        await conn.execute("SELECT 1", timeout=0.2)
                    else:
                        await asyncio.wait_for(body.who(conn), 0.2)

            try:
                started = time.monotonic()
                assert type(await body.outcome(asyncio.wait_for(work(), 9.0))) is TimeoutError
                assert time.monotonic() - started < 8.0
                assert pool.stats().used == 0
            finally:
                body.server.thaw()
            await use(body, pool)

    body.run(main())
