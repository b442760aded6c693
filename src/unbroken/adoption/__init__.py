"""``unbroken.adopt``: units of work around methods or functions of other packages.

Each named function is wrapped in :func:`unbroken.replayable`: immediately if its module is
imported, otherwise as soon as it is. All names that one call of :func:`adopt` gives for a module
are checked first. If one of them cannot be wrapped, none is.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

from unbroken.adoption.names import Place, Wanted, locate, places_in
from unbroken.errors import ConfigurationError
from unbroken.importing import imported, is_begun, on_import
from unbroken.logs import Part
from unbroken.messages.units import (
    ADOPT_CANNOT,
    ADOPT_FAILED_LATER,
    ADOPT_IMPORTING,
    ADOPT_NOT_A_NAME,
)
from unbroken.units import replayable

log = Part("adoption")

#: Names for all that a process adopts when its first pool or engine is made, separated by commas.
VARIABLE = "UNBROKEN_UNITS"

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def adopt(*names: str, deadline: float | None = None, max_replays: int = 10) -> Adoption:
    """Make each call of a function of another package a unit of work, as
    :func:`unbroken.replayable` does.

    *names*: ``"package.module:Class.method"``, ``"package.module:function"``, or
    ``"package.module:Class"`` for all public methods that the class itself defines. A dot instead
    of the colon also works. A module that is not imported yet is not imported for this: its
    functions are wrapped as soon as it is. *deadline*: seconds for all attempts together (None: no
    limit). *max_replays*: maximum number of replays of one call.

    Returns an :class:`Adoption`, whose ``undo()`` reverts all of it. Each wrapped function is
    logged once, at INFO. Adopting the same function again changes nothing. Raises
    ConfigurationError, before anything is wrapped, for a name that does not exist, for an object
    that is not a function, and for generators. Errors in the names of a module that is imported
    later are logged then, at ERROR.
    """
    if not names:
        raise ConfigurationError(
            ADOPT_NOT_A_NAME("adopt() needs a name, such as 'package.module:Class.method'")
        )
    wanted = [locate(name) for name in names]
    adoption = Adoption(names, replayable(deadline=deadline, max_replays=max_replays))
    by_module: dict[str, list[Wanted]] = {}
    for each in wanted:
        by_module.setdefault(each.module, []).append(each)
    adoption._begin(by_module)
    return adoption


def adopt_for(units: tuple[str, ...] = (), max_replays: int = 10) -> None:
    """Adopt the names in the setting ``units`` and in the environment variable ``UNBROKEN_UNITS``,
    permanently.

    Pools and engines call this when they are created. Raises ConfigurationError as :func:`adopt`
    does.
    """
    names = (*units, *split_names(os.environ.get(VARIABLE, "")))
    if not names or (names, max_replays) in _by_settings:
        return
    _by_settings[names, max_replays] = adopt(*names, max_replays=max_replays)


def split_names(text: str) -> tuple[str, ...]:
    """The names in *text*, which separates them by commas or white space."""
    return tuple(text.replace(",", " ").split())


@dataclass(slots=True, eq=False)
class _Wrapped:
    """The wrapper that was put in a place, and the adoptions that need it."""

    place: Place
    put: Any
    holders: set[int] = field(default_factory=set)


_lock = threading.Lock()
_places: dict[
    tuple[int, str], _Wrapped
] = {}  #: every wrapper in use, by the owner's identity and the attribute
_by_settings: dict[tuple[tuple[str, ...], int], Adoption] = {}


class Adoption:
    """The effect of one call of :func:`adopt`, including modules that are imported later.

    As a context manager it is undone at the end.
    """

    def __init__(self, names: tuple[str, ...], decorate: _Decorator) -> None:
        self.names = names
        self.refused: tuple[
            str, ...
        ] = ()  #: what was wrong in modules that were imported later, in words
        self._decorate = decorate
        self._wrapped: list[_Wrapped] = []
        self._waiting: dict[str, tuple[str, ...]] = {}
        self._ends: list[Callable[[], None]] = []
        self._is_undone = False

    @property
    def wrapped(self) -> tuple[str, ...]:
        """The functions that are units of work by this adoption now, as
        ``package.module:Class.method``.
        """
        with _lock:
            return tuple(each.place.label for each in self._wrapped)

    @property
    def waiting(self) -> tuple[str, ...]:
        """The names whose modules are not imported yet."""
        with _lock:
            return tuple(name for names in self._waiting.values() for name in names)

    def undo(self) -> None:
        """Restore the original functions, and wait for no more imports.

        Functions that another adoption also wrapped stay wrapped.
        """
        for end in self._ends:
            end()
        with _lock:
            self._is_undone = True
            self._waiting.clear()
            for each in self._wrapped:
                _let_go(each, id(self))
            self._wrapped.clear()
            for key in [key for key, value in _by_settings.items() if value is self]:
                del _by_settings[key]

    def __enter__(self) -> Adoption:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _begin(self, by_module: dict[str, list[Wanted]]) -> None:
        """Wrap what is imported, all or nothing, and wait for the rest."""
        found = {
            name: places_in(module, by_module[name])
            for name in by_module
            if (module := _complete(name)) is not None
        }
        self._waiting = {
            name: tuple(each.name for each in wanted)
            for name, wanted in by_module.items()
            if name not in found
        }
        for places in found.values():
            self._put(places)
        for name, wanted in by_module.items():
            self._ends.append(on_import(name, functools.partial(self._arrived, wanted)))

    def _arrived(self, wanted: list[Wanted], module: ModuleType) -> None:
        """The module's code has run."""
        try:
            self._put(places_in(module, wanted))
        except ConfigurationError as why:
            self.refused = (*self.refused, str(why))
            log.error(
                "not wrapped",
                ADOPT_FAILED_LATER(
                    f"{why}; no function of {wanted[0].module} was made a unit of work"
                ),
                about=wanted[0].module,
            )
        finally:
            with _lock:
                self._waiting.pop(wanted[0].module, None)

    def _put(self, places: list[Place]) -> None:
        """Wrap what is in *places*: all of them, or none where one cannot be changed."""
        held: list[_Wrapped] = []
        with _lock:
            if self._is_undone:
                return
            before = set(_places.values())
            for place in places:
                try:
                    each = _hold(place, self._decorate, id(self))
                except Exception as why:
                    for each in held:
                        _let_go(each, id(self))
                    raise ConfigurationError(
                        ADOPT_CANNOT(
                            f"{place.label} cannot be changed: {type(why).__name__}: {why}"
                        )
                    ) from why
                if each is not None and each not in self._wrapped:
                    held.append(each)
            self._wrapped.extend(held)
        new = [each.place.label for each in held if each not in before]
        if new:
            log.info(
                "wrapped",
                f"each call of these functions is now a unit of work: {', '.join(new)}",
                about=new[0],
            )


def _complete(name: str) -> ModuleType | None:
    """The module if it is imported.

    Raises ConfigurationError where this thread is importing it at this moment.
    """
    module = imported(name)
    if module is None and is_begun(name):
        raise ConfigurationError(
            ADOPT_IMPORTING(
                f"{name} is being imported at this moment; adopt its functions before or after the"
                " import"
            )
        )
    return module


# -- wrapping --------------------------------------------------------------------------------------


def _hold(place: Place, decorate: _Decorator, holder: int) -> _Wrapped | None:
    """Wrap what is in *place*, unless it is a unit already. None if that is not our doing."""
    key = (id(place.owner), place.attribute)
    known = _places.get(key)
    now = vars(place.owner).get(place.attribute, place.raw)
    if known is None or known.put is not now or known.place.owner is not place.owner:
        function = now.__func__ if isinstance(now, (classmethod, staticmethod)) else now
        if hasattr(function, "__unbroken_unit__"):
            return None
        made = decorate(function)
        known = _Wrapped(place, made if function is now else type(now)(made))
        _exchange(place, now, known.put)
        _places[key] = known
    known.holders.add(holder)
    return known


def _let_go(wrapped: _Wrapped, holder: int) -> None:
    """One adoption less. The last one puts back what was there, unless others changed it since."""
    wrapped.holders.discard(holder)
    place = wrapped.place
    key = (id(place.owner), place.attribute)
    if wrapped.holders or _places.get(key) is not wrapped:
        return
    del _places[key]
    if vars(place.owner).get(place.attribute) is wrapped.put:
        _exchange(place, wrapped.put, place.raw)


def _exchange(place: Place, old: Any, new: Any) -> None:
    """Put *new* where *old* is.

    A module's function has other names in the modules that imported it from there.
    """
    setattr(place.owner, place.attribute, new)
    if isinstance(place.owner, type):
        return
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name in [name for name, value in list(vars(module).items()) if value is old]:
                setattr(module, name, new)


def _new_lock() -> None:
    """In a forked child: another thread of the parent may have had the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
