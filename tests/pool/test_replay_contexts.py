"""Work that a unit hands to threads, executors and tasks, on real servers: it is stored once, or
the unit is not run again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import ctypes
import multiprocessing.dummy
import queue
import threading
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

import unbroken


@pytest.fixture
def older() -> Iterator[tuple[concurrent.futures.ThreadPoolExecutor, ThreadPool]]:
    """An executor and a pool of threads whose threads are older than any unit here."""
    with (
        concurrent.futures.ThreadPoolExecutor(1) as executor,
        multiprocessing.dummy.Pool(1) as pool,
    ):
        executor.submit(int).result()
        pool.apply(int)
        yield executor, pool


def _by_thread(_older: Any, task: Callable[[], Any]) -> None:
    thread = threading.Thread(target=task)
    thread.start()
    thread.join(20)


WAYS = {
    "a thread": _by_thread,
    "an older executor": lambda older, task: older[0].submit(task).result(20),
    "an older pool of threads": lambda older, task: older[1].apply(task),
    "an empty context": lambda _, task: contextvars.Context().run(task),
    "an empty context on a thread": lambda older, task: (
        older[0].submit(contextvars.Context().run, task).result(20)
    ),
}


@pytest.mark.parametrize("how", ["lease", "acquire", "autocommit"])
@pytest.mark.parametrize("way", WAYS)
def test_a_write_that_was_committed_by_a_helper_is_stored_once(
    own_face: Any, older: Any, way: str, how: str
) -> None:
    """GET, a write by an executor that was committed, and a lost connection: two rows, if nobody
    looked.
    """
    face = own_face
    table, runs = face.table(), []
    pool = face.pool(
        face.url(autocommit="true") if how == "autocommit" and face.name != "pg8000" else None,
        max_size=3,
    )

    def write() -> None:
        if how == "acquire":
            conn = pool.acquire()
            face.do(conn, f"INSERT INTO {table} VALUES (1)")
            conn.commit()
            pool.release(conn)
        else:
            with pool.connection() as conn:
                face.do(conn, f"INSERT INTO {table} VALUES (1)")

    @unbroken.replayable
    def unit() -> None:
        runs.append(1)
        WAYS[way](older, write)
        with pool.connection() as conn:
            if len(runs) == 1:
                face.server.kill_sessions()
            face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors):
        unit()
    assert len(runs) == 1
    assert face.stored(table) == [1]


@pytest.mark.parametrize("way", WAYS)
def test_a_helper_that_lost_its_connection_is_a_reason_to_run_the_unit_again(
    own_face: Any, older: Any, way: str
) -> None:
    face = own_face
    table, runs, pool = face.table(), [], face.pool(max_size=3)

    def write() -> None:
        with pool.connection() as conn:
            face.do(conn, f"INSERT INTO {table} VALUES (1)")
            if len(runs) == 1:
                face.server.kill_sessions()
            face.ask(conn, "SELECT 1")

    @unbroken.replayable
    def unit() -> None:
        runs.append(1)
        errors: list[BaseException] = []

        def careful() -> None:
            try:
                write()
            except Exception as error:
                errors.append(error)

        WAYS[way](older, careful)
        if errors:
            raise errors[0]

    unit()
    assert len(runs) == 2
    assert face.stored(table) == [1]


def test_others_that_write_at_the_same_time_do_not_keep_a_unit_from_being_run_again(
    own_face: Any, older: Any
) -> None:
    face = own_face
    table, other, pool = face.table(), face.table(), face.pool(max_size=4)
    begun, over, runs = threading.Event(), threading.Event(), []

    def background() -> None:
        while not over.wait(0.002):
            try:
                with pool.connection() as conn:
                    face.do(conn, f"INSERT INTO {other} VALUES (1)")
            except pool._driver.errors:
                pass  # killed as well
            begun.set()

    thread = threading.Thread(target=background)
    thread.start()
    job = older[0].submit(background)
    try:
        begun.wait(20)

        def work(conn: Any) -> None:
            runs.append(1)
            face.do(conn, f"INSERT INTO {table} VALUES (1)")
            before = len(face.stored(other))
            while len(face.stored(other)) == before:
                pass
            if len(runs) == 1:
                face.server.kill_sessions()
            face.do(conn, f"INSERT INTO {table} VALUES (2)")

        pool.run(work)
    finally:
        over.set()
        thread.join(20)
        job.result(20)
    assert len(runs) == 2
    assert face.stored(table) == [1, 2]


# -- asyncio ---------------------------------------------------------------------------------------


async def _in_an_empty_context(make: Callable[[], Any]) -> None:
    await asyncio.get_running_loop().create_task(make(), context=contextvars.Context())


async def _created_in_an_empty_context(make: Callable[[], Any]) -> None:
    await contextvars.Context().run(asyncio.ensure_future, make())


async def _by_nobody(make: Callable[[], Any]) -> None:
    await asyncio.Task(make(), context=contextvars.Context())


async def _from_a_thread(make: Callable[[], Any]) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(make(), loop).result(20))


TASKS = {
    "in an empty context": _in_an_empty_context,
    "created in an empty context": _created_in_an_empty_context,
    "made by hand": _by_nobody,
    "from a thread": _from_a_thread,
}


@pytest.mark.parametrize("way", TASKS)
def test_a_write_that_was_committed_by_a_task_is_stored_once(body: Any, way: str) -> None:
    table = body.table()

    async def main() -> None:
        runs = []
        async with body.pool(max_size=3) as pool:

            async def write() -> None:
                async with pool.connection() as conn:
                    await body.do(conn, f"INSERT INTO {table} VALUES (1)")

            async def unit() -> None:
                runs.append(1)
                await TASKS[way](write)
                async with pool.connection() as conn:
                    me = await body.who(conn)
                    if len(runs) == 1:
                        await asyncio.to_thread(body.server._kill_session, me)
                        await body.until(lambda: me not in body.ids())
                    await body.who(conn)

            error = await body.outcome(unbroken.replayable(unit)())
            assert error is not None
            assert runs == [1]

    body.run(main())
    assert body.rows() == [1]


def test_tasks_that_write_beside_a_unit_do_not_keep_it_from_being_run_again(body: Any) -> None:
    table, other = body.table(), body.table("others")

    async def main() -> None:
        runs = []
        async with body.pool(max_size=3) as pool:
            began = asyncio.Event()

            async def background() -> None:
                while True:
                    async with pool.connection() as conn:
                        await body.do(conn, f"INSERT INTO {other} VALUES (1)")
                    began.set()

            async def work(conn: Any) -> None:
                runs.append(1)
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                began.clear()
                await began.wait()
                me = await body.who(conn)
                if len(runs) == 1:
                    await asyncio.to_thread(body.server._kill_session, me)
                    await body.until(lambda: me not in body.ids())
                await body.who(conn)

            tasks = [
                asyncio.create_task(background()),
                asyncio.get_running_loop().create_task(background(), context=contextvars.Context()),
            ]
            await pool.run(work)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert runs == [1, 1]

    body.run(main())
    assert body.rows() == [1]


# -- queues that a thread of a library in C feeds --------------------------------------------------


class _Native:
    """A thread that Python did not start, which puts items into a queue, as a client library's own
    threads do.
    """

    def __init__(self, feed: Callable[[], None]) -> None:
        self._feed, self.errors = feed, []
        libc = ctypes.CDLL(None)
        self._kept = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(self._go)
        self._thread = ctypes.c_ulong()
        assert libc.pthread_create(ctypes.byref(self._thread), None, self._kept, None) == 0
        self._join = libc.pthread_join

    def _go(self, _given: Any) -> None:
        try:
            self._feed()
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> None:
        self._join(self._thread, None)
        assert self.errors == []


@pytest.mark.parametrize("uses", [False, True], ids=["reads it", "uses a connection for it"])
def test_an_item_that_nobodys_thread_put_into_a_queue_is_doubted_only_where_it_is_used(
    own_face: Any, uses: bool
) -> None:
    face = own_face
    table, runs = face.table(), []
    pool = face.pool(max_size=3)
    items: queue.Queue[str] = queue.Queue()
    took: queue.SimpleQueue[str] = queue.SimpleQueue()

    def consume() -> None:
        while (item := items.get()) != "end":
            if uses:
                with pool.connection() as conn:
                    face.do(conn, f"INSERT INTO {table} VALUES (1)")
            took.put(item)

    consumer = threading.Thread(target=consume)
    consumer.start()
    begin, fed = threading.Event(), threading.Event()

    def feed() -> None:
        begin.wait(20)
        items.put_nowait("news")
        fed.set()

    native = _Native(feed)

    def work(conn: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            begin.set()
            fed.wait(20)
            took.get(timeout=20)
            face.server.kill_sessions()
        face.ask(conn, "SELECT 1")

    try:
        if uses:
            with pytest.raises(pool._driver.errors) as caught:
                pool.run(work)
            assert any(
                "it is not known whether this unit" in each for each in caught.value.__notes__
            )
        else:
            pool.run(work)
        assert len(runs) == (1 if uses else 2)
        assert face.stored(table) == ([1] if uses else [])
    finally:
        items.put("end")
        native.join()
        consumer.join(20)
