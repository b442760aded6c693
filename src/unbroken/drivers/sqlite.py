"""sqlite3, from Python's standard library: no server, no socket. A pool of it shares files, not
sessions.

A file database can have any number of connections. After a fork the child drops those it inherited
without closing them, because SQLite forbids using one across a fork.

``sqlite://`` in memory is one database per *pool*. Its connections share one cache by a private
name, since each would otherwise have an empty database of its own. The database lives as long as
one of them is open.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from unbroken.abc import Capabilities, Connection, Fault, FaultKind, Login, Target
from unbroken.backends.system import one_line, os_fault
from unbroken.drivers._base import Blocking
from unbroken.drivers._seams import PROBE, Trial
from unbroken.drivers._shared import (
    boolean,
    coerce,
    dial,
    from_connect,
    number,
    whole,
    without_target,
)
from unbroken.errors import ConfigurationError
from unbroken.ledger import scope
from unbroken.messages.configuration import OPTION_HAS_NO_PLACE

NAME = "sqlite"
SCHEMES = ("sqlite", "sqlite+pysqlite")
DISTRIBUTION = None
MODULE = "sqlite3"
TESTED = ""  # it comes with Python
RANK = 10

_ISOLATION: Mapping[str, str | None] = {
    "none": None,
    "autocommit": None,
    "deferred": "DEFERRED",
    "immediate": "IMMEDIATE",
    "exclusive": "EXCLUSIVE",
}


def _isolation(text: str) -> str | None:
    if text.lower() not in _ISOLATION:
        raise ValueError(f"one of {', '.join(_ISOLATION)}")
    return _ISOLATION[text.lower()]


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "timeout": number, "detect_types": whole, "isolation_level": _isolation,
    "cached_statements": whole, "uri": boolean, "mode": str, "cache": str, "immutable": str,
    "vfs": str, "nolock": str, "check_same_thread": boolean,
}  # fmt: skip
_URI = ("mode", "cache", "immutable", "vfs", "nolock")
_names = itertools.count(1)


class Driver(Blocking):
    """The driver for sqlite3; its methods are described in :class:`unbroken.abc.Driver`."""

    name = NAME
    capabilities = Capabilities(
        fileno=False, transaction_status=True, watchable=True, abort=False, server=False
    )

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        self.target = target or without_target(NAME, "sqlite")
        self.errors: tuple[type[BaseException], ...] = (sqlite3.OperationalError, sqlite3.Error)
        self._connect = connect
        out = coerce(self.target.options, _OPTIONS, NAME)
        self._uri = [f"{name}={out.pop(name)}" for name in _URI if name in out]
        self._file_is_uri = bool(out.pop("uri", False))
        out.pop("check_same_thread", None)
        # only one thread at a time uses it: its holder
        self._arguments: dict[str, Any] = {**out, "check_same_thread": False}
        self._memory = f"file:unbroken-{os.getpid()}-{next(_names)}?mode=memory&cache=shared"
        if self._uri and not self.target.database:
            raise ConfigurationError(
                OPTION_HAS_NO_PLACE(
                    "'sqlite://' is an in-memory database; mode=, cache= and similar options need a"
                    " file, as in 'sqlite:///file.db?mode=ro'"
                )
            )

    def connect(self, timeout: float, login: Login | None = None) -> Connection:  # noqa: ARG002
        """Open the file. A file has no *login*, and *timeout* is not used: the statement that needs
        a lock waits for it (option timeout).
        """
        return dial(self._open)

    def _open(self) -> Connection:
        if self._connect is not None:
            return self._connect()
        name, uri = self._name()
        return sqlite3.connect(name, uri=uri, factory=_Connection, **self._arguments)

    def _name(self) -> tuple[str, bool]:
        path = self.target.database
        if path is None:
            return self._memory, True
        if self._file_is_uri or path.startswith("file:"):
            return (
                path + (("&" if "?" in path else "?") + "&".join(self._uri) if self._uri else ""),
                True,
            )
        if self._uri:
            escaped = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
            return f"file:{escaped}?{'&'.join(self._uri)}", True
        return path, False

    def probe(self, conn: Connection) -> str | None:
        """Return the flaw in SQLite's traces; None: there is none."""
        with Trial(self, conn) as trial:
            conn.execute(PROBE).fetchone()
        return trial.flaw([(PROBE, not conn.in_transaction)])

    def ping(self, conn: Connection, timeout: float) -> None:  # noqa: ARG002
        """Run a statement that reads no file."""
        conn.execute("SELECT 1").fetchone()

    def begin(self, conn: Connection) -> None:
        """Do nothing: sqlite3 opens a transaction by itself before the first change."""
        conn.execute("BEGIN")

    def commit(self, conn: Connection) -> None:
        """Commit, if a transaction is open."""
        conn.commit()
        _committed(conn)

    def rollback(self, conn: Connection) -> None:
        """Roll back, if a transaction is open."""
        conn.rollback()
        _rolled_back(conn)
        _settle(conn)

    def close(self, conn: Connection) -> None:
        """Close the file."""
        _settled.pop(id(conn), None)
        try:
            conn.close()
        except Exception:
            pass

    def idle_limit(self, conn: Connection) -> float | None:  # noqa: ARG002
        """Return None: no server ends an idle connection."""
        return None

    def fileno(self, conn: Connection) -> int | None:  # noqa: ARG002
        """Return None: there is no socket."""
        return None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return whether SQLite has an open transaction."""
        try:
            return bool(conn.in_transaction)
        except Exception:  # closed
            return None

    def is_quiet(self, conn: Connection) -> bool:
        """Return True: a call has ended when it returns."""
        return self.is_in_transaction(conn) is not None

    def was_closed(self, conn: Connection) -> bool:
        """Return whether the connection is closed. Nothing but ``close()`` ends a connection to a
        file.
        """
        return self.is_in_transaction(conn) is None

    def traits(self, conn: Connection) -> Any:
        """Return how transactions begin, and how rows and text are returned."""
        try:
            return (
                conn.isolation_level,
                conn.row_factory,
                conn.text_factory,
                getattr(conn, "autocommit", None),
            )
        except Exception:  # closed
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether *conn* is in no transaction, or in an empty one if ``autocommit`` is
        False, and the traits are unchanged.
        """
        try:
            autocommit = getattr(conn, "autocommit", None)
            if traits != (conn.isolation_level, conn.row_factory, conn.text_factory, autocommit):
                return False
            return _is_untouched(conn) if autocommit is False else not conn.in_transaction
        except Exception:  # closed
            return False

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore these four attributes."""
        isolation_level, conn.row_factory, conn.text_factory, autocommit = traits
        if autocommit is not None and conn.autocommit != autocommit:
            if conn.autocommit is False:
                conn.autocommit = (
                    True  # ends the empty transaction, which the old way would leave open
                )
            conn.autocommit = autocommit
            _settle(conn)
        if conn.isolation_level != isolation_level:
            conn.isolation_level = isolation_level

    def classify(self, exc: BaseException) -> Fault:
        """Classify an error: a closed connection is LOST, a file that cannot be opened is REJECTED,
        and a locked database is left to the application to retry.
        """
        connecting, text = from_connect(exc), one_line(exc)
        code = getattr(exc, "sqlite_errorcode", None)
        if not isinstance(exc, sqlite3.Error):
            return os_fault(exc, connecting=connecting)
        if isinstance(exc, sqlite3.ProgrammingError) and "closed" in text:
            return Fault(FaultKind.LOST, None, code, text)
        return Fault(FaultKind.REJECTED if connecting else FaultKind.OTHER, None, code, text)

    def session_id(self, conn: Connection) -> str | None:  # noqa: ARG002
        """Return None: there is no server."""
        return None

    def watch(self, conn: Connection) -> None:
        """Report each statement through SQLite's own trace, those that sqlite3 sends by itself
        included.
        """
        conn.set_trace_callback(lambda sql: _tell(conn, sql))

    def unwatch(self, conn: Connection) -> None:
        """Stop the reports."""
        try:
            conn.set_trace_callback(None)
        except Exception:  # closed
            pass


class _Connection(sqlite3.Connection):
    """sqlite3's connection, which can be weakly referenced and reports the result of a COMMIT."""

    def commit(self) -> None:
        """Commit like sqlite3's connection."""
        super().commit()
        _committed(self)

    def rollback(self) -> None:
        """Roll back like sqlite3's connection."""
        super().rollback()
        _rolled_back(self)


def _tell(conn: sqlite3.Connection, sql: str) -> None:
    ledger = scope.current(id(conn))
    if ledger is None or (sql == "BEGIN" and getattr(conn, "autocommit", None) is False):
        return  # that one follows each COMMIT, before it can be reported as done
    ledger.statement(sql, not conn.in_transaction, conn_id=id(conn))


def _committed(conn: sqlite3.Connection) -> None:
    """Report that a COMMIT was executed without an error, if there was something to commit."""
    ledger = scope.current(id(conn))
    if ledger is not None:
        ledger.committed(conn_id=id(conn))


def _rolled_back(conn: sqlite3.Connection) -> None:
    ledger = scope.current(id(conn))
    if ledger is not None:
        ledger.rolled_back(conn_id=id(conn))


# -- connections with ``autocommit=False`` ---------------------------------------------------------
#
# From Python 3.12 on such a connection is always in a transaction: the next begins with the end of
# the last. It is clean if nothing was executed since a ROLLBACK. That is known as long as SQLite
# still calls the callback that was set then.


class _Executed:
    """Counts executed statements; set as a connection's trace callback."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _sql: str) -> None:
        self.count += 1


_settled: dict[int, _Executed] = {}


def _settle(conn: sqlite3.Connection) -> None:
    """Note that nothing is open on *conn*, and count executed statements from now on."""
    if getattr(conn, "autocommit", None) is False:
        executed = _settled[id(conn)] = _Executed()
        conn.set_trace_callback(executed)


def _is_untouched(conn: sqlite3.Connection) -> bool:
    """Return whether nothing was executed since.

    A statement that reads no file shows that the count is still kept.
    """
    executed: Any = _settled.get(id(conn))
    if executed is None or executed.count:
        return False
    conn.execute("SELECT 1").close()
    kept = bool(executed.count == 1)
    executed.count = 0 if kept else 1
    return kept
