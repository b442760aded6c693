"""What a unit hands to threads, tasks, greenlets and executors stays in it; what others do
meanwhile is none of its business.
"""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import contextlib
import contextvars
import multiprocessing
import multiprocessing.dummy
import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

import anyio.to_thread
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from starlette.concurrency import run_in_threadpool

from unbroken.abc import Fault, FaultKind
from unbroken.ledger.scope import current, current_token, enter, is_left_over, leave
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Fate
from unbroken.pool import contexts, jobs

LOST = Fault(FaultKind.LOST)
assert contexts.PLACES
assert jobs.Job


@contextlib.contextmanager
def work() -> Iterator[Unit]:
    """A unit in its first attempt, on this thread or in this task."""
    unit = Unit()
    token = enter(unit)
    try:
        unit.begin_attempt()
        yield unit
    finally:
        leave(token)


def may_be_replayed(unit: Unit) -> bool:
    return unit.verdict(LOST).action is Action.REPLAY


class Worker:
    """A thread that is older than any unit here, and runs what is put into its queue."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (task := self.tasks.get()) is not None:
            self.results.put(task())

    def do(self, task: Callable[[], Any]) -> Any:
        self.tasks.put(task)
        return self.results.get(timeout=10)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.tasks.put(None)
    made.thread.join(10)


# -- handed over -----------------------------------------------------------------------------------


def in_a_thread(task: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(task()))
    thread.start()
    thread.join(10)
    return found[0]


def in_a_thread_of_its_own_class(task: Callable[[], Any]) -> Any:
    class Mine(threading.Thread):
        def run(self) -> None:
            self.found = task()

    thread = Mine()
    thread.start()
    thread.join(10)
    return thread.found


def in_a_thread_of_a_thread(task: Callable[[], Any]) -> Any:
    return in_a_thread(lambda: in_a_thread(task))


def in_a_timer(task: Callable[[], Any]) -> Any:
    found: list[Any] = []
    timer = threading.Timer(0.001, lambda: found.append(task()))
    timer.start()
    timer.join(10)
    return found[0]


def in_a_bare_thread(task: Callable[[], Any]) -> Any:
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    _thread.start_new_thread(lambda: found.put(task()), ())
    return found.get(timeout=10)


def in_a_new_executor(task: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(task).result(10)


_old = concurrent.futures.ThreadPoolExecutor(1)
_old_pool = ThreadPool(1)


def in_an_older_executor(task: Callable[[], Any]) -> Any:
    return _old.submit(task).result(10)


def in_an_executors_map(task: Callable[[], Any]) -> Any:
    return list(_old.map(lambda _: task(), [1, 2]))[1]


def in_a_process_that_is_a_thread(task: Callable[[], Any]) -> Any:
    found: list[Any] = []
    process = multiprocessing.dummy.Process(target=lambda: found.append(task()))
    process.start()
    process.join(10)
    return found[0]


def in_a_new_pool_of_threads(task: Callable[[], Any]) -> Any:
    with multiprocessing.dummy.Pool(1) as pool:
        return pool.apply(task)


def in_an_older_pool_of_threads(task: Callable[[], Any]) -> Any:
    return _old_pool.apply_async(task).get(10)


def in_its_map(task: Callable[[], Any]) -> Any:
    return _old_pool.map(lambda _: task(), [1, 2, 3])[2]


def in_its_starmap(task: Callable[[], Any]) -> Any:
    return _old_pool.starmap(lambda *_: task(), [(1, 2), (3, 4)])[1]


def in_its_imap(task: Callable[[], Any]) -> Any:
    return list(_old_pool.imap(lambda _: task(), [1, 2, 3]))[2]


def in_its_unordered_imap_of_chunks(task: Callable[[], Any]) -> Any:
    return list(_old_pool.imap_unordered(lambda _: task(), [1, 2, 3], chunksize=2))[2]


def in_an_empty_context(task: Callable[[], Any]) -> Any:
    return contextvars.Context().run(task)


def in_an_empty_context_on_a_thread(task: Callable[[], Any]) -> Any:
    return in_a_thread(lambda: contextvars.Context().run(task))


def in_an_empty_context_in_an_executor(task: Callable[[], Any]) -> Any:
    return _old.submit(contextvars.Context().run, task).result(10)


def on_a_loop_of_its_own(task: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return task()

    return asyncio.run(main())


def in_a_loop_on_a_thread(task: Callable[[], Any]) -> Any:
    return in_a_thread(lambda: on_a_loop_of_its_own(task))


def by_async_to_sync(task: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return task()

    return async_to_sync(main)()


BLOCKING = [
    in_a_thread,
    in_a_thread_of_its_own_class,
    in_a_thread_of_a_thread,
    in_a_timer,
    in_a_bare_thread,
    in_a_new_executor,
    in_an_older_executor,
    in_an_executors_map,
    in_a_process_that_is_a_thread,
    in_a_new_pool_of_threads,
    in_an_older_pool_of_threads,
    in_its_map,
    in_its_starmap,
    in_its_imap,
    in_its_unordered_imap_of_chunks,
    in_an_empty_context,
    in_an_empty_context_on_a_thread,
    in_an_empty_context_in_an_executor,
    on_a_loop_of_its_own,
    in_a_loop_on_a_thread,
    by_async_to_sync,
]


@pytest.fixture(scope="module", autouse=True)
def _warm() -> Iterator[None]:
    """The older executors have their threads before any unit."""
    _old.submit(int).result(10)
    _old_pool.apply(int)
    yield
    _old.shutdown()
    _old_pool.terminate()
    _old_pool.join()


@pytest.mark.parametrize("way", BLOCKING)
def test_work_that_a_unit_hands_over_belongs_to_it_and_what_has_ended_does_not_forbid_a_replay(
    way: Callable[..., Any],
) -> None:
    with work() as unit:
        assert way(lambda: (current(), is_left_over(), current_token() is None)) == (
            unit,
            False,
            False,
        )
        assert may_be_replayed(unit), unit.verdict(LOST).reason
        assert current() is unit


@pytest.mark.parametrize("way", BLOCKING)
def test_the_same_outside_of_units_is_in_none(way: Callable[..., Any], worker: Worker) -> None:
    assert way(current) is None
    with work() as unit:
        assert worker.do(lambda: way(current)) is None
        assert may_be_replayed(unit), unit.verdict(LOST).reason


async def in_a_task(task: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return task()

    return await asyncio.get_running_loop().create_task(main())


async def in_a_task_of_an_empty_context(task: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return task()

    return await asyncio.get_running_loop().create_task(main(), context=contextvars.Context())


async def in_a_task_created_in_an_empty_context(task: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return task()

    return await contextvars.Context().run(asyncio.get_running_loop().create_task, main())


async def in_a_group_with_an_empty_context(task: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return task()

    async with asyncio.TaskGroup() as group:
        return await group.create_task(main(), context=contextvars.Context())


async def in_an_empty_context_of_its_task(task: Callable[[], Any]) -> Any:
    return contextvars.Context().run(task)


async def in_to_thread(task: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(task)


async def in_the_default_executor(task: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, task)


async def in_an_older_executor_of_the_loop(task: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_old, task)


async def in_anyios_thread(task: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(task)


async def in_starlettes_thread(task: Callable[[], Any]) -> Any:
    return await run_in_threadpool(task)


async def by_sync_to_async(task: Callable[[], Any]) -> Any:
    return await sync_to_async(task)()


async def by_sync_to_async_anywhere(task: Callable[[], Any]) -> Any:
    return await sync_to_async(task, thread_sensitive=False)()


async def from_another_thread(task: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()

    async def main() -> Any:
        return task()

    return await asyncio.to_thread(
        lambda: asyncio.run_coroutine_threadsafe(main(), loop).result(10)
    )


async def from_a_plain_thread(task: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    async def main() -> None:
        found.set_result(task())

    thread = threading.Thread(
        target=lambda: asyncio.run_coroutine_threadsafe(main(), loop).result(10)
    )
    thread.start()
    result = await found
    await asyncio.to_thread(thread.join, 10)
    return result


async def in_a_callback(task: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()
    loop.call_soon(lambda: found.set_result(task()))
    return await found


AWAITED = [
    in_a_task,
    in_a_task_of_an_empty_context,
    in_a_task_created_in_an_empty_context,
    in_a_group_with_an_empty_context,
    in_an_empty_context_of_its_task,
    in_to_thread,
    in_the_default_executor,
    in_an_older_executor_of_the_loop,
    in_anyios_thread,
    in_starlettes_thread,
    by_sync_to_async,
    by_sync_to_async_anywhere,
    from_another_thread,
    from_a_plain_thread,
    in_a_callback,
]


def _loops() -> list[Any]:
    try:
        import uvloop
    except ImportError:
        return [None]
    return [None, uvloop.new_event_loop]


def run(main: Any, factory: Any) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


@pytest.mark.parametrize("factory", _loops(), ids=["asyncio", "uvloop"][: len(_loops())])
@pytest.mark.parametrize("way", AWAITED)
def test_work_that_a_unit_awaits_belongs_to_it(way: Callable[..., Any], factory: Any) -> None:
    async def main() -> None:
        with work() as unit:
            assert await way(lambda: (current(), is_left_over(), current_token() is None)) == (
                unit,
                False,
                False,
            )
            assert may_be_replayed(unit), unit.verdict(LOST).reason
            assert current() is unit

    run(main(), factory)


@pytest.mark.parametrize("factory", _loops(), ids=["asyncio", "uvloop"][: len(_loops())])
@pytest.mark.parametrize("way", AWAITED)
def test_the_same_beside_a_unit_is_in_none_and_does_not_concern_it(
    way: Callable[..., Any], factory: Any
) -> None:
    async def main() -> None:
        begun, over = asyncio.Event(), asyncio.Event()

        async def beside() -> Any:
            await begun.wait()
            return await way(current)

        async def inside() -> bool:
            with work() as unit:
                begun.set()
                await over.wait()
                return may_be_replayed(unit)

        other = asyncio.create_task(beside())
        one = asyncio.create_task(inside())
        assert await other is None
        over.set()
        assert await one

    run(main(), factory)


# -- left behind -----------------------------------------------------------------------------------


def test_a_thread_that_has_not_ended_forbids_a_replay() -> None:
    gate = threading.Event()
    with work() as unit:
        thread = threading.Thread(target=gate.wait, args=(10,))
        thread.start()
        assert "has not ended" in unit.verdict(LOST).reason
        gate.set()
        thread.join(10)
        assert may_be_replayed(unit)


def test_a_job_that_has_not_ended_or_not_begun_forbids_a_replay() -> None:
    gate = threading.Event()
    with work() as unit:
        first = _old.submit(gate.wait, 10)
        second = _old.submit(int)
        assert not may_be_replayed(unit)
        second.cancel()
        assert not may_be_replayed(unit)
        gate.set()
        first.result(10)
        assert may_be_replayed(unit)


@pytest.mark.parametrize("way", BLOCKING)
def test_code_inside_a_job_does_not_take_that_for_something_left_behind(
    way: Callable[..., Any],
) -> None:
    with work() as unit:
        assert way(lambda: (may_be_replayed(unit), unit.fate())) == (True, Fate.NOTHING)


def test_a_job_of_a_pool_of_threads_that_has_not_ended_forbids_a_replay() -> None:
    gate = threading.Event()
    with work() as unit:
        result = _old_pool.apply_async(gate.wait, (10,))
        assert not may_be_replayed(unit)
        gate.set()
        result.get(10)
        gate.clear()
        results = _old_pool.imap(lambda _: gate.wait(10), [1, 2])
        assert not may_be_replayed(unit)
        gate.set()
        assert list(results) == [True, True]
        assert may_be_replayed(unit)


def test_a_thread_that_could_not_be_started_forbids_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("can't start new thread")

    for name in ("_start_new_thread", "_start_joinable_thread"):
        monkeypatch.setattr(threading, name, refuse, raising=False)
    with work() as unit:
        with pytest.raises(RuntimeError, match="start"):
            threading.Thread(target=int).start()
        assert may_be_replayed(unit)


def test_an_executor_that_was_filled_inside_a_unit_serves_others_afterwards() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with work() as unit:
            assert executor.submit(current).result(10) is unit
            assert may_be_replayed(unit)
        assert executor.submit(current).result(10) is None
        assert executor.submit(current_token).result(10) is None
        with work() as another:
            assert executor.submit(current).result(10) is another


def test_a_thread_that_lives_on_after_the_unit_is_in_none() -> None:
    gate, found = threading.Event(), []
    with work():
        thread = threading.Thread(
            target=lambda: found.extend([gate.wait(10), current(), is_left_over(), current_token()])
        )
        thread.start()
    gate.set()
    thread.join(10)
    assert found == [True, None, False, None]


def test_threads_do_not_live_for_ever_through_the_job_that_they_refer_to() -> None:
    import gc
    import weakref

    gc.disable()
    try:
        with work():
            thread = threading.Thread(target=int)
            thread.start()
            thread.join(10)
            ref = weakref.ref(thread)
            del thread
            assert ref() is None
    finally:
        gc.enable()


# -- others ----------------------------------------------------------------------------------------


def test_a_thread_that_is_older_than_the_unit_does_not_concern_it(worker: Worker) -> None:
    with work() as unit:
        assert worker.do(current) is None
        assert worker.do(lambda: contextvars.Context().run(current)) is None
        assert may_be_replayed(unit)


def test_a_thread_that_nobody_saw_start_forbids_the_replay_of_every_unit_once() -> None:
    """As one that a library in C starts."""
    start = _thread.start_new_thread.__wrapped__  # type: ignore[attr-defined] # the first unit wrapped it
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    gates = [threading.Event(), threading.Event()]

    def foreign() -> None:
        for gate in gates:
            gate.wait(10)
            found.put(current())

    with work() as unit:
        start(foreign, ())
        gates[0].set()
        assert found.get(timeout=10) is None
        assert "it is not known whether this unit started" in unit.verdict(LOST).reason
    with work() as another:
        gates[1].set()
        assert found.get(timeout=10) is None
        assert may_be_replayed(another)


def test_a_task_whose_creator_cannot_be_told_forbids_the_replay_of_the_loops_units() -> None:
    async def main() -> None:
        async def look() -> Unit | None:
            return current()

        with work() as unit:
            assert await asyncio.Task(look(), context=contextvars.Context()) is None
            assert "it is not known whether this unit started" in unit.verdict(LOST).reason

    asyncio.run(main())


def test_a_task_that_was_begun_before_the_units_does_not_concern_them() -> None:
    async def main() -> None:
        begun, over = asyncio.Event(), asyncio.Event()

        async def background() -> Unit | None:
            await begun.wait()
            found = current()
            over.set()
            return found

        task = asyncio.create_task(background(), context=contextvars.Context())
        with work() as unit:
            begun.set()
            await over.wait()
            assert may_be_replayed(unit)
        assert await task is None

    with work():
        pass  # tasks are followed from the first unit on
    asyncio.run(main())


# -- queues ----------------------------------------------------------------------------------------


class Consumer:
    """A thread that is older than any unit here, and works on what is put into its queue, as
    applications have them.
    """

    def __init__(self, tasks: Any) -> None:
        self.tasks = tasks
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (item := self.tasks.get()) != (9, None):
            self.results.put(item[1]())

    def do(self, task: Callable[[], Any]) -> Any:
        self.tasks.put((5, task))
        return self.results.get(timeout=10)


@pytest.mark.parametrize("kind", [queue.Queue, queue.PriorityQueue, queue.LifoQueue])
def test_an_older_thread_works_in_the_unit_that_put_its_work_into_a_queue(
    kind: Any, worker: Worker
) -> None:
    with work():
        pass  # queues are followed from the first unit on
    consumer = Consumer(kind())
    assert consumer.do(current) is None
    with work() as unit:
        assert consumer.do(lambda: (current(), current_token() is None)) == (unit, False)
        assert worker.do(lambda: consumer.do(current)) is None  # somebody else's work
        assert consumer.do(lambda: (current(), is_left_over())) == (unit, False)
        assert may_be_replayed(unit)
        unit.begin_attempt()
        assert consumer.do(is_left_over) is False
    assert consumer.do(lambda: (current(), current_token())) == (None, None)
    with work() as another:
        assert consumer.do(current) is another
    consumer.tasks.put((9, None))
    consumer.thread.join(10)


FIRST_UNIT = """
import queue, sys, threading, time
from unbroken.pool import contexts, jobs
from unbroken.ledger.scope import current, enter, leave
from unbroken.ledger.unit import Unit

tasks, found = getattr(queue, sys.argv[1])(), []

def consume():
    for _ in range(2):
        tasks.get()[1]()

def look(done):
    found.append(current())
    done.set()

thread = threading.Thread(target=consume)
thread.start()
deadline = time.monotonic() + 10
while not tasks.not_empty._waiters:
    assert time.monotonic() < deadline
    time.sleep(0.001)
for _ in range(2):
    unit, done = Unit(), threading.Event()
    token = enter(unit)
    unit.begin_attempt()
    tasks.put((5, lambda: look(done)))
    assert done.wait(10)
    leave(token)
    assert found.pop() is unit
thread.join()
assert contexts.PLACES
assert jobs.Job
"""


@pytest.mark.parametrize("kind", ["Queue", "PriorityQueue", "LifoQueue"])
def test_a_thread_that_waited_at_a_queue_before_the_first_unit_works_in_that_unit(
    kind: str,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_UNIT, kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_queue_of_the_applications_own_kind_is_followed_too() -> None:
    class Newest(queue.Queue[Any]):
        def _get(self) -> Any:
            return self.queue.pop()

    class Counting(queue.Queue[Any]):
        taken = 0

        def _get(self) -> Any:
            self.taken += 1
            return super()._get()

    for kind in (Newest, Counting):
        consumer = Consumer(kind())
        with work() as unit:
            assert consumer.do(current) is unit
        assert consumer.do(current) is None
        consumer.tasks.put((9, None))
        consumer.thread.join(10)


def test_a_queue_remembers_nothing_of_what_was_taken_out_or_never_went_in() -> None:
    tasks: queue.Queue[Any] = queue.Queue(2)
    with work():
        for item in (None, None):
            tasks.put(item)
        with pytest.raises(queue.Full):
            tasks.put_nowait(None)
    for _ in range(2):
        tasks.get()
    tasks.put(None)
    tasks.get()
    assert tasks.__dict__["_unbroken_tags"]._by_item == {}


def test_an_older_task_works_in_the_unit_that_put_its_work_into_a_queue() -> None:
    async def main() -> None:
        tasks: asyncio.Queue[Any] = asyncio.Queue()
        results: asyncio.Queue[Any] = asyncio.Queue()

        async def consume() -> None:
            while (task := await tasks.get()) is not None:
                await results.put(task())

        async def do(task: Callable[[], Any]) -> Any:
            await tasks.put(task)
            return await results.get()

        consumer = asyncio.create_task(consume())
        assert await do(current) is None
        with work() as unit:
            assert await do(current) is unit
            assert current() is unit
            assert may_be_replayed(unit)
        assert await do(lambda: (current(), current_token())) == (None, None)
        await tasks.put(None)
        await consumer

    asyncio.run(main())


def test_code_of_a_unit_that_gets_from_a_queue_stays_in_it() -> None:
    results: queue.Queue[int] = queue.Queue()
    with work():
        results.put(1)
    results.put(2)
    with work() as unit:
        assert (results.get(), results.get()) == (1, 2)
        assert current() is unit


# -- processes -------------------------------------------------------------------------------------


def test_another_process_forbids_a_replay() -> None:
    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def start() -> None:
        process = multiprocessing.get_context("spawn").Process(target=int)
        process.start()
        process.join(30)

    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as executor:
        assert executor.submit(int).result(30) == 0
        for way in (fork, start, lambda: executor.submit(int).result(30)):
            with work() as unit:
                way()
                assert unit.verdict(LOST).reason == "work was handed to another process"


def test_a_program_that_is_run_does_not_forbid_a_replay() -> None:
    with work() as unit:
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert may_be_replayed(unit)


# -- greenlets -------------------------------------------------------------------------------------

GEVENT = """
    import sys
    from gevent import monkey
    if sys.argv[1] == "patched":
        monkey.patch_all()
    import gevent, gevent.pool, gevent.threadpool, contextvars
    from unbroken.pool import contexts  # noqa: F401
    from unbroken.abc import Fault, FaultKind
    from unbroken.ledger.scope import enter, leave, current
    from unbroken.ledger.unit import Unit
    from unbroken.ledger.verdicts import Action

    def verdict(unit):
        return unit.verdict(Fault(FaultKind.LOST))

    older, told = gevent.event.Event(), []
    def background():
        older.wait()
        told.append(current())
    gevent.spawn(background)
    gevent.sleep(0)
    token = enter(Unit())
    older.set()
    gevent.sleep(0.01)
    assert told == [None]
    assert verdict(token.unit).action is Action.REPLAY
    leave(token)

    threads = gevent.get_hub().threadpool
    ways = {
        "spawn": lambda task: gevent.spawn(task).get(),
        "spawn_later": lambda task: gevent.spawn_later(0.001, task).get(),
        "pool": lambda task: gevent.pool.Pool(2).apply(task),
        "nested": lambda task: gevent.spawn(lambda: gevent.spawn(task).get()).get(),
        "threadpool": lambda task: threads.apply(task),
        "threadpool spawn": lambda task: threads.spawn(task).get(),
        "executor": lambda task: gevent.threadpool.ThreadPoolExecutor(1).submit(task).result(),
        "empty context": lambda task: contextvars.Context().run(task),
    }
    if sys.argv[1] == "patched":
        import threading, concurrent.futures
        def thread(task):
            found = []
            t = threading.Thread(target=lambda: found.append(task()))
            t.start(); t.join()
            return found[0]
        ways["thread"] = thread
        ways["future"] = lambda task: concurrent.futures.ThreadPoolExecutor(1).submit(task).result()
    for name, way in ways.items():
        unit = Unit()
        token = enter(unit)
        unit.begin_attempt()
        assert way(current) is unit, name
        assert verdict(unit).action is Action.REPLAY, (name, verdict(unit).reason)
        leave(token)
        assert way(current) is None, name

    unit = Unit()
    token = enter(unit)
    unit.begin_attempt()
    gate = gevent.event.Event()
    left = gevent.spawn(lambda: gate.wait())
    assert "has not ended" in verdict(unit).reason
    gate.set()
    left.join()
    assert verdict(unit).action is Action.REPLAY
    found = []
    gevent.spawn_raw(lambda: found.append(current()))
    gevent.sleep(0.01)
    assert found == [None]
    assert "it is not known whether this unit started" in verdict(unit).reason
    leave(token)

    gate = gevent.event.Event()
    beside = gevent.spawn(lambda: (gate.wait(), current())[1])
    unit = Unit()
    token = enter(unit)
    unit.begin_attempt()
    gate.set()
    assert beside.get() is None
    assert verdict(unit).action is Action.REPLAY, verdict(unit).reason
    leave(token)
    print("done")
"""


@pytest.mark.parametrize("how", ["patched", "plain"])
def test_greenlets_and_gevents_threads_belong_to_the_unit_that_spawned_them(how: str) -> None:
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GEVENT), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr


def test_a_dead_weak_proxy_does_not_keep_a_unit_from_being_entered() -> None:
    script = """if True:
        import gevent, weakref
        class Thing: pass
        dead = weakref.proxy(Thing())
        kept = [dead]
        from unbroken.ledger.scope import enter, leave
        from unbroken.ledger.unit import Unit
        from unbroken.pool import contexts
        leave(enter(Unit()))
        print("entered")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "entered\n", done.stderr
