"""Single moments of the slow paths, each set up on purpose in the simulated world."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.brain.entry import Entry
from unbroken.errors import (
    ConnectRejectedError,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    UnbrokenError,
)
from unbroken.ledger import questions
from unbroken.pool.leaks import reclaim
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Flow, Wait, run, run_async
from unbroken.sync import Pool
from unbroken_drill.fake import FakeDriver
from unbroken_drill.fake_server import Mode

from .simulation import Connection, World, installed

UNREACHABLE = Fault(FaultKind.UNREACHABLE, None, 110, "timed out")


@pytest.fixture
def world() -> Iterator[World]:
    world = World(1)
    world.interrupts, world.latency, world.stuck, world.server.max_connections = 0.0, 0.0, 0.0, 100
    gc.disable()
    try:
        with installed(world):
            yield world
    finally:
        gc.enable()


def do(world: World, work: Callable[[], Any], within: float = 60.0) -> Any:
    """Run *work* as a thread of the world until it ends; its result, or what it raised."""
    results: list[Any] = []

    def thread() -> None:
        try:
            results.append((work(), None))
        except Exception as error:
            results.append((None, error))

    world.start(thread, "test")
    assert world.run(lambda: bool(results), within), "it never ended"
    result, error = results[0]
    if error is not None:
        raise error
    return result


def pass_time(world: World, seconds: float) -> None:
    world.run(lambda: False, seconds)


def use(pool: Pool) -> None:
    with pool.connection() as conn:
        conn.execute("INSERT", 1)


def hold(world: World, pool: Pool, seconds: float) -> None:
    """A thread takes a connection for so long, and does not mind its end."""

    def thread() -> None:
        conn = pool.acquire()
        world.wait(lambda: False, world.clock.now + seconds)
        pool.release(conn)

    world.start(thread, "holder")
    pass_time(world, 0.0)


def test_deaths_in_use_teach_nothing_about_idleness(world: World) -> None:
    pool = world.new_pool()
    for _ in range(3):
        hold(world, pool, 10.0)
        pass_time(world, 5.0)
        # without a word, as by a balancer's limit on long requests
        world.server.kill_sessions(None)
        pass_time(world, 10.0)
    limit = pool._state.server.limit
    assert limit.learned is None
    assert pool.stats().closed == {Cause.CLOSED_BY_PEER.value: 3}


def test_deaths_while_idle_teach_where_the_server_says_that_it_was_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> list[tuple[float]]:
        return [(world.clock.now + 100.0,)]

    monkeypatch.setitem(questions._TEXTS, ("fake", questions.Question.UPTIME), "UPTIME")
    monkeypatch.setattr(FakeDriver, "ask", ask, raising=False)
    pool = world.new_pool()
    for _ in range(3):
        do(world, lambda: use(pool))
        pass_time(world, 5.0)
        world.server.kill_sessions(None)
        pass_time(world, 1.0)
    do(world, lambda: use(pool))
    assert pool._state.server.limit.learned == pytest.approx(5.0, rel=0.1)
    assert pool._state.policy.idle_limit == pytest.approx(5.0, rel=0.1)


def test_deaths_teach_nothing_where_the_server_cannot_be_asked(world: World) -> None:
    pool = world.new_pool()
    for _ in range(5):
        do(world, lambda: use(pool))
        pass_time(world, 5.0)
        world.server.kill_sessions(None)
        pass_time(world, 1.0)
    assert pool._state.server.limit.learned is None


def test_what_one_pool_is_told_of_the_server_all_its_pools_know(world: World) -> None:
    world.server.idle_limit = 3.0
    first, second = world.new_pool(), world.new_pool()
    do(world, lambda: use(first))
    do(world, lambda: use(second))
    assert first._state.policy.idle_limit == second._state.policy.idle_limit == 3.0


def test_an_attempt_that_fails_late_does_not_speak_of_a_server_that_answered_since(
    world: World,
) -> None:
    """One attempt hangs until its time is up; others, begun later, succeeded."""
    pool = world.new_pool(connect_timeout=5.0, outage_wait=2.0)
    do(world, lambda: use(pool))
    pass_time(world, 10.0)
    state = pool._state
    assert (
        state.server.outage.failed(
            state, world.clock.now - 11.0, world.clock.now, UNREACHABLE, state.random
        )
        is False
    )
    assert not state.server.outage.active


def test_what_was_being_opened_during_a_drain_is_replaced_too(world: World) -> None:
    """It may have been opened to the server that is drained away from."""
    pool = world.new_pool()
    world.server.mode = Mode.UNREACHABLE
    hold(world, pool, 1.0)
    pass_time(world, 0.5)
    pool.drain()
    world.server.up()
    pass_time(world, 0.1)
    (entry,) = pool._state.kernel.entries.values()
    assert entry.generation == pool._state.kernel.generation
    # others had begun beside the silent one
    assert pool.stats().closed == {Cause.DRAINED.value: len(world.server.attempts) - 1}


def test_upkeep_goes_on_after_a_moment_without_threads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = world.new_pool(max_idle=2.0)
    do(world, lambda: use(pool))
    runtime, refused = pool._state.runtime, []
    spawn = runtime.spawn

    def refuse(flow: Any, name: str) -> None:
        if name == "upkeep" and len(refused) < 3:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        spawn(flow, name)

    monkeypatch.setattr(runtime, "spawn", refuse)
    pass_time(world, 20.0)
    assert len(refused) == 3
    assert pool.stats().size == 0, "idle for longer than max_idle, and nobody closed it"


def test_a_moment_without_threads_does_not_lose_a_place_for_connectors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = world.new_pool()
    runtime, refused = pool._state.runtime, []
    spawn = runtime.spawn

    def refuse(flow: Any, name: str) -> None:
        if len(refused) < 2:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        spawn(flow, name)

    monkeypatch.setattr(runtime, "spawn", refuse)
    do(world, lambda: use(pool))
    pass_time(world, 1.0)
    assert pool._state.connectors == 0


def test_an_answer_left_unread_is_no_word_of_the_servers_end(world: World) -> None:
    pool = world.new_pool()
    state: PoolState = pool._state
    conn: Connection = do(world, pool.acquire)
    world.net.unread.add(conn.fd)
    entry = state.kernel.in_use[conn.address]
    state.take_back(entry, conn, healthy=False)
    assert pool.stats().closed == {Cause.RESET_FAILED.value: 1}


@pytest.mark.parametrize("by_lease", [False, True])
def test_a_connection_given_back_while_its_end_is_being_explained_is_lent_to_nobody(
    by_lease: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = world.new_pool()
    state: PoolState = pool._state
    lease = pool.connection()
    conn: Connection = do(world, lease.__enter__ if by_lease else pool.acquire)
    explain = PoolState.explain

    def give_back_meanwhile(self: PoolState, entry: Entry, **how: bool) -> tuple[Cause, str]:
        said = explain(self, entry, **how)
        if state.kernel.in_use:
            lease.__exit__(None, None, None) if by_lease else pool.release(conn)
        return said

    monkeypatch.setattr(PoolState, "explain", give_back_meanwhile)
    monkeypatch.setattr(world.net, "watch", lambda *_: None)
    world.net.callbacks.clear()
    world.server.kill_sessions()
    do(world, lambda: state.ended(next(iter(state.kernel.entries.values()))))
    assert not state.kernel.idle
    assert do(world, pool.acquire).session.open


def test_a_connection_that_ends_before_it_has_its_place_is_lent_to_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks at all sockets at that moment, and finds a dead one that is nobody's yet."""
    adopt = PoolState.adopt
    adopted: list[Entry] = []

    def end_at_once(self: PoolState, conn: Connection, generation: int | None = None) -> Entry:
        adopted.append(adopt(self, conn, generation))
        if len(adopted) == 1:
            conn.session.end()
            self.close_hung_up()
        return adopted[-1]

    monkeypatch.setattr(PoolState, "adopt", end_at_once)
    pool = world.new_pool(min_size=1)
    assert world.run(lambda: bool(pool._state.kernel.idle), 1.0)
    assert do(world, pool.acquire).session.open


def test_a_connection_given_back_while_it_is_about_to_be_reclaimed_takes_no_other_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder drops it at that moment, and the next connection comes to stand where it stood in
    memory.
    """
    addresses = count()
    monkeypatch.setattr(
        world,
        "new_address",
        lambda: world.free_addresses.pop() if world.free_addresses else next(addresses),
    )
    pool = world.new_pool(max_size=1)
    state: PoolState = pool._state
    held: list[Connection] = [do(world, pool.acquire)]
    (entry,) = state.kernel.in_use.values()
    abort = PoolState.abort

    def give_back_meanwhile(self: PoolState, entry: Entry, uses: int, cause: Cause) -> bool:
        ended = abort(self, entry, uses, cause)
        pool.release(held.pop())
        held.append(pool.acquire())
        return ended

    monkeypatch.setattr(PoolState, "abort", give_back_meanwhile)
    do(world, lambda: reclaim(state, entry, entry.uses))
    (conn,) = held
    assert list(state.kernel.in_use) == [conn.address]
    pool.release(held.pop())
    assert pool.stats().idle == 1


def test_who_comes_when_the_server_has_just_come_back_is_served(world: World) -> None:
    """Although the outage is old, and nobody has waited for a while."""
    pool = world.new_pool(outage_wait=0.5)
    world.server.mode = Mode.REFUSING
    with pytest.raises(OutageError):
        do(world, lambda: use(pool))
    for _ in range(20):
        pass_time(world, 3.3)
        world.server.up()
        do(world, lambda: use(pool))
        world.server.crash()
        with pytest.raises(OutageError):
            do(world, lambda: use(pool))


def test_a_refused_password_is_told_although_there_was_an_outage_before(world: World) -> None:
    pool = world.new_pool(outage_wait=0.5)
    world.server.mode = Mode.REFUSING
    for _ in range(5):
        with pytest.raises(OutageError):
            do(world, lambda: use(pool))
    world.server.reject()
    pass_time(world, 0.5)  # the next attempt is told
    for _ in range(5):
        with pytest.raises(ConnectRejectedError):
            do(world, lambda: use(pool))
    assert pool.stats().away_for == 0.0, "the server answers: it is not away"


def test_callers_of_a_second_pool_do_not_wait_for_the_first_ones_leisure(world: World) -> None:
    """The prober of the server belongs to a pool for which nobody waits."""
    first, second = world.new_pool(), world.new_pool(acquire_timeout=30.0, outage_wait=30.0)
    world.server.mode = Mode.REFUSING
    with pytest.raises(OutageError):
        do(world, lambda: use(first))
    pass_time(world, 5.0)
    done: list[float] = []
    world.start(lambda: (use(second), done.append(world.clock.now)), "caller")
    pass_time(world, 3.0)
    world.server.up()
    back = world.clock.now
    assert world.run(lambda: bool(done), 5.0)
    assert done[0] - back < 0.05


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("patience", [0.5, 5.0])
def test_the_first_success_follows_the_servers_return_though_all_attempts_under_way_are_stuck_for_good(  # noqa: E501
    world: World, size: int, patience: float
) -> None:
    world.stuck = 1.0
    pool = world.new_pool(
        max_size=size, connect_timeout=patience, outage_wait=30.0, acquire_timeout=30.0
    )
    do(world, lambda: use(pool))
    for away in (0.1, 0.7, 2.3, 4.1, 6.6):
        world.server.mode = Mode.UNREACHABLE
        world.server.kill_sessions()
        done: list[float] = []
        world.start(lambda done=done: (use(pool), done.append(world.clock.now)), "caller")
        pass_time(world, away)
        world.server.up()
        back = world.clock.now
        assert world.run(lambda done=done: bool(done), 10.0)
        # every fourth is given more time where there is room for one only
        most = 0.3 if size > 1 else 2.0 + 0.3
        assert done[0] - back < most


def test_never_more_attempts_than_there_are_places(world: World) -> None:
    world.stuck = 1.0
    pool = world.new_pool(max_size=2, outage_wait=30.0, acquire_timeout=30.0)
    world.server.mode = Mode.UNREACHABLE
    for _ in range(5):
        world.start(lambda: use(pool), "caller")
    most = 0
    for _ in range(100):
        pass_time(world, 0.1)
        most = max(most, pool._state.kernel.size)
        assert len(pool._state.tries) == pool._state.kernel.opening
    assert most == 2


class Opened:
    """What a step gave."""


def test_an_error_does_not_keep_alive_what_the_same_worker_opened_before() -> None:
    """Errors are kept for long: as the cause of what callers are told.

    A forgotten connection must still be seen to go.
    """
    seen: list[weakref.ref[Opened]] = []
    errors: list[Exception] = []

    def flow() -> Flow[None]:
        seen.append(weakref.ref((yield Wait(None, 1.0))))
        try:
            yield Wait(None, 2.0)
        except ValueError as error:
            errors.append(error)

    def do(step: Wait) -> Opened:
        if step.timeout == 1.0:
            return Opened()
        raise ValueError("refused")

    async def do_later(step: Wait) -> Opened:
        return do(step)

    run(flow(), do)
    asyncio.run(run_async(flow(), do_later))
    assert len(errors) == 2
    assert [ref() for ref in seen] == [None, None]


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("reject", ConnectRejectedError),
        ("down", OutageError),
        ("", PoolTimeoutError),
        ("close", PoolClosedError),
    ],
)
def test_an_error_keeps_nothing_of_its_caller_alive_once_it_was_handled(
    trouble: str, told: type[UnbrokenError], world: World
) -> None:
    """Without a collection: the caller may have had a connection that somebody else has now, and
    forgets.
    """
    pool = world.new_pool(max_size=1, acquire_timeout=0.5, outage_wait=0.2)
    if trouble in ("reject", "down"):
        getattr(world.server, trouble)()
    else:
        hold(world, pool, 10.0)
    seen: list[weakref.ref[Opened]] = []

    def ask() -> None:
        mine = Opened()
        seen.append(weakref.ref(mine))
        pool.acquire()

    def caller() -> None:
        with pytest.raises(told):
            ask()

    world.start(caller, "caller")
    pass_time(world, 0.1)
    if trouble == "close":
        pool.close(timeout=0.0)
    pass_time(world, 2.0)
    assert [ref() for ref in seen] == [None]
