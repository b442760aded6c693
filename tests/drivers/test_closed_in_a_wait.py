"""A connection that is closed while a task waits on it: the wait ends, and harms nobody whose
descriptor has the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

import pytest

from unbroken.abc import FaultKind

from .conftest import ASYNC, server_for

#: A pair of sockets is made so often, until one has the number of the closed descriptor.
PAIRS = 40


def slow(face: Any) -> str:
    return "SELECT SLEEP(8)" if face.is_mysql else "SELECT pg_sleep(8)"


async def heir(fd: int, pairs: list[socket.socket], until: float) -> tuple[Any, Any]:
    """A socket with the number *fd*, as soon as that is free, and its other end."""
    while True:
        for _ in range(PAIRS):
            ends = socket.socketpair()
            pairs += ends
            for end, other in (ends, ends[::-1]):
                if end.fileno() == fd:
                    return end, other
        for end in pairs:
            end.close()
        pairs.clear()
        assert time.monotonic() < until, "the descriptor stays open"
        await asyncio.sleep(0.01)


async def served(fd: int, pairs: list[socket.socket], wait: asyncio.Task[Any]) -> None:
    """The next owner of the number hears what it is sent, before and after the wait has ended."""
    end, other = await heir(fd, pairs, time.monotonic() + 3)
    loop, heard = asyncio.get_running_loop(), asyncio.Queue[bytes]()
    end.setblocking(False)
    loop.add_reader(fd, lambda: heard.put_nowait(end.recv(1)))
    try:
        await asyncio.wait([wait], timeout=0.3)  # psycopg looks around ten times a second
        other.send(b"x")
        assert await asyncio.wait_for(heard.get(), 2) == b"x"
    finally:
        loop.remove_reader(fd)


@pytest.mark.parametrize("name", [*sorted(ASYNC), "psycopg_async, by itself"])
def test_its_wait_ends_and_leaves_the_next_owner_of_its_number_alone(
    name: str, request: pytest.FixtureRequest, faces: Any
) -> None:
    name, _, by_itself = name.partition(",")
    waiting = faces(name, server_for(name, request))
    driver, conn = waiting.driver, waiting.connect()
    fd = driver.fileno(conn)
    pairs: list[socket.socket] = []

    async def main() -> None:
        wait = asyncio.ensure_future(waiting._execute(conn, slow(waiting)))
        await asyncio.sleep(0)
        while driver.is_quiet(conn):
            await asyncio.sleep(0.005)
        if by_itself:
            await conn.close()
        else:
            driver.close(conn)
        try:
            await served(fd, pairs, wait)
            await asyncio.wait([wait], timeout=3)
            error = wait.exception()
            assert error is not None
            assert driver.classify(error).kind is FaultKind.LOST
        finally:
            for end in pairs:
                end.close()
            wait.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await wait

    waiting.run(main())
    driver.close(conn)
    assert driver.fileno(conn) is None
