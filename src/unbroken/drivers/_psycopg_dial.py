"""How psycopg connects, within one time limit over all addresses and without leaving a socket open;
and how an exchange below it is carried out in time."""

from __future__ import annotations

import math
import selectors
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from functools import cache
from typing import Any

from unbroken.net.fork_guard import abort, identity

_until: ContextVar[float] = ContextVar("unbroken_connect_until", default=math.inf)


def within(timeout: float, make: Callable[[], Any]) -> Any:
    token = _until.set(time.monotonic() + timeout)
    try:
        return make()
    finally:
        _until.reset(token)


_asked: ContextVar[list[Any] | None] = ContextVar("unbroken_connect_asked", default=None)


async def open_bounded(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A connection of *kind*.

    Its socket is shut down where that fails: a generator that was left lives as long as its
    traceback.
    """
    asked: list[Any] = []  # what psycopg's generator waits for: a descriptor, and for what
    token = _asked.set(asked)
    try:
        return await bounded(kind).connect(*args, **kwargs)
    except BaseException:
        fd = asked[0][0] if asked and isinstance(asked[0], tuple) else -1
        who = identity(fd) if isinstance(fd, int) and fd >= 0 else None
        if who is not None:
            abort(fd, who)
        raise
    finally:
        _asked.reset(token)


@cache
def bounded(base: Any) -> Any:
    """*base* whose ``connect`` obeys one deadline over all its attempts. What it makes is a plain
    *base*.

    psycopg waits at least 2 s, for each address anew. Its waiting loop wakes the generator ten
    times a second, so that a generator around it can look at the clock.
    """
    import psycopg

    class Bounded(base):  # type: ignore[misc] # the base is only known here
        @classmethod
        def _connect_gen(cls, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            inner = base._connect_gen(*args, **kwargs)
            until, ready, asked = _until.get(), None, _asked.get()
            try:
                while True:
                    if time.monotonic() >= until:
                        raise psycopg.errors.ConnectionTimeout("connection timeout expired")
                    wanted = inner.send(ready)
                    if asked is not None:
                        asked[:] = [wanted]
                    ready = yield wanted
            except StopIteration as done:
                return done.value
            finally:
                inner.close()

    return Bounded


def drive(pgconn: Any, exchange: Generator[Any, Any, Any], timeout: float, late: Any) -> Any:
    """Carry out *exchange* within *timeout* seconds, or raise what *late* gives."""
    try:
        want = exchange.send(next(exchange))  # what it waits for has come already, most often
        until = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:  # gevent's own where it has patched
            key = selector.register(pgconn.socket, want)
            while True:
                if key.events != want:
                    key = selector.modify(pgconn.socket, want)
                ready = selector.select(max(0.0, until - time.monotonic()))
                if not ready:
                    raise late()
                want = exchange.send(ready[0][1])
    except StopIteration as done:
        return done.value
