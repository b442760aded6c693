"""Connects and forks keep out of each other's way; neither can hang the other."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from unbroken.net import forks
from unbroken.net.forks import Connecting


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.001)


@contextmanager
def thread(work: Callable[[], None]) -> Iterator[None]:
    runner = threading.Thread(target=work, daemon=True)
    runner.start()
    yield
    runner.join(20)
    assert not runner.is_alive()


def under_way(thread: int) -> list[float]:
    """When the connects of *thread* began that are under way. (Earlier tests' pools may have some,
    too.)
    """
    return [since for each, since in forks._connects.copy().values() if each == thread]


def in_child(look: Callable[[], bool]) -> bool:
    """What *look* sees in a child that is forked now: a picture of this moment."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if look() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_waits_for_the_connects_of_other_threads_and_holds_new_ones_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 30.0)
    log: list[str] = []
    inside, asking = threading.Event(), threading.Event()

    def first() -> None:
        with Connecting():
            inside.set()
            asking.wait(20)
            time.sleep(0.05)  # if the second were not held back, it would be in now
            log.append("the first connected")

    def second() -> None:
        until(lambda: forks._forks)
        asking.set()
        with Connecting():
            log.append("the second began")

    with thread(first), thread(second):
        inside.wait(20)
        assert in_child(lambda: log == ["the first connected"])
    assert log == ["the first connected", "the second began"]
    assert threading.get_native_id() not in forks._forks


def test_a_connect_that_hangs_holds_up_one_fork_for_a_moment_and_later_ones_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 1.0)
    inside, answer = threading.Event(), threading.Event()
    who: list[int] = []

    def hang() -> None:
        with Connecting():
            who.append(threading.get_native_id())
            inside.set()
            answer.wait(60)

    with thread(hang):
        inside.wait(20)
        (since,) = under_way(who[0])
        assert in_child(lambda: time.monotonic() >= since + forks.PATIENCE)
        began = time.monotonic()
        assert in_child(lambda: time.monotonic() < began + forks.PATIENCE)
        assert under_way(who[0]) == [since]
        answer.set()


def test_a_thread_that_forks_while_it_connects_does_not_wait_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 60.0)
    began = time.monotonic()

    def look() -> bool:
        if forks._connects or forks._forks:
            return False
        with Connecting():  # nor does its child, nor the child's own
            return in_child(lambda: not forks._connects)

    with Connecting():
        assert in_child(look)
    assert time.monotonic() - began < forks.PATIENCE


def test_an_error_or_a_cancellation_ends_a_connect_as_well() -> None:
    with pytest.raises(OSError, match="refused"), Connecting():
        raise OSError("refused")

    async def main() -> None:
        async def connect() -> None:
            async with Connecting():
                await asyncio.sleep(60)

        task = asyncio.create_task(connect())
        await asyncio.sleep(0)
        assert len(under_way(threading.get_native_id())) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert under_way(threading.get_native_id()) == []


def test_a_task_waits_for_another_threads_fork_without_stopping_its_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 30.0)
    log: list[str] = []
    inside, ticked = threading.Event(), threading.Event()

    def first() -> None:
        with Connecting():
            inside.set()
            ticked.wait(20)

    async def connect() -> None:
        async with Connecting():
            log.append("the task began")

    async def main() -> None:
        while not forks._forks:
            await asyncio.sleep(0.001)
        task = asyncio.create_task(connect())
        for _ in range(20):
            await asyncio.sleep(0.001)
        ticked.set()
        await task

    with thread(first):
        inside.wait(20)
        with thread(lambda: asyncio.run(main())):
            assert in_child(lambda: log == [])
    assert log == ["the task began"]


def test_a_fork_waits_for_a_task_whose_loop_goes_on_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its second connect is not held back: a blocking one, as SQLAlchemy makes them, would stop the
    first.
    """
    monkeypatch.setattr(forks, "PATIENCE", 30.0)
    log: list[str] = []
    inside = threading.Event()

    async def first() -> None:
        async with Connecting():
            inside.set()
            while not forks._forks:
                await asyncio.sleep(0.001)
            with Connecting():
                log.append("the second")
            log.append("the first")

    with thread(lambda: asyncio.run(first())):
        inside.wait(20)
        assert in_child(lambda: log == ["the second", "the first"])
