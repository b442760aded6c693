"""Check the function of a unit of work. A function that would do its work after the unit has ended
is refused before it runs. If only its result shows that, it is refused then, and its transaction
rolled back.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from types import CodeType, FunctionType
from typing import Any

from unbroken.errors import ConfigurationError
from unbroken.messages.units import NOT_A_UNIT

_LAZY = "its work would begin only after the unit of work has ended; collect the rows in a list"
_BLOCKS = "which a blocking pool cannot await; use AsyncPool, or give it a plain function"


def is_coroutine_function(function: Any) -> bool:
    """Whether a call of *function* certainly returns a coroutine. That includes partials, and
    objects with an ``async def __call__``.
    """
    return _is(function, _gives_coroutine)


def _gives_coroutine(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or _is_types_coroutine(function)


def _is_types_coroutine(function: Any) -> bool:
    """Whether ``types.coroutine`` turned a generator function into a coroutine function."""
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) and not _is_types_coroutine(function)


def _is(function: Any, test: Any) -> bool:
    """Whether *test* holds for *function* itself, inside partials, or for an object's
    ``__call__``.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        return False  # a call makes an object
    return bool(test(function) or test(getattr(function, "__call__", None)))  # noqa: B004 - what it is, not whether it is


#: Flags of functions whose work is done after the call.
_LATER = (
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


def _is_plain(function: Any) -> bool:
    """Whether *function* is certainly a plain function. Called at every run of a unit."""
    return (
        type(function) is FunctionType
        and not function.__code__.co_flags & _LATER
        and not function.__dict__  # which may mark it as a coroutine function
    )


def named(function: Any) -> str:
    """*function* by its name, file and line."""
    while isinstance(function, functools.partial):
        function = function.func
    inner = function if hasattr(function, "__qualname__") else type(function)
    name = getattr(inner, "__qualname__", repr(inner))
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None and not isinstance(function, type):
        code = getattr(vars(type(function)).get("__call__"), "__code__", None)
    if not isinstance(code, CodeType):  # a mock's is a mock
        return str(name)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})"


def require_blocking(function: Any, what: str) -> None:
    """Raise ConfigurationError if *what* (``Pool.run()``) cannot run *function*, which must be a
    plain function.
    """
    if _is_plain(function):
        return
    if is_coroutine_function(function):
        raise ConfigurationError(
            NOT_A_UNIT(f"{what} cannot run {named(function)}: it is an async def, {_BLOCKS}")
        )
    require_eager(function, what)


def require_eager(function: Any, what: str) -> None:
    """Raise ConfigurationError if *function* is no function, or one that does its work after the
    call: a generator.
    """
    given = _lazy(function)
    if given is not None:
        _close(function)
        raise ConfigurationError(
            NOT_A_UNIT(
                f"{what} was given {given}, which is the result of a call; pass the function"
                " itself, followed by its arguments"
            )
        )
    if not callable(function):
        raise ConfigurationError(
            NOT_A_UNIT(
                f"{what} needs a function, but was given an object of type"
                f" {type(function).__name__}"
            )
        )
    for test, words in (
        (inspect.isasyncgenfunction, "an async generator"),
        (_is_generator, "a generator"),
    ):
        if _is(function, test):
            raise ConfigurationError(
                NOT_A_UNIT(f"{what} cannot run {named(function)}: it is {words}, and {_LAZY}")
            )


def done(value: Any, function: Any, what: str) -> Any:
    """Return *value*, the result of *function*. Raises ConfigurationError if it is work that was
    not done yet: a coroutine or a generator, which is closed.
    """
    given = _lazy(value)
    if given is None:
        return value
    _close(value)
    why = "which was not awaited" if isinstance(value, Coroutine) else f"and {_LAZY}"
    raise ConfigurationError(NOT_A_UNIT(f"{what}: {named(function)} returned {given}, {why}"))


def awaitable(value: Any, function: Any, what: str) -> Awaitable[Any]:
    """Return *value*, the result of *function*. Raises ConfigurationError if it cannot be
    awaited.
    """
    if isinstance(value, Awaitable) or inspect.isawaitable(value):
        return value
    _close(value)
    raise ConfigurationError(
        NOT_A_UNIT(
            f"{what} needs an async def, but {named(function)} returned an object of type"
            f" {type(value).__name__}, which cannot be awaited"
        )
    )


def _lazy(value: Any) -> str | None:
    """A description of *value* if it is work that was not done yet."""
    if isinstance(value, Coroutine):
        return f"the coroutine {getattr(value, '__qualname__', type(value).__name__)}"
    if isinstance(value, Generator):
        return "a generator"
    return "an async generator" if isinstance(value, AsyncGenerator) else None


def _close(value: Any) -> None:
    """Avoid Python's warning of a coroutine that was never awaited."""
    if isinstance(value, Coroutine | Generator):
        value.close()
