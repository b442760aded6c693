"""``sync.py`` and ``aio.py`` do the same: same names, same parameters, same promises, same answers.

Each behaviour below is written once and played by both pools, with one driver that has both forms.
What differs on purpose stands in a table here, with its reason; any other difference fails a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import math
import pickle
import re
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import unbroken
from unbroken import abc, aio, sync
from unbroken.drivers import _base, psycopg
from unbroken.integrations.mongo.aio import AsyncMongoClient
from unbroken.integrations.mongo.client import MongoClient
from unbroken.pool import async_lease, lease, running, running_async, steps, threads
from unbroken.pool.loops import LoopRuntime
from unbroken.pool.threads import ThreadRuntime
from unbroken_drill.fake import FakeDriver, FakeServer

# -- names, parameters, words ----------------------------------------------------------------------

PAIRS = [
    (unbroken.Pool, unbroken.AsyncPool),
    (lease.Lease, async_lease.AsyncLease),
    (lease.BoundedLease, async_lease.AsyncLease),
    (ThreadRuntime, LoopRuntime),
    (abc.Driver, abc.AsyncDriver),
    (_base.Blocking, _base.Awaited),
    (psycopg.Driver, psycopg.AsyncDriver),
    (MongoClient, AsyncMongoClient),
]
FUNCTIONS = [
    (running.run_unit, running_async.run_unit_async),
    (threads.inquire, running_async.inquire_async),
    (steps.run, steps.run_async),
]

#: Names that one of the two has alone, and why.
ALONE = {
    ("ThreadRuntime", "LoopRuntime"): {
        "loop": "its event loop",
        "stop": "ends the pool's tasks before the loop ends; daemon threads need no end",
        "finalizer": (
            "a pool that is dropped without a close: a thread's pool has __del__, which may do I/O"
        ),
        "farewell": "the end of a loop",
    },
    ("Pool", "AsyncPool"): {
        "__del__": (
            "closes a pool that is dropped; on a loop a weakref.finalize does that, which may run"
            " on any thread"
        ),
    },
    ("MongoClient", "AsyncMongoClient"): {
        "aclose": "PyMongo's own second name for an awaited close"
    },
    ("Driver", "AsyncDriver"): {
        "open": (
            "psycopg's own AsyncConnection.connect waits for name resolution in a thread that"
            " cannot be ended"
        ),
        "is_async": "tells which of the two it is",
    },
}
#: The protocol of a context manager, each in its own words.
SPELLED = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
COPIES = ("__copy__", "__deepcopy__", "__reduce__", "__del__", "__repr__")


def public(cls: type) -> dict[str, Any]:
    """The public attributes of *cls* that are ours, by the names that the blocking twin gives
    them.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("unbroken"):
            named = {SPELLED.get(name, name): thing for name, thing in vars(base).items()}
            found |= {
                n: t
                for n, t in named.items()
                if not n.startswith("_") or n in (*COPIES, "__enter__", "__exit__")
            }
    return found


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter."""
    unwrapped = getattr(function, "__func__", function)
    return [
        (p.name.strip("_"), p.kind, p.default)
        for p in inspect.signature(unwrapped).parameters.values()
    ]


def errors_named(function: Any) -> set[str]:
    """The errors that a docstring promises."""
    return set(re.findall(r"\b\w+Error\b|\bDeadlineExceeded\b", function.__doc__ or ""))


def units_of(function: Any) -> set[str]:
    """The parameters that a docstring explains."""
    return set(re.findall(r"\*(\w+)\*", function.__doc__ or ""))


@pytest.mark.parametrize(
    "twins", PAIRS, ids=lambda pair: pair[0].__qualname__ + " and " + pair[1].__qualname__
)
def test_twins_have_the_same_public_names(twins: tuple[type, type]) -> None:
    blocking, awaited = map(public, twins)
    explained = ALONE.get((twins[0].__name__, twins[1].__name__), {})
    assert (set(blocking) ^ set(awaited)) - set(explained) == set()


@pytest.mark.parametrize(
    "twins", PAIRS, ids=lambda pair: pair[0].__qualname__ + " and " + pair[1].__qualname__
)
def test_twins_take_the_same_parameters_with_the_same_defaults(twins: tuple[type, type]) -> None:
    blocking, awaited = map(public, twins)
    for name in sorted(set(blocking) & set(awaited)):
        if callable(blocking[name]) and not isinstance(blocking[name], type):
            assert parameters(blocking[name]) == parameters(awaited[name]), name
    if twins[0] in (unbroken.Pool, MongoClient):
        assert parameters(twins[0].__init__) == parameters(twins[1].__init__)


@pytest.mark.parametrize("twins", FUNCTIONS, ids=lambda pair: pair[0].__qualname__)
def test_functions_that_come_in_pairs_take_the_same(twins: tuple[Any, Any]) -> None:
    assert parameters(twins[0]) == parameters(twins[1])


def test_every_public_method_that_waits_for_a_connection_or_its_server_is_awaited() -> None:
    """The rest gives its answer at once in both."""
    at_once = {"stats", "loan_of", "connection"}
    for name, method in vars(unbroken.AsyncPool).items():
        if name.startswith("_") or not callable(method):
            continue
        awaited = inspect.iscoroutinefunction(method) or "Coroutine" in str(
            inspect.signature(method).return_annotation
        )
        assert awaited is (name not in at_once), name


@pytest.mark.parametrize(
    "name",
    sorted(
        n for n in vars(unbroken.Pool) if not n.startswith("_") and callable(vars(unbroken.Pool)[n])
    ),
)
def test_what_a_method_of_one_pool_promises_the_other_promises_too(name: str) -> None:
    """A docstring either names the same errors and explains the same parameters, or refers to its
    twin's.
    """
    blocking, awaited = getattr(unbroken.Pool, name), getattr(unbroken.AsyncPool, name)
    if "unbroken.Pool." in (awaited.__doc__ or ""):
        assert f"unbroken.Pool.{name}`" in awaited.__doc__
        return
    assert errors_named(blocking) == errors_named(awaited)
    assert units_of(blocking) == units_of(awaited)


# -- one behaviour, both pools ---------------------------------------------------------------------


class Twin:
    """One of the two pools, with one face: every step is awaited, and a step of the blocking pool
    has happened by then.
    """

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.url = kind, url
        self.cls: Any = unbroken.Pool if kind == "threads" else unbroken.AsyncPool
        self.pools: list[Any] = []

    def pool(self, **settings: Any) -> Any:
        pool = self.cls(self.url, **{"name": "twin", **settings})
        self.pools.append(pool)
        return pool

    async def on(self, step: Any) -> Any:
        """The result of *step*: a value, or something to await."""
        return await step if inspect.isawaitable(step) else step

    def aside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call *function* beside this caller: on a thread, or in a task."""
        if self.kind == "threads":
            return asyncio.get_running_loop().run_in_executor(
                None, partial(function, *args, **kwargs)
            )
        return asyncio.ensure_future(function(*args, **kwargs))

    @contextlib.asynccontextmanager
    async def block(self, lease: Any) -> Any:
        """``with lease`` or ``async with lease``."""
        if self.kind == "loop":
            async with lease as conn:
                yield conn
            return
        conn = lease.__enter__()
        try:
            yield conn
        except BaseException as exc:
            lease.__exit__(type(exc), exc, exc.__traceback__)
            raise
        lease.__exit__(None, None, None)

    def work(self, sql: str, seen: list[Any] | None = None, fail: int = 0) -> Callable[..., Any]:
        """A function for ``run`` in this pool's colour: runs *sql*; its first *fail* calls raise
        ZeroDivisionError.
        """
        calls = [] if seen is None else seen

        def blocking(conn: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            conn.execute(sql)
            if len(calls) <= fail:
                raise ZeroDivisionError
            return "done"

        async def awaited(conn: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            await conn.execute(sql)
            if len(calls) <= fail:
                raise ZeroDivisionError
            return "done"

        return blocking if self.kind == "threads" else awaited

    async def ask(self, conn: Any, sql: str) -> Any:
        """The first value of the first row."""
        return (await self.on((await self.on(conn.execute(sql))).fetchone()))[0]

    async def outcome(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What *step* gave, or its error in words without numbers that differ from run to run."""
        try:
            return await self.on(step(*args, **kwargs))
        except Exception as error:
            words = re.sub(r"\d+(\.\d+)?", "N", str(error)).replace("AsyncPool", "Pool")
            # a step is called by its scene, but awaited in Twin.on
            words = re.sub(r"(held by \S+) in [\w.]+", r"\1", words)
            return (
                sorted({base.__name__ for base in type(error).__mro__}),
                words,
                error.__notes__ if hasattr(error, "__notes__") else [],
            )

    async def close(self) -> None:
        for pool in self.pools:
            await self.on(pool.close(timeout=0.0))


SCENES: dict[str, Callable[[Twin], Awaitable[Any]]] = {}


def scene(function: Callable[[Twin], Awaitable[Any]]) -> Callable[[Twin], Awaitable[Any]]:
    """A behaviour that both pools must show alike."""
    SCENES[function.__name__] = function
    return function


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        await asyncio.sleep(0.005)


def numbers(pool: Any) -> dict[str, Any]:
    """What of the statistics is the same in every run."""
    stats = pool.stats()
    names = (
        "size",
        "idle",
        "used",
        "waiting",
        "opened",
        "closed",
        "rollbacks",
        "replays",
        "timeouts",
        "max_size",
        "min_size",
    )
    return {name: getattr(stats, name) for name in names if hasattr(stats, name)}


@scene
async def an_acquire_and_a_release(twin: Twin) -> Any:
    pool = twin.pool(max_size=1)
    conn = await twin.on(pool.acquire())
    held = numbers(pool)
    twice = pool.loan_of(conn) is not None, pool.loan_of(object())
    await twin.on(pool.release(conn))
    again = await twin.outcome(pool.release, conn)
    strange = await twin.outcome(pool.release, object())
    return held, twice, again, strange, numbers(pool), repr(pool).replace("AsyncPool", "Pool")


@scene
async def a_block_that_commits_raises_or_has_no_transaction(twin: Twin) -> Any:
    pool, said = twin.pool(max_size=1), []
    async with twin.block(pool.connection()) as conn:
        await twin.on(conn.execute("CREATE TEMP TABLE t (n int)"))
    with contextlib.suppress(KeyError):
        async with twin.block(pool.connection()) as conn:
            await twin.on(conn.execute("INSERT INTO t VALUES (1)"))
            raise KeyError
    async with twin.block(pool.connection(transaction=False)) as conn:
        await twin.on(conn.execute("INSERT INTO t VALUES (2)"))
    async with twin.block(pool.connection(timeout=5, deadline=30)) as conn:
        said.append(await twin.ask(conn, "SELECT count(*) FROM t"))
    return said, numbers(pool)


@scene
async def one_lease_used_twice(twin: Twin) -> Any:
    pool = twin.pool(max_size=1)
    lease, said = pool.connection(deadline=30), []
    for _ in range(2):
        async with twin.block(lease) as conn:
            said.append(await twin.ask(conn, "SELECT 1"))
    return said, numbers(pool)


@scene
async def a_pool_that_is_full(twin: Twin) -> Any:
    pool = twin.pool(max_size=1, acquire_timeout=0.05)
    conn = await twin.on(pool.acquire(30))
    said = [
        await twin.outcome(pool.acquire),
        await twin.outcome(pool.acquire, 0.01),
        await twin.outcome(pool.run, twin.work("SELECT 1")),
    ]
    await twin.on(pool.release(conn))
    return said, numbers(pool)


@scene
async def run_with_the_settings_deadline(twin: Twin) -> Any:
    """None is the setting, also when it is said; infinity is no deadline."""
    pool = twin.pool(max_size=1, deadline=0.2)
    slow = twin.work("SELECT pg_sleep(0.6)")
    said = [
        await twin.outcome(pool.run, slow),
        await twin.outcome(pool.run, slow, deadline=None),
        await twin.outcome(pool.run, slow, deadline=0.1),
        await twin.outcome(pool.run, slow, deadline=math.inf),
        await twin.outcome(pool.run, slow, deadline=30),
    ]
    return said, numbers(pool)["replays"]


@scene
async def run_hands_on_all_but_the_deadline(twin: Twin) -> Any:
    pool, seen = twin.pool(max_size=1), []
    await twin.on(pool.run(twin.work("SELECT 1", seen), 1, "two", deadline=30, three=3))
    error = await twin.outcome(pool.run, twin.work("SELECT 1", seen, fail=2))
    return seen, error, numbers(pool)


@scene
async def run_is_replayed_after_a_kill(twin: Twin) -> Any:
    pool, calls = twin.pool(max_size=2), []

    def kills(conn: Any) -> Any:
        calls.append(conn)
        return "SELECT pg_terminate_backend(pg_backend_pid())" if len(calls) == 1 else "SELECT 7"

    if twin.kind == "threads":
        work: Any = lambda conn: conn.execute(kills(conn)).fetchone()[0]  # noqa: E731
    else:

        async def work(conn: Any) -> Any:
            return (await (await conn.execute(kills(conn))).fetchone())[0]

    return await twin.outcome(pool.run, work), len(calls), numbers(pool)["replays"]


@scene
async def a_replayable_that_is_the_outermost_unit(twin: Twin) -> Any:
    """Its fate stands in the error; the number of its replays is bounded."""
    pool, calls = twin.pool(max_size=2), []
    lost = "SELECT pg_terminate_backend(pg_backend_pid())"

    def blocking(replays: int) -> None:
        with pool.connection() as conn:
            calls.append(replays)
            conn.execute(lost if len(calls) % 4 else "SELECT 1")

    async def awaited(replays: int) -> None:
        async with pool.connection() as conn:
            calls.append(replays)
            await conn.execute(lost if len(calls) % 4 else "SELECT 1")

    work = blocking if twin.kind == "threads" else awaited
    work.__qualname__ = "work"  # what is said names it
    said = [
        await twin.outcome(unbroken.replayable(max_replays=most)(work), most) for most in (3, 1, 0)
    ]
    said += [unbroken.replayable(work).__name__ == work.__name__, unbroken.replayable(work).__doc__]
    return said, calls


@scene
async def a_replayable_inside_a_run(twin: Twin) -> Any:
    pool = twin.pool(max_size=2)
    inner = unbroken.replayable(deadline=20)(twin.work("SELECT 1"))
    return (
        await twin.outcome(pool.run, inner),
        inner.__name__ in ("blocking", "awaited"),
        numbers(pool),
    )


@scene
async def a_check_a_drain_and_a_resize(twin: Twin) -> Any:
    pool = twin.pool(max_size=3)
    conns = [await twin.on(pool.acquire()) for _ in range(2)]
    for conn in conns:
        await twin.on(pool.release(conn))
    checked = await twin.on(pool.check())
    said = [
        type(checked).__name__,
        checked.idle,
        await twin.outcome(pool.check, timeout=5) is not None,
    ]
    await twin.on(pool.resize(max_size=1))
    await until(lambda: pool.stats().idle == 1)
    said += [
        pool.settings.max_size,
        await twin.outcome(pool.resize, 0),
        await twin.outcome(pool.resize, min_size=9),
    ]
    await twin.on(pool.drain())
    await until(lambda: pool.stats().idle == 0)
    return said, numbers(pool)


@scene
async def a_pool_that_is_closed(twin: Twin) -> Any:
    pool = twin.pool(max_size=1)
    async with twin.block(pool.connection()) as conn:
        await twin.ask(conn, "SELECT 1")
    await twin.on(pool.close())
    await twin.on(pool.close())
    said = [
        await twin.outcome(pool.acquire),
        await twin.outcome(
            pool.connection().__enter__ if twin.kind == "threads" else pool.connection().__aenter__
        ),
        await twin.outcome(pool.run, twin.work("SELECT 1")),
        await twin.outcome(pool.check),
        await twin.outcome(pool.drain),
    ]
    return said, numbers(pool)


@scene
async def a_pool_that_is_a_context_manager(twin: Twin) -> Any:
    made = twin.pool(max_size=1)
    async with twin.block(made) as pool:
        same = pool is made
        async with twin.block(pool.connection()) as conn:
            await twin.ask(conn, "SELECT 1")
    return same, await twin.outcome(made.acquire)


@scene
async def a_close_while_somebody_waits_and_somebody_has_a_connection(twin: Twin) -> Any:
    pool = twin.pool(max_size=1)
    conn = await twin.on(pool.acquire())
    waiting = twin.aside(pool.acquire, 30)
    await until(lambda: pool.stats().waiting == 1)
    started = time.monotonic()
    await twin.on(pool.close(timeout=0.2))
    waited = time.monotonic() - started >= 0.2
    turned_away = await twin.outcome(lambda: waiting)
    await twin.on(pool.release(conn))
    return waited, turned_away, numbers(pool)


@scene
async def a_close_while_a_connection_is_being_reset(twin: Twin) -> Any:
    """It is waited for: what comes back in order is closed in order, with all that its holder was
    promised.
    """
    entered = threading.Event()

    def reset(_conn: Any) -> Any:
        entered.set()
        return time.sleep(0.3) if twin.kind == "threads" else asyncio.sleep(0.3)

    pool = twin.pool(max_size=1, reset=reset)
    conn = await twin.on(pool.acquire())
    releasing = twin.aside(pool.release, conn)
    await until(entered.is_set)
    await twin.on(pool.close(timeout=20))
    left = numbers(pool)
    await releasing
    return left


@scene
async def a_copy_and_a_pickle(twin: Twin) -> Any:
    pool = twin.pool()
    return (
        copy.copy(pool) is pool,
        copy.deepcopy({"pool": pool})["pool"] is pool,
        await twin.outcome(pickle.dumps, pool),
    )


@scene
async def settings_that_cannot_work(twin: Twin) -> Any:
    bad: list[dict[str, Any]] = [
        {"max_size": 0},
        {"no_such": 1},
        {"deadline": -1},
        {"min_size": 5, "max_size": 2},
    ]
    urls = ["nonsense", "postgresql+nothing://h/d", twin.url + "?max_size=x"]
    return [await twin.outcome(twin.pool, **each) for each in bad] + [
        await twin.outcome(twin.cls, url) for url in urls
    ]


@scene
async def observers_hear_the_same(twin: Twin) -> Any:
    heard: list[str] = []

    def fails(_event: str, _fields: Any) -> None:
        raise ValueError

    pool = twin.pool(
        max_size=1,
        observers=(fails, lambda event, fields: heard.append(f"{event} {sorted(fields)}")),
    )
    async with twin.block(pool.connection()) as conn:
        await twin.ask(conn, "SELECT 1")
    await twin.on(pool.close())
    return heard


@pytest.mark.parametrize("name", SCENES)
def test_both_pools_do_the_same(name: str, postgres: Any) -> None:
    seen: dict[str, Any] = {}
    for kind in ("threads", "loop"):
        twin = Twin(kind, postgres.url("psycopg"))

        async def play(twin: Twin = twin) -> Any:
            try:
                async with asyncio.timeout(60):
                    return await SCENES[name](twin)
            finally:
                await twin.close()

        seen[kind] = asyncio.run(play())
    assert seen["threads"] == seen["loop"]


# -- a ---------------------------------------------------------------------------------------------
# BEGIN of the pool's own


class Explicit(FakeDriver):
    """A driver that opens no transaction by itself.

    The first *lost* sessions end at their BEGIN.
    """

    def __init__(self, server: FakeServer, lost: int) -> None:
        super().__init__(server)
        self.capabilities = abc.Capabilities(
            implicit_begin=False, transaction_status=True, watchable=True, fileno=False
        )
        self.lost, self.begun = lost, 0

    def begin(self, conn: Any) -> None:
        self.begun += 1
        if self.begun <= self.lost:
            conn.session.end()
        super().begin(conn)


class Awaiting(Explicit):
    """The same, awaited."""

    is_async = True

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in (
            "connect",
            "ping",
            "begin",
            "commit",
            "rollback",
            "restore",
            "remember",
            "reset_session",
            "idle_limit",
            "ask",
        ):
            return found

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return found(*args, **kwargs)

        return awaited


def pool_over(driver: Any, cls: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = aio if cls is unbroken.AsyncPool else sync
    monkeypatch.setattr(module, "open_driver", lambda *_args, **_kwargs: driver)
    return cls(driver.target, max_size=1)


def test_a_connection_that_is_lost_at_the_pools_own_begin_is_replaced_unseen_in_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, other = FakeServer(), FakeServer()
    blocking, awaiting = Explicit(server, 2), Awaiting(other, 2)
    pool = pool_over(blocking, unbroken.Pool, monkeypatch)
    with pool.connection(deadline=30) as conn:
        conn.execute("INSERT", 1)
    pool.close()

    async def main() -> None:
        async with (
            pool_over(awaiting, unbroken.AsyncPool, monkeypatch) as pool,
            pool.connection(deadline=30) as conn,
        ):
            conn.execute("INSERT", 1)

    asyncio.run(main())
    assert server.rows == other.rows == [1]
    assert blocking.begun == awaiting.begun == 3
