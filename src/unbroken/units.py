"""``@unbroken.replayable``: a function whose database work may be run again from the start when a
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
    """Make calls of *function* (sync or async) units of work.

    When a connection that it used is lost, or the server asked to try again (deadlock,
    serialization failure), and it is provable that nothing was committed, the call is run again
    from the start; else the error is raised, with a note that says why. *deadline*: seconds for all
    attempts together (None: no bound); *max_replays*: how often at most.

    What the function does besides its database work happens again too. Nested units: the outermost
    replays. Raises ConfigurationError for a generator, and when a call returns a coroutine or a
    generator: their work would be done after the unit has ended.
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
