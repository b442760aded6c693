"""The small apps that take part, one file each. None is imported here: each loads its packages in a
process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.contenders.base import SmallApp
from unbroken_drill.drill.steps import nearest
from unbroken_drill.messages import UNKNOWN_NAME


@dataclass(frozen=True, slots=True)
class Entrant:
    """A small app on one kind of server."""

    key: str  #: its spelling for ``--contenders``
    title: str  #: its name in the table, at most 20 characters
    backend: str
    driver: str
    made_by: str  #: ``module:Class`` below this package
    #: packages to install; a module has its package's name, except for those in _MODULES
    needs: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether it is unbroken, and must therefore keep the contract."""
        return self.key.startswith("unbroken")

    @property
    def is_green(self) -> bool:
        """Whether it works with greenlets instead of threads: not if it is written in C, nor with
        an event loop.
        """
        return self.driver in ("psycopg", "pymysql") and "mysqlclient" not in self.needs

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed here."""
        return [
            name
            for name in self.needs
            if importlib.util.find_spec(_MODULES.get(name, name)) is None
        ]

    def load(self) -> type[SmallApp]:
        """Import its class (not yet its packages) and return it."""
        module, name = self.made_by.split(":")
        found: type[SmallApp] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return found


_MODULES = {"mysqlclient": "MySQLdb", "psycopg-pool": "psycopg_pool"}
_PG, _MA = "postgresql", "mariadb"
_DRIVERS = {_PG: "psycopg", _MA: "pymysql"}  #: for apps that work with either


def _on_both(key: str, title: str, made_by: str, *needs: str) -> tuple[Entrant, ...]:
    return tuple(
        Entrant(key, title, where, driver, made_by, (driver, *needs))
        for where, driver in _DRIVERS.items()
    )


ENTRANTS: tuple[Entrant, ...] = (
    Entrant(
        "unbroken/psycopg", "unbroken psycopg", _PG, "psycopg", "unbroken:Unbroken", ("psycopg",)
    ),
    Entrant(
        "unbroken/asyncpg",
        "unbroken asyncpg",
        _PG,
        "asyncpg",
        "unbroken:UnbrokenAsync",
        ("asyncpg",),
    ),
    Entrant(
        "unbroken/pymysql", "unbroken PyMySQL", _MA, "pymysql", "unbroken:Unbroken", ("pymysql",)
    ),
    Entrant(
        "unbroken/mysqlclient",
        "unbroken mysqlclient",
        _MA,
        "mysqldb",
        "unbroken:Unbroken",
        ("mysqlclient",),
    ),
    *_on_both("unbroken/peewee", "unbroken peewee", "peewee:UnbrokenPeewee", "peewee"),
    *_on_both("one", "one connection", "one:OneConnection"),
    *_on_both("sqlalchemy", "SQLAlchemy", "sqlalchemy:SQLAlchemy", "sqlalchemy"),
    *_on_both("pre_ping", "SQLAlchemy pre_ping", "sqlalchemy:PrePing", "sqlalchemy"),
    *_on_both("dbutils", "DBUtils", "dbutils:DBUtils", "dbutils"),
    Entrant(
        "psycopg_pool",
        "psycopg_pool",
        _PG,
        "psycopg",
        "psycopg_pool:PsycopgPool",
        ("psycopg", "psycopg-pool"),
    ),
    Entrant("asyncpg", "asyncpg", _PG, "asyncpg", "asyncpg:AsyncpgPool", ("asyncpg",)),
    *_on_both("peewee", "peewee", "peewee:Peewee", "peewee"),
    *_on_both("alone/sqlalchemy", "SQLAlchemy + plugin", "sqlalchemy:Plugin", "sqlalchemy"),
    *_on_both("alone/django", "Django as it is", "django:PlainDjango", "django"),
    *_on_both("alone/peewee", "peewee without units", "peewee:PlainPeewee", "peewee"),
)

#: The contenders before a topology without ``--all``.
ON_TOPOLOGIES = (
    "unbroken/psycopg", "unbroken/asyncpg", "unbroken/pymysql", "sqlalchemy", "pre_ping", "dbutils",
    "psycopg_pool", "asyncpg",
)  # fmt: skip

#: Without ``--all``: unbroken beside the tutorials' way and the most used pools.
USUAL = ("unbroken/psycopg", "unbroken/pymysql", "one", "sqlalchemy", "pre_ping")


def find(key: str, backend: str) -> Entrant:
    """Return the entrant *key* on *backend*."""
    return next(e for e in ENTRANTS if (e.key, e.backend) == (key, backend))


def choose(names: Sequence[str], backends: Iterable[str]) -> list[Entrant]:
    """Return the entrants for *names* on *backends*, unbroken's first; ``unbroken`` means all of
    unbroken's.

    Raises ConfigurationError for a name that no contender has on any server.
    """
    keys = list(dict.fromkeys(e.key for e in ENTRANTS))
    for name in names:
        if not any(_means(name, key) for key in keys):
            raise ConfigurationError(
                UNKNOWN_NAME(
                    f"unknown contender {name!r}{nearest(name, ['unbroken', *keys])}; known:"
                    f" unbroken, {', '.join(keys)}"
                )
            )
    return [
        e
        for backend in backends
        for e in ENTRANTS
        if e.backend == backend and any(_means(name, e.key) for name in names)
    ]


def _means(name: str, key: str) -> bool:
    return name == key or key.startswith(f"{name}/")
