"""The calling context of an acquire: the class of the caller, and whether a user waits for the
answer.

Both are in a context variable, so tasks and ``asyncio.to_thread`` inherit them. A manually started
thread does not.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from contextvars import Token as ContextToken
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

from unbroken.brain.ranks import Rank
from unbroken.errors import ConfigurationError
from unbroken.hints import remedy, shown
from unbroken.messages.configuration import BAD_SETTING

F = TypeVar("F", bound=Callable[..., Any])

CLASSES: Mapping[str, Rank] = {rank.name.lower(): rank for rank in Rank}


class User(Protocol):
    """A request whose user waits for the response to begin."""

    begun: bool  #: the response has begun, or no user waits for it any more


#: The class of the callers in this context, and the request that they serve.
Caller: TypeAlias = tuple[Rank, User | None]

_caller: ContextVar[Caller] = ContextVar("unbroken_caller", default=(Rank.NORMAL, None))

#: For integrations: the caller's class and request in this context, and functions to set and reset
#: them. (C functions, so that no request pays for more.)
caller, enter, leave = _caller.get, _caller.set, _caller.reset
Token: TypeAlias = ContextToken[Caller]


def has_limit(user: User | None, target: float | None) -> bool:
    """Whether the line has a limit for a caller: *user* waits for it, or the setting *target* sets
    one for all.
    """
    waits = user is not None and not user.begun
    return target != math.inf and (waits or target is not None)


def rank_of(name: object) -> Rank:
    """The class called *name*. Raises ConfigurationError with the remedy."""
    rank = CLASSES.get(name) if isinstance(name, str) else None
    if rank is None:
        known = ", ".join(CLASSES)
        hint = remedy(name, CLASSES) if isinstance(name, str) else f"known: {known}"
        raise ConfigurationError(BAD_SETTING(f"unknown priority {shown(name)}; {hint}"))
    return rank


class priority:  # noqa: N801 - used as a function is
    """Set the class of the callers inside: ``with unbroken.priority("background"):``.

    Also a decorator for a function, ``async def`` or not. The classes are ``"health"`` (served
    first, never refused because the line is too long), ``"normal"`` and ``"background"`` (served
    last: it gets at least every tenth grant while others wait). Of nested ones, the innermost
    counts. Tasks and ``asyncio.to_thread`` inherit it; manually started threads do not.

    Raises ConfigurationError for any other name.
    """

    def __init__(self, name: str) -> None:
        self.rank = rank_of(name)
        self._token: Token | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise ConfigurationError(
                BAD_SETTING(
                    "this priority block is already entered; call unbroken.priority(…) in each with"
                )
            )
        self._token = enter((self.rank, caller()[1]))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        if token is not None:
            with suppress(ValueError):
                leave(token)

    def __call__(self, function: F) -> F:
        """Return *function* wrapped in this class."""
        name = self.rank.name.lower()
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                BAD_SETTING(
                    f"priority({shown(name)}) cannot decorate the generator"
                    f" {getattr(function, '__qualname__', function)}; use it as a with block inside"
                )
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with priority(name):
                    return await function(*args, **kwargs)

            return awaited  # type: ignore[return-value] # called as the function is

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with priority(name):
                return function(*args, **kwargs)

        return called  # type: ignore[return-value] # called as the function is
