"""``@unbroken.replayable``: a function whose database work can be run again from the start when a
connection is lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from unbroken.pool import running, running_async
from unbroken.pool.callables import done, is_coroutine_function, require_eager

F = TypeVar("F", bound=Callable[..., Any])

_NAME = "@replayable"


@overload
def replayable(function: F, /) -> F: ...
@overload
def replayable(*, deadline: float | None = None, max_replays: int = 10) -> Callable[[F], F]: ...


def replayable(
    function: Any = None, /, *, deadline: float | None = None, max_replays: int = 10
) -> Any:
    """Make each call of *function* (sync or async) a unit of work.

    The call is run again from the start if a connection that it used is lost, or if the server
    asked for a retry (deadlock, serialization failure). This happens only if it is provable that
    nothing was committed. Otherwise the error is raised, with a note that gives the reason.
    *deadline*: seconds for all attempts together (None: no limit). *max_replays*: maximum number of
    replays.

    Other effects of the function, outside the database, happen again. In nested units the outermost
    one is replayed. Raises ConfigurationError for a generator, and if a call returns a coroutine or
    a generator, because their work would be done after the unit has ended.
    """
    if function is None:
        return functools.partial(replayable, deadline=deadline, max_replays=max_replays)
    if isinstance(function, (staticmethod, classmethod)):
        decorate = replayable(deadline=deadline, max_replays=max_replays)
        return type(function)(decorate(function.__func__))
    require_eager(function, _NAME)

    if is_coroutine_function(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            async def work() -> Any:
                return done(await function(*args, **kwargs), function, _NAME)

            return await running_async.run_unit_async(work, deadline, max_replays, subject=function)

        asynchronous.__unbroken_unit__ = True  # type: ignore[attr-defined]
        return asynchronous

    @functools.wraps(function)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        def work() -> Any:
            return done(function(*args, **kwargs), function, _NAME)

        return running.run_unit(work, deadline, max_replays, subject=function)

    blocking.__unbroken_unit__ = True  # type: ignore[attr-defined]
    return blocking
