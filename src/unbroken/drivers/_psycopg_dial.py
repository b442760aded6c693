"""How psycopg connects within one time limit over all addresses and without leaving a socket open,
and how an exchange below it is completed in time.
"""

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
    """Open a connection of *kind*.

    Its socket is shut down if that fails, because an abandoned generator lives as long as its
    traceback.
    """
    # the events that psycopg's generator waits for: a descriptor, and the kind of event
    asked: list[Any] = []
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
    """Return a subclass of *base* whose ``connect`` has one deadline over all its attempts. It
    makes plain *base* connections.

    psycopg waits at least 2 s, for each address again. Its waiting loop runs the generator ten
    times a second, so that a generator around it can check the clock.
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
    """Carry out *exchange* within *timeout* seconds, or raise the result of *late*."""
    try:
        want = exchange.send(next(exchange))  # the awaited data is usually already there
        until = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:  # gevent's own if it has patched
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
