"""One short file per driver, and the URL that chooses among them.

A driver file describes itself, so that adding one touches nothing else. Its *module-level*
constants name the URLs that it serves and the distribution to install. Its classes ``Driver``
and/or ``AsyncDriver`` do the work. For example:

- ``NAME = "pymysql"``: the name for ``driver="pymysql"`` and ``unbroken[pymysql]``.
- ``SCHEMES = ("mysql+pymysql", "mariadb+pymysql")``: the URLs.
- ``DISTRIBUTION = "pymysql"``: the name that pip installs. None means that it is part of Python.
- ``MODULE = "pymysql"``: the module that is imported, lazily.
- ``RANK = 20``: a bare ``mysql://`` takes the installed driver with the lowest rank.

docs/adding-a-driver.md describes every constant and class.
"""

from __future__ import annotations

import codecs
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, overload

from unbroken.abc import AsyncDriver, Driver, Target
from unbroken.drivers._login import is_unicode
from unbroken.drivers.url import near, parse
from unbroken.errors import ConfigurationError, DriverNotInstalledError
from unbroken.hints import shown
from unbroken.messages.configuration import (
    DRIVER_DOES_NOT_FIT,
    DRIVER_NOT_SUPPORTED,
    NO_WAY_TO_CONNECT,
    NOT_INSTALLED,
    UNKNOWN_DRIVER,
    URL_UNREADABLE,
)

__all__ = ["Known", "file_of", "known", "open_driver"]


@dataclass(frozen=True, slots=True)
class Known:
    """A driver for which a file exists.

    ``sync`` and ``asynchronous`` tell which kinds of pool it serves.
    """

    name: str
    schemes: tuple[str, ...]
    distribution: str | None
    module: str
    rank: int
    file: str
    sync: bool
    asynchronous: bool

    @property
    def installed(self) -> bool:
        """Return whether its library can be imported here. Each call looks again and imports
        nothing.
        """
        try:
            return find_spec(self.module) is not None
        except (ImportError, ValueError):
            return False

    @property
    def backends(self) -> set[str]:
        """The databases that it supports: ``mysql``, ``mariadb``, ``postgresql``, ``sqlite``."""
        return {scheme.partition("+")[0] for scheme in self.schemes}

    def make(
        self, target: Target | None, connect: Callable[..., Any] | None, is_async: bool
    ) -> Driver | AsyncDriver:
        """Return the driver object for one pool."""
        cls = getattr(import_module(self.file), "AsyncDriver" if is_async else "Driver")
        driver: Driver | AsyncDriver = cls(target, connect)
        return driver


@cache
def known() -> tuple[Known, ...]:
    """Return every driver, best first: each module of this folder that has SCHEMES."""
    found = []
    for entry in pkgutil.iter_modules(__path__):
        if entry.name.startswith("_") or entry.name == "url":
            continue
        module = import_module(f"{__name__}.{entry.name}")
        found.append(
            Known(
                module.NAME,
                module.SCHEMES,
                module.DISTRIBUTION,
                module.MODULE,
                module.RANK,
                module.__name__,
                sync=hasattr(module, "Driver"),
                asynchronous=hasattr(module, "AsyncDriver"),
            ),
        )
    return tuple(sorted(found, key=lambda each: (each.rank, each.name)))


Connect: TypeAlias = Callable[[], Any]


@overload
def open_driver(
    url: str | Target | None = None,
    *,
    is_async: Literal[False] = False,
    connect: Connect | None = None,
    driver: str | None = None,
) -> Driver: ...
@overload
def open_driver(
    url: str | Target | None = None,
    *,
    is_async: Literal[True],
    connect: Connect | None = None,
    driver: str | None = None,
) -> AsyncDriver: ...


def open_driver(
    url: str | Target | None = None,
    *,
    is_async: bool = False,
    connect: Connect | None = None,
    driver: str | None = None,
) -> Driver | AsyncDriver:
    """Return the driver for one pool. *url* (text or Target) chooses it, or *driver* names it for
    the caller's own *connect*.

    *connect* takes no argument and returns a new connection of the library that *driver* names
    (async: an awaitable of one). A bare ``mysql://`` or ``postgresql://`` takes the best driver
    that is installed; *driver* may also narrow it. Raises ConfigurationError, or
    DriverNotInstalledError with the command that installs it. No I/O.
    """
    target = url if url is None or isinstance(url, Target) else parse(url)
    if target is None and connect is None:
        raise ConfigurationError(
            NO_WAY_TO_CONNECT(
                "the pool has no way to connect; give a database URL, or connect= with driver= (if"
                " the URL is None, is its environment variable set?)"
            )
        )
    if connect is not None and not callable(connect):
        raise ConfigurationError(
            NO_WAY_TO_CONNECT(
                f"connect={type(connect).__name__} must be a callable that returns a new connection"
            )
        )
    if driver is not None and not isinstance(driver, str):
        raise ConfigurationError(
            UNKNOWN_DRIVER(f"driver={shown(driver)} must be a string; {_names(is_async)}")
        )
    if target is None and driver is None:
        raise ConfigurationError(
            NO_WAY_TO_CONNECT(
                f"connect= needs driver=, the name of its library; {_names(is_async)}"
            )
        )
    chosen = _named(driver, target) if driver is not None else _by_scheme(target, is_async)  # type: ignore[arg-type] # not None here
    _check(chosen, is_async)
    codecs.lookup(
        "idna"
        # Imported now and not by the first connects, on threads. A fork during that import would
        # hang its child there.
    )
    made = chosen.make(target, connect, is_async)
    _check_password(made, chosen.name)
    return made


def _check_password(driver: Any, name: str) -> None:
    secret = driver.target.password
    if secret is None or is_unicode(secret) or driver.sends_latin:
        return
    raise ConfigurationError(
        URL_UNREADABLE(
            "the password in the URL is not UTF-8 after its %-escapes are decoded, but the driver"
            f" {name} sends passwords only as UTF-8; set a password that is UTF-8"
            + (", or use pymysql, aiomysql or asyncmy" if driver.target.backend in _MYSQL else "")
        )
    )


_MYSQL = ("mysql", "mariadb")


#: Common other names of some drivers.
_ALIASES = {
    "mysqldb": "mysqlclient", "mariadbconnector": "mariadb",
    "mysql-connector-python": "mysqlconnector", "psycopg3": "psycopg", "psycopg_async": "psycopg",
    "sqlite3": "sqlite", "pysqlite": "sqlite",
}  # fmt: skip


def file_of(name: str) -> str:
    """Return the name of a driver's file here, given SQLAlchemy's or another common name of the
    driver.
    """
    return _ALIASES.get(name.lower(), name.lower())


def _named(name: str, target: Target | None) -> Known:
    wanted = file_of(name)
    for each in known():
        if each.name == wanted:
            if target is not None and target.backend not in each.backends:
                serves = ", ".join(sorted(each.backends))
                raise ConfigurationError(
                    DRIVER_DOES_NOT_FIT(
                        f"driver={name!r} does not support {target.backend}; it supports {serves}"
                    )
                )
            return each
    raise ConfigurationError(
        UNKNOWN_DRIVER(f"unknown driver {name!r}; {near(name, [each.name for each in known()])}")
    )


def _by_scheme(target: Target, is_async: bool) -> Known:
    scheme = target.scheme.replace("postgres+", "postgresql+")
    if "+" not in scheme and target.backend != "sqlite":
        return _best(target.backend, is_async)
    for each in known():
        if scheme in each.schemes:
            return each
    here = [each for each in known() if target.backend in each.backends and _serves(each, is_async)]
    names = ", ".join(repr(_scheme(each, target.backend)) for each in here)
    raise DriverNotInstalledError(
        DRIVER_NOT_SUPPORTED(
            f"unbroken does not support the driver of {scheme}:// yet; use {names}"
        )
    )


def _best(backend: str, is_async: bool) -> Known:
    fitting = [each for each in known() if backend in each.backends and _serves(each, is_async)]
    for each in fitting:
        if each.installed:
            return each
    kind = "async driver" if is_async else "driver"
    others = ", ".join(each.name for each in fitting[1:])
    raise DriverNotInstalledError(
        NOT_INSTALLED(
            f"no {kind} for {backend} is installed; {_pip(fitting[0])}"
            + (f" (or one of: {others})" if others else "")
        )
    )


def _check(chosen: Known, is_async: bool) -> None:
    if not _serves(chosen, is_async):
        backend = sorted(chosen.backends)[-1]
        others = [
            each for each in known() if chosen.backends & each.backends and _serves(each, is_async)
        ]
        names = ", ".join(repr(_scheme(each, backend)) for each in others) or "there is none yet"
        kind, pool = (
            ("blocking", "AsyncPool needs an async one")
            if is_async
            else ("async", "Pool needs a blocking one (or use AsyncPool)")
        )
        raise ConfigurationError(
            DRIVER_DOES_NOT_FIT(
                f"{chosen.name} is {'a' if kind == 'blocking' else 'an'} {kind} driver, but {pool}:"
                f" {names}"
            )
        )
    if not chosen.installed:
        raise DriverNotInstalledError(
            NOT_INSTALLED(f"the driver {chosen.name} is not installed; {_pip(chosen)}")
        )


def _serves(each: Known, is_async: bool) -> bool:
    return each.asynchronous if is_async else each.sync


def _scheme(each: Known, backend: str) -> str:
    return next((s for s in each.schemes if s.startswith(backend)), each.schemes[0]) + "://"


def _pip(each: Known) -> str:
    return f'pip install "unbroken[{each.name}]"'


def _names(is_async: bool) -> str:
    return "use one of " + ", ".join(each.name for each in known() if _serves(each, is_async))
