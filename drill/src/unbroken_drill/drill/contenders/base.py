"""The interface of a small app, and its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Rows, Unit

#: The same for every contender: seconds that a request may wait for a connection, and seconds for
#: one attempt to connect.
ACQUIRE_TIMEOUT: Final = 5.0
CONNECT_TIMEOUT: Final = 5

# the outcome of a request
OK: Final = "ok"
ERROR: Final = "error"  # an exception that the user sees
WRONG: Final = "wrong"  # an answer, but not the right one
DOUBT: Final = "doubt"  # a lost COMMIT, correctly reported as unknown
TOLD: Final = "told"  # the deadline was set, and kept: the caller got its error in time


@dataclass(frozen=True, slots=True)
class Settings:
    """A scenario's settings for the pools. All pools get the size; the other settings apply to
    pools that have them. Times are seconds.
    """

    size: int = 10
    deadline: float | None = None
    leak_after: float = 60.0
    reclaim: bool = False


class SmallApp(ABC):
    """One way to reach the database, set up as its documentation recommends. Many threads use
    it.
    """

    @abstractmethod
    def __init__(self, where: Where, settings: Settings) -> None:
        """Make the pool. It need not connect."""

    @abstractmethod
    def work(self, unit: Unit) -> Rows:
        """Run *unit* as one request does: take a connection, work, commit, return it."""

    @abstractmethod
    def take(self, unit: Unit) -> Any:
        """Run *unit* on a connection that is never returned. Returns the object that keeps it
        alive.
        """

    def after_fork(self) -> None:  # noqa: B027 - most documentations say nothing
        """In a forked child, do what the documentation recommends there."""

    @abstractmethod
    def close(self) -> None:
        """Close everything."""

    def outcome(self, error: BaseException) -> str:
        """Return the meaning of *error* for the user."""
        del error
        return ERROR


def driver_arguments(where: Where, driver: str) -> dict[str, Any]:
    """Return keywords for the ``connect`` of psycopg, PyMySQL or mysqlclient."""
    name = "dbname" if driver == "psycopg" else "database"
    return {
        "host": where.host, "port": where.port, "user": where.user,
        "password": where.password_now(),
        name: where.database,
    }  # fmt: skip
