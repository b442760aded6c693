"""MongoDB alone and as a replica set of one, shared by the tests of a file; and a fork that Python
does not see.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from unbroken_drill.servers import MongoDB

#: The C library's own fork: what uWSGI calls. None of Python's fork hooks runs.
raw_fork: Callable[[], int] = ctypes.PyDLL(None).fork


@pytest.fixture(scope="module")
def alone() -> Iterator[MongoDB]:
    with MongoDB() as server:
        yield server


@pytest.fixture(scope="module")
def of_one() -> Iterator[MongoDB]:
    with MongoDB(replica_set="one") as server:
        yield server


@pytest.fixture
def name() -> str:
    """A database of the test's own."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """What is entered here is closed after the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=[raw_fork, os.fork], ids=["raw fork", "os.fork"])
def fork(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def child() -> Callable[..., str]:
    return in_child


@pytest.fixture
def children() -> Callable[..., list[str]]:
    return in_children


@pytest.fixture
def start_children() -> Callable[..., Callable[[], list[str]]]:
    return started


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., float]:
    return until


def in_child(
    work: Callable[[], Any], fork: Callable[[], int] = raw_fork, timeout: float = 30.0
) -> str:
    """Do *work* in a forked child; what it returned, as text, or AssertionError with what it
    raised.
    """
    return in_children([work], fork, timeout)[0]


def in_children(
    works: list[Callable[[], Any]], fork: Callable[[], int] = raw_fork, timeout: float = 30.0
) -> list[str]:
    """As :func:`in_child`, each in a child of its own, all at once."""
    return started(works, fork, timeout)()


def started(
    works: list[Callable[[], Any]], fork: Callable[[], int] = raw_fork, timeout: float = 30.0
) -> Callable[[], list[str]]:
    """As :func:`in_children`; what is given waits for them."""
    children = [_forked(work, fork) for work in works]

    def answers() -> list[str]:
        try:
            return [_answer(reader, pid, timeout) for reader, pid in children]
        finally:
            for reader, _ in children:
                os.close(reader)

    return answers


def _forked(work: Callable[[], Any], fork: Callable[[], int]) -> tuple[int, int]:
    """A child that runs, and where its answer can be read.

    A raw fork may copy the interpreter's own lock while a thread waits for it that the child has
    not: such a child never runs, whatever it would do. It is forked again.
    """
    for _ in range(5):
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            _tell(work, writer)
        os.close(writer)
        if select.select([reader], [], [], 5)[0] and os.read(reader, 1) == b"!":
            return reader, pid
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(reader)
    raise AssertionError("five children never ran")


def _contend() -> None:
    """Have threads take the interpreter's lock from each other for a moment."""
    end = time.monotonic() + 0.05

    def spin() -> None:
        while time.monotonic() < end:
            pass

    threads = [threading.Thread(target=spin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _tell(work: Callable[[], Any], writer: int) -> None:
    told = "never said"
    try:
        _contend()
        os.write(writer, b"!")
        told = f"ok {work()}"
    except BaseException:
        told = traceback.format_exc()
    finally:
        os.write(writer, told.encode()[:60000])
        os._exit(0)


def _answer(reader: int, pid: int, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise AssertionError(f"the child did not end within {timeout} s")
        time.sleep(0.005)
    told = os.read(reader, 65536).decode()
    assert told.startswith("ok "), told
    return told[3:]


def until(condition: Callable[[], Any], timeout: float = 20.0) -> float:
    """Wait for *condition*; how long it took. What it raises counts as not yet."""
    started, last = time.monotonic(), None
    while time.monotonic() < started + timeout:
        try:
            if condition():
                return time.monotonic() - started
        except Exception as error:
            last = error
        time.sleep(0.005)
    print(last, file=sys.stderr)
    raise AssertionError(f"not within {timeout} s")
