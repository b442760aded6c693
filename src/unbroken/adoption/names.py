"""The names that are adopted: read without importing anything, then looked up in their modules."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.importing import exists, path_of
from unbroken.messages.units import ADOPT_CANNOT, ADOPT_NOT_A_NAME, ADOPT_NOT_FOUND


@dataclass(frozen=True, slots=True)
class Wanted:
    """One name, taken apart."""

    name: str
    module: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A function where it stands: *raw* is what the owner's dictionary has, a classmethod for
    example.
    """

    owner: Any
    attribute: str
    raw: Any
    label: str


def locate(name: object) -> Wanted:
    """Part *name* into module and path, without importing anything."""
    if not isinstance(name, str) or not is_well_formed(name):
        raise ConfigurationError(
            ADOPT_NOT_A_NAME(
                f"{shown(name)} names no function; write 'package.module:Class.method', or"
                " 'package.module:Class'"
            )
        )
    module, colon, rest = name.partition(":")
    if not colon:
        words = name.split(".")
        count = next((n for n in range(len(words), 0, -1) if exists(".".join(words[:n]))), 0)
        module, rest = ".".join(words[:count] or words[:-1]), ".".join(words[count or -1 :])
    if not exists(module):
        raise ConfigurationError(
            ADOPT_NOT_FOUND(f"{name!r}: there is no module {module!r}{_hint_of_module(module)}")
        )
    if not rest:
        raise ConfigurationError(
            ADOPT_NOT_A_NAME(
                f"{name!r} is a module; name a class or a function in it, as 'package.module:Class'"
            )
        )
    return Wanted(name, module, tuple(rest.split(".")))


def is_well_formed(name: str) -> bool:
    """Whether *name* is spelled like ``package.module:Class.method``."""
    module, colon, rest = name.partition(":")
    parts = [*module.split("."), *(rest.split(".") if colon else ())]
    return all(part.isidentifier() for part in parts)


def _hint_of_module(module: str) -> str:
    """The nearest module, in the innermost package that there is."""
    parent, _, last = module.rpartition(".")
    if parent and not exists(parent):
        return _hint_of_module(parent)
    known = {each.name for each in pkgutil.iter_modules(path_of(parent) if parent else None)}
    return _hint(last, known, f"{parent}." if parent else "")


def _hint(word: str, known: set[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {prefix + near[0]!r}?" if near else ""


# -- the objects that the names lead to ------------------------------------------------------------


def places_in(module: ModuleType, wanted: list[Wanted]) -> list[Place]:
    """The functions that *wanted* names.

    Raises ConfigurationError for the first that cannot be wrapped.
    """
    return [place for each in wanted for place in _places_of(module, each)]


def _places_of(module: ModuleType, wanted: Wanted) -> Iterator[Place]:
    owner: Any = module
    where = wanted.module
    for depth, attribute in enumerate(wanted.path):
        found = _look(owner, attribute, where, wanted.name)
        where = f"{wanted.module}:{'.'.join(wanted.path[: depth + 1])}"
        if depth + 1 < len(wanted.path):
            if not isinstance(found, type):
                raise ConfigurationError(
                    ADOPT_NOT_FOUND(f"{wanted.name!r}: {where} is {_kind(found)}, not a class")
                )
            owner = found
    if isinstance(found, type):
        yield from _methods(found, where, wanted.name)
        return
    why = _why_not(found)
    if why is not None:
        raise ConfigurationError(
            ADOPT_CANNOT(f"{wanted.name!r} cannot be a unit of work: it is {why}")
        )
    yield Place(owner, wanted.path[-1], found, where)


def _look(owner: Any, attribute: str, where: str, name: str) -> Any:
    """Return *owner*'s own *attribute*. An inherited one belongs to another class, and other
    subclasses share it.
    """
    if attribute in vars(owner):
        return vars(owner)[attribute]
    if isinstance(owner, type):
        base = next((each for each in owner.__mro__ if attribute in vars(each)), None)
        if base is not None:
            raise ConfigurationError(
                ADOPT_NOT_FOUND(
                    f"{name!r}: {where} inherits {attribute!r}; write"
                    f" {base.__module__}:{base.__qualname__}.{attribute}"
                )
            )
    elif hasattr(owner, "__getattr__"):  # a module that makes its names when they are asked for
        try:
            return getattr(owner, attribute)
        except Exception:
            pass  # not under this name
    raise ConfigurationError(
        ADOPT_NOT_FOUND(
            f"{name!r}: {where} has no {attribute!r}{_hint(attribute, set(vars(owner)))}"
        )
    )


def _methods(cls: type, where: str, name: str) -> Iterator[Place]:
    """The public methods that *cls* itself defines and that can be units."""
    _check_changeable(cls, name)
    places = [
        Place(cls, attribute, raw, f"{where}.{attribute}")
        for attribute, raw in vars(cls).items()
        if not attribute.startswith("_")
        and _why_not(raw) is None
        and not getattr(raw, "__isabstractmethod__", False)
    ]
    if not places:
        bases = ", ".join(f"{each.__module__}:{each.__qualname__}" for each in cls.__mro__[1:-1])
        raise ConfigurationError(
            ADOPT_CANNOT(
                f"{name!r} defines no public method that can be a unit of work"
                f"{bases and '; it inherits from ' + bases}"
            )
        )
    yield from places


def _check_changeable(cls: type, name: str) -> None:
    if not cls.__flags__ & (1 << 9):  # a heap type: one that a class statement made
        raise ConfigurationError(
            ADOPT_CANNOT(f"{name!r} is a class written in C, which cannot be changed")
        )


def _why_not(raw: Any) -> str | None:
    """Why *raw* cannot be a unit of work, in words; None if it can."""
    function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
    if not isinstance(function, FunctionType):
        return f"{_kind(function)}, not a function"
    inner: Any = function
    while True:
        if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
            what = "an async generator" if inspect.isasyncgenfunction(inner) else "a generator"
            return (
                what if inner is function else f"made of {what}, whose work is done after the call"
            )
        if inspect.iscoroutinefunction(inner) and not inspect.iscoroutinefunction(function):
            return "a coroutine function behind a decorator that hides it"
        if not hasattr(inner, "__wrapped__"):
            return None
        inner = inner.__wrapped__


def _kind(thing: Any) -> str:
    kind = type(thing)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
