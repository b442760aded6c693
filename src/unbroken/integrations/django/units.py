"""Views and other functions as units of work, whose connections Django's wrappers hold."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import connections

from unbroken.integrations.django.request_body import Body, longest, request_in
from unbroken.ledger.scope import current
from unbroken.pool import running, running_async
from unbroken.pool.callables import done, is_coroutine_function, require_eager

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_NAME = "@replayable"


def give_back() -> None:
    """Return the connections that this thread's wrappers hold outside ``atomic``: an attempt is
    over, or about to begin.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


async def give_back_async() -> None:
    """Do the same as :func:`give_back`, for the thread that sync code of this task runs on."""
    await sync_to_async(give_back, thread_sensitive=True)()


def attempt(work: Callable[[], T]) -> T:
    """Run one attempt. If it fails, nothing of it stays open."""
    try:
        return work()
    except Exception:
        give_back()
        raise


async def attempt_async(work: Callable[[], Awaitable[T]]) -> T:
    """Do the same as :func:`attempt`."""
    try:
        return await work()
    except Exception:
        await give_back_async()
        raise


@overload
def replayable(function: F, /) -> F: ...
@overload
def replayable(*, deadline: float | None = None, max_replays: int = 10) -> Callable[[F], F]: ...


def replayable(
    function: Any = None, /, *, deadline: float | None = None, max_replays: int = 10
) -> Any:
    """:func:`unbroken.replayable` for Django's connections: for any function, and for a view with
    any method.

    Under the middleware, a view that is marked so is run again by the middleware, including
    everything between them. Elsewhere the function is a unit of work by itself. Within ``atomic``
    it is part of that block, and is not run again. Raises ConfigurationError as that does.
    """
    if function is None:
        return functools.partial(replayable, deadline=deadline, max_replays=max_replays)
    require_eager(function, _NAME)
    if iscoroutinefunction(function) or is_coroutine_function(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            times, rewind = _again(args, max_replays)

            async def once() -> Any:
                rewind()
                return done(await function(*args, **kwargs), function, _NAME)

            return await running_async.run_unit_async(
                lambda: attempt_async(once), deadline, times, subject=function
            )

        asynchronous.unbroken_replayable = True  # type: ignore[attr-defined] # read by the middleware
        return asynchronous

    @functools.wraps(function)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        times, rewind = _again(args, max_replays)

        def once() -> Any:
            rewind()
            return done(function(*args, **kwargs), function, _NAME)

        return running.run_unit(lambda: attempt(once), deadline, times, subject=function)

    blocking.unbroken_replayable = True  # type: ignore[attr-defined] # read by the middleware
    return blocking


def _again(args: tuple[Any, ...], max_replays: int) -> tuple[int, Callable[[], None]]:
    """Return how often a call may be run again, and a function to call before each attempt.

    A view reads its request, so it runs again only if the body can be kept. Inside another unit
    (the middleware's) the outermost one handles that.
    """
    request = request_in(args)
    unit = current()
    if request is None or (unit is not None and not unit.observing):
        return max_replays, _nothing
    body = Body.of(request, longest())
    return (0, _nothing) if body is None else (max_replays, body.rewind)


def _nothing() -> None:
    """Do nothing before an attempt that reads no request."""
