"""The settings of an application for the answers to its requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from unbroken.brain.ranks import Rank
from unbroken.errors import ConfigurationError
from unbroken.hints import nearest, remedy, shown, word_of_others
from unbroken.messages.configuration import BAD_SETTING, UNKNOWN_SETTING
from unbroken.pool.callers import rank_of
from unbroken.settings import LONGEST, MOST, Settings

#: Methods that RFC 9110, section 9.2.1, calls safe and that apps implement.
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The settings of a web integration.

    :meth:`of` builds them from keywords, with a clear error for a wrong one.
    """

    methods: Iterable[str] = SAFE
    """Requests by these methods are run again when a connection is lost and nothing was
    committed. () for none.
    """

    replay: Iterable[str] | str | Callable[[Mapping[str, Any]], bool | None] | None = None
    """Others that may be run again: path prefixes (``("/orders",)``), or a callable that is given
    the environ or scope and answers True, False, or None for what the method says."""

    priority: Mapping[str, str] | Callable[[Mapping[str, Any]], str | None] | None = None
    """Classes of callers (:func:`unbroken.priority`) by path prefixes (``{"/admin": "health",
    "/export": "background"}``, of which the longest counts), or a callable that is given the
    environ or scope and answers with a class, or None for "normal"."""

    max_body: int = 1 << 20
    """A request whose body is longer (bytes) is not run again: it would have to be kept."""

    max_replays: int = 10
    """How often one request is run again at most."""

    deadline: float | None = None
    """Seconds for all attempts of a request that may be run again. A call that still blocks then is
    interrupted.

    None: no bound.
    """

    databases: Iterable[Any] = ()
    """The pools and SQLAlchemy engines that /readyz asks, and out of which nothing stays taken
    after a request.
    """

    healthz: str | None = None
    """A path that answers 200 as long as the process does, such as "/healthz"."""

    readyz: str | None = None
    """A path that answers 200 when every one of *databases* answers, else 503, such as
    "/readyz".
    """

    ready_timeout: float = 1.0
    """Seconds that each database has for that."""

    @classmethod
    def of(cls, **given: Any) -> HttpSettings:
        """Build the settings. Raises ConfigurationError that names the setting, the value and the
        remedy.
        """
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigurationError(
                    UNKNOWN_SETTING(f"unknown setting {shown(name)}; {_hint(name, known)}")
                )
        if "methods" in given:
            given["methods"] = frozenset(
                each.upper()
                for each in _texts("methods", given["methods"], "HTTP methods such as GET")
            )
        if given.get("replay") is not None and not callable(given["replay"]):
            given["replay"] = _texts("replay", given["replay"], "paths or a callable")
        if isinstance(given.get("priority"), Mapping):
            given["priority"] = _classes(given["priority"])
        if "databases" in given:
            given["databases"] = _several(given["databases"])
        settings = cls(**given)
        _validate(settings)
        return settings

    def may_replay(self, method: str, path: str, request: Mapping[str, Any]) -> bool:
        """Return whether a request may be run again, if the ledger allows it."""
        if callable(self.replay):
            answer = self.replay(request)
            if answer is not None:
                return bool(answer)
        elif self.replay is not None and any(under(path, prefix) for prefix in self.replay):
            return True
        return method in self.methods

    def rank(self, path: str, request: Mapping[str, Any]) -> Rank | None:
        """Return the class of a request's callers; None: its surroundings decide.

        Raises ConfigurationError if the application's callable names no class.
        """
        if self.priority is None:
            return None
        if callable(self.priority):
            name = self.priority(request)
            return None if name is None else rank_of(name)
        found = [prefix for prefix in self.priority if under(path, prefix)]
        return rank_of(self.priority[max(found, key=len)]) if found else None


def _classes(given: Mapping[Any, Any]) -> Mapping[str, str]:
    """Return path prefixes and their classes. Raises ConfigurationError for a value that is
    neither.
    """
    for prefix, name in given.items():
        if not (isinstance(prefix, str) and prefix.startswith("/")):
            raise ConfigurationError(
                BAD_SETTING(
                    f"priority={shown(given)} must have keys that are paths and begin with a slash"
                )
            )
        rank_of(name)
    return dict(given)


def _texts(name: str, given: Any, what: str) -> tuple[str, ...]:
    """Return one text or several, as a tuple. Raises ConfigurationError that names *what* they
    are.
    """
    found = (given,) if isinstance(given, str) else given
    if not isinstance(found, Iterable) or isinstance(found, (bytes, bytearray)):
        found = (found,)
    found = tuple(found)
    if not all(isinstance(each, str) for each in found):
        raise ConfigurationError(BAD_SETTING(f"{name}={shown(given)} must be {what}"))
    return found


def _hint(name: str, known: Iterable[str]) -> str:
    """Return a hint for *name*, which may be a setting of the pools behind the application."""
    if nearest(name, known) is None:
        pools = next((each.name for each in fields(Settings) if each.name == name), None)
        said = f"{name} is a setting of a pool" if pools else word_of_others(name)
        if said is not None:
            return f"{said}; give it to the pool or engine, not to the application"
    return remedy(name, known)


def _several(given: Any) -> tuple[Any, ...]:
    """Return one database or several, as a tuple.

    A pool may be iterable in some sense; a list of them has no ``check``.
    """
    return tuple(given) if isinstance(given, (list, tuple, set, frozenset)) else (given,)


def _validate(s: HttpSettings) -> None:
    for name, least, most in (("max_body", 0, 1 << 40), ("max_replays", 0, MOST)):
        value = getattr(s, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(value)} must be a whole number of at least {least}")
            )
        if value > most:
            raise ConfigurationError(BAD_SETTING(f"{name}={shown(value)} must be at most {most}"))
    for name in ("deadline", "ready_timeout"):
        value = getattr(s, name)
        if value is None and name == "deadline":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigurationError(
                BAD_SETTING(
                    f"{name}={shown(value)} must be a number of seconds above"
                    f" 0{', or None' if name == 'deadline' else ''}"
                )
            )
        if LONGEST < value < math.inf:
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(value)} must be at most {LONGEST:.0f} s")
            )
    if s.priority is not None and not (isinstance(s.priority, dict) or callable(s.priority)):
        raise ConfigurationError(
            BAD_SETTING(
                f"priority={shown(s.priority)} must be a dictionary that maps paths to classes, or"
                " a callable"
            )
        )
    for name in ("healthz", "readyz"):
        value = getattr(s, name)
        if value is not None and not (isinstance(value, str) and value.startswith("/")):
            raise ConfigurationError(
                BAD_SETTING(
                    f"{name}={shown(value)} must be a path that begins with a slash, or None"
                )
            )


def under(path: str, prefix: str) -> bool:
    """Return whether *path* is *prefix* or below it: "/orders" has "/orders/7" below it, not
    "/orders-old".
    """
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")
