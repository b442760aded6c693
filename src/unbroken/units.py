"""``@unbroken.replayable``: a function whose database work may be run again from the start when a
connection is lost.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from unbroken.pool import running, running_async

F = TypeVar("F", bound=Callable[..., Any])


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
    replays.
    """
    if function is None:
        return functools.partial(replayable, deadline=deadline, max_replays=max_replays)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            return await running_async.run_unit_async(
                lambda: function(*args, **kwargs), deadline, max_replays
            )

        asynchronous.__unbroken_unit__ = True  # type: ignore[attr-defined]
        return asynchronous

    @functools.wraps(function)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        return running.run_unit(lambda: function(*args, **kwargs), deadline, max_replays)

    blocking.__unbroken_unit__ = True  # type: ignore[attr-defined]
    return blocking
