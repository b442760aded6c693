"""unbroken: database connections that do not break."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unbroken import asgi as asgi
    from unbroken import django as django
    from unbroken import flask as flask
    from unbroken import mongo as mongo
    from unbroken import peewee as peewee
    from unbroken import sqlalchemy as sqlalchemy
    from unbroken import wsgi as wsgi
    from unbroken.adoption import Adoption, adopt
    from unbroken.aio import AsyncPool
    from unbroken.brain.stats import Stats
    from unbroken.errors import (
        ClosedByHolderError,
        CommitUnknownError,
        ConfigurationError,
        ConnectionLostError,
        ConnectRejectedError,
        DeadlineExceeded,
        DriverNotInstalledError,
        NotYoursError,
        OutageError,
        PoolClosedError,
        PoolTimeoutError,
        UnbrokenError,
        WriteUnknownError,
    )
    from unbroken.pool.callers import priority
    from unbroken.settings import Settings
    from unbroken.sync import Pool
    from unbroken.units import replayable

__version__ = "0.1.0"

__all__ = [
    "Adoption",
    "AsyncPool",
    "ClosedByHolderError",
    "CommitUnknownError",
    "ConfigurationError",
    "ConnectRejectedError",
    "ConnectionLostError",
    "DeadlineExceeded",
    "DriverNotInstalledError",
    "NotYoursError",
    "OutageError",
    "Pool",
    "PoolClosedError",
    "PoolTimeoutError",
    "Settings",
    "Stats",
    "UnbrokenError",
    "WriteUnknownError",
    "adopt",
    "priority",
    "replayable",
]

_PUBLIC = (
    "adoption",
    "aio",
    "brain.stats",
    "errors",
    "pool.callers",
    "settings",
    "sync",
    "units",
)  #: the module of these names
#: Import paths for frameworks, each with the package that it needs.
_DOORS = {
    "asgi": None,
    "django": "django",
    "flask": "flask",
    "mongo": "pymongo",
    "peewee": "peewee",
    "sqlalchemy": "sqlalchemy",
    "wsgi": None,
}
_MODULES = {
    *_DOORS,
    "abc",
    "adoption",
    "aio",
    "backends",
    "brain",
    "drivers",
    "errors",
    "ledger",
    "messages",
    "net",
    "pool",
    "settings",
    "sync",
    "units",
}


def __getattr__(name: str) -> Any:
    """Import public names on first access, so that loading the package alone (as a test runner
    loads its plugin) costs nothing.

    The first public name imports them all, so that no later import happens in the middle of a fork.
    A framework's module, such as ``unbroken.flask``, is imported on its own first access.
    """
    if name in _MODULES:
        return import_module(f"unbroken.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'unbroken' has no attribute {name!r}")
    for where in _PUBLIC:
        module = import_module(f"unbroken.{where}")
        globals().update({each: vars(module)[each] for each in __all__ if each in vars(module)})
    return globals()[name]


def __dir__() -> list[str]:
    doors = (name for name, package in _DOORS.items() if package is None or _is_here(package))
    return [*__all__, "__version__", *doors]


def _is_here(package: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
