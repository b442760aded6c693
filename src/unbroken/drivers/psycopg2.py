"""psycopg2: blocking, on libpq, written in C. It exposes its socket and its transaction status.

This driver compensates for two of its habits. In autocommit its ``commit()`` and ``rollback()`` do
nothing, even when a BEGIN was sent as text. And after a COMMIT sent as text it still treats its
transaction as open, so that no BEGIN precedes the next statement. Such a connection is rolled back
before its next holder gets it.

It has no timeout per call: a ping is bounded by the pool's ``shutdown()`` on its descriptor. Its
connect timeout is libpq's: whole seconds, at least 2, for each address of a host.

A cursor made past the connection, ``psycopg2.extensions.cursor(conn)``, is noticed by its effects
(an error, a changed transaction), not by its statements. In a unit, use ``conn.cursor()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Connection, Fault, FaultKind, Login, Target
from unbroken.backends.postgresql import is_fatal, postgres_fault
from unbroken.backends.system import os_fault
from unbroken.drivers import _postgresql
from unbroken.drivers._base import Blocking
from unbroken.drivers._psycopg2_connection import (
    IDLE,
    IN_ERROR,
    IN_TRANSACTION,
    READY,
    notice_foreign,
    reporting,
)
from unbroken.drivers._seams import PROBE, Seam, Trial, flaw_of_status
from unbroken.drivers._shared import (
    coerce,
    dial,
    from_connect,
    optional_boolean,
    seconds,
    without_target,
)
from unbroken.ledger import scope
from unbroken.ledger.residue import Left

NAME = "psycopg2"
SCHEMES = ("postgresql+psycopg2",)
DISTRIBUTION = "psycopg2-binary"
MODULE = "psycopg2"
TESTED = ">=2.9.5,<2.10"
RANK = 20  # after psycopg 3

_CONNECTION, _CURSOR = "psycopg2.extensions:connection", "psycopg2.extensions:cursor"
_SEAMS = (  # written in C, so there is no signature to check
    *(
        Seam(_CONNECTION, name)
        for name in (
            "cursor",
            "commit",
            "rollback",
            "status",
            "autocommit",
            "closed",
            "cursor_factory",
        )
    ),
    *(
        Seam(_CONNECTION, name)
        for name in (
            "get_transaction_status",
            "close",
            "set_isolation_level",
            "reset",
            "lobject",
            "set_session",
        )
    ),
    *(
        Seam(_CONNECTION, name)
        for name in (
            "isolation_level",
            "readonly",
            "deferrable",
            "encoding",
            "notices",
            "string_types",
        )
    ),
    *(
        Seam(_CONNECTION, name)
        for name in ("tpc_begin", "tpc_prepare", "tpc_commit", "tpc_rollback")
    ),
    *(
        Seam(_CURSOR, name)
        for name in (
            "execute",
            "executemany",
            "callproc",
            "copy_expert",
            "copy_from",
            "copy_to",
            "statusmessage",
        )
    ),
)
_REPORTS = ((PROBE, False), "committing", "committed", (PROBE, True))

_MINIMUM = 2  # libpq's shortest connect_timeout


class Driver(Blocking):
    """The blocking driver for psycopg2: see :class:`unbroken.abc.Driver` for its methods.

    Connections and cursors are psycopg2's, of subclasses that can report.
    """

    name = NAME
    told = staticmethod(_postgresql.told)
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import psycopg2

        self.check_seams()
        self.target = target or without_target(NAME, "postgresql")
        self.errors: tuple[type[BaseException], ...] = (
            psycopg2.OperationalError,
            psycopg2.InterfaceError,
            psycopg2.Error,
        )
        self._psycopg2 = psycopg2
        self._connect = connect
        self._arguments = _arguments(self.target)
        self._autocommit = self._arguments.pop("autocommit", None)

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """libpq bounds each address, in whole seconds, at least 2. Name lookup is the system's."""
        return dial(lambda: self._dial(timeout, login))

    def _dial(self, timeout: float, login: Login | None) -> Connection:
        if self._connect is not None:
            return self.adopt(self.own(login))
        limit = max(
            _MINIMUM, math.ceil(min(timeout, self._arguments.get("connect_timeout", timeout)))
        )
        base = self._psycopg2.extensions.connection
        factory = reporting(base) if self.is_known else base
        conn = self._psycopg2.connect(
            **{**self.aimed(login), "connect_timeout": limit}, connection_factory=factory
        )
        if self._autocommit is not None:
            conn.autocommit = self._autocommit
        return conn

    def reporting_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return *given*, arguments for psycopg2's own ``connect``, changed so that the connections
        report everything they send.

        It serves frameworks that open connections. A factory that is no class stays unchanged.
        """
        base = given.get("connection_factory") or self._psycopg2.extensions.connection
        if not self.is_known or not isinstance(base, type):
            return dict(given)
        return {**given, "connection_factory": reporting(base)}

    def needs_trial(self, conn: Connection) -> bool:
        """Return False for connections that the caller made: they never report, and :meth:`watch`
        notes that.
        """
        return hasattr(type(conn), "_reports") and super().needs_trial(conn)

    def probe(self, conn: Connection) -> str | None:
        """Return the flaw in our subclass's reports and libpq's status; None: there is none.

        Four round trips.
        """
        autocommit = conn.autocommit
        with Trial(self, conn) as trial:
            conn.autocommit = False
            _send_probe(conn)
            opened = self.is_in_transaction(conn)
            conn.commit()
            closed = self.is_in_transaction(conn)
            conn.autocommit = True
            _send_probe(conn)
            conn.autocommit = autocommit
        return trial.flaw(_REPORTS) or flaw_of_status(opened, closed)

    def ping(self, conn: Connection, timeout: float) -> None:  # noqa: ARG002 - as the protocol has it
        """Ping in one round trip. *timeout* cannot be enforced; see the module's docstring."""
        self._ask(conn, "SELECT 1")

    def begin(self, conn: Connection) -> None:
        """Do nothing: psycopg2 opens a transaction by itself while autocommit is off."""
        with conn.cursor() as cursor:
            cursor.execute("BEGIN")

    def commit(self, conn: Connection) -> None:
        """Send COMMIT; no round trip if nothing is open."""
        self._end(conn, "commit")

    def rollback(self, conn: Connection) -> None:
        """Send ROLLBACK; no round trip if nothing is open."""
        self._end(conn, "rollback")

    def _end(self, conn: Connection, how: str) -> None:
        if self.is_in_transaction(conn) is False:
            return
        failed = how == "commit" and conn.get_transaction_status() == IN_ERROR
        getattr(conn, how)()
        if conn.get_transaction_status() in (IN_TRANSACTION, IN_ERROR):
            # autocommit, and a BEGIN sent as text
            with conn.cursor() as cursor:
                cursor.execute(how.upper())
        if failed:
            raise self._psycopg2.errors.InFailedSqlTransaction(_postgresql.NOT_COMMITTED)

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``idle_session_timeout`` of this session, in seconds."""
        row = self._ask(conn, _postgresql.ASK_IDLE_LIMIT)
        return _postgresql.limit(row[0] if row else None)

    def remember(self, conn: Connection) -> str | None:
        """Return statements that restore the settings that *conn* had when it was opened."""
        row = self._ask(conn, _postgresql.ask_opening(self._connect is None or self.sets_only))
        opening: str | None = row[0]
        return opening

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Reset the session in one round trip."""
        self._ask(conn, _postgresql.reset_of(left, opening))
        conn.notices, conn.notifies = [], []

    def _ask(self, conn: Connection, sql: str) -> Any:
        """Return the first row of *sql*, in no transaction unless one is open; report nothing."""
        extensions = self._psycopg2.extensions
        if conn.closed:  # otherwise the error is about the cursor
            raise self._psycopg2.InterfaceError("connection already closed")
        autocommit = extensions.connection.autocommit
        switch = (
            conn.get_transaction_status() == IDLE and conn.status == READY and not conn.autocommit
        )
        if switch:
            if hasattr(type(conn), "_reports"):
                conn.__dict__["_changed"] = True  # it must not stay on for the next holder
            autocommit.__set__(conn, True)
        try:
            with extensions.cursor(conn) as cursor:
                cursor.execute(sql)
                return cursor.fetchone()
        finally:
            if switch:
                with suppress(self._psycopg2.Error):  # it was lost
                    autocommit.__set__(conn, False)

    def close(self, conn: Connection) -> None:
        """Close the connection: libpq sends Terminate without waiting for an answer."""
        with suppress(Exception):
            conn.close()

    def fileno(self, conn: Connection) -> int | None:
        """Return the number of libpq's socket, or None once it is closed."""
        try:
            fd: int = conn.fileno()
        except Exception:  # psycopg2 raises its InterfaceError for a closed connection
            return None
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state from the last ReadyForQuery. None in the middle of an exchange, and if
        psycopg2's own state is wrong.
        """
        status = conn.get_transaction_status()
        if status == IDLE:
            return False if conn.status == READY or conn.autocommit else None
        return True if status in (IN_TRANSACTION, IN_ERROR) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether libpq waits for nothing."""
        return not conn.closed and conn.get_transaction_status() in (
            IDLE,
            IN_TRANSACTION,
            IN_ERROR,
        )

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` ended it, as our subclass noted. psycopg2's own ``closed``
        does not distinguish that from a loss that was closed afterwards.
        """
        return bool(conn.closed and getattr(conn, "_closed_well", False))

    def traits(self, conn: Connection) -> Any:
        """Return the transactions' modes, encoding, typecasters, cursor factory, and the server's
        unrequested messages.
        """
        try:
            return _traits(conn)
        except Exception:  # closed
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether libpq is idle, psycopg2 agrees, and the traits are unchanged."""
        try:
            return (
                conn.get_transaction_status() == IDLE
                and (conn.status == READY or (conn.autocommit and not conn.closed))
                and (not conn._changed or self._is_as_opened(conn, traits))
                and conn.notices == traits[6]
                and conn.notifies == traits[7]
                and conn.string_types == traits[0]
            )
        except AttributeError:  # made by the caller: it does not note changes
            return self._is_as_opened(conn, traits)
        except Exception:
            return False

    def _is_as_opened(self, conn: Connection, traits: Any) -> bool:
        if self.is_in_transaction(conn) is not False or self.traits(conn) != traits:
            return False
        if hasattr(type(conn), "_reports"):
            conn.__dict__["_changed"] = False
        return True

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the traits. No round trip, unless the client's encoding was changed, or modes in
        autocommit: psycopg2 sends those immediately.
        """
        if traits is None or self.is_in_transaction(conn) is not False:
            raise self._psycopg2.InterfaceError("connection is closed, or in a transaction")
        types, binary, autocommit, modes, encoding, factory, notices, notifies = traits
        if encoding != conn.encoding:
            conn.set_client_encoding(encoding)
        if modes != _modes(conn):
            conn.isolation_level, conn.readonly, conn.deferrable = modes
        if conn.autocommit != autocommit:
            conn.autocommit = autocommit
        conn.cursor_factory = factory
        for found, wanted in ((conn.string_types, types), (conn.binary_types, binary)):
            if found != wanted:
                found.clear()
                found.update(wanted)
        conn.notices, conn.notifies = list(notices), list(notifies)

    def classify(self, exc: BaseException) -> Fault:
        """Classify by SQLSTATE. Without one, as for each lost connection, by libpq's message."""
        connecting = from_connect(exc)
        if not isinstance(exc, self._psycopg2.Error):
            fault = os_fault(exc, connecting=connecting)
        else:
            diag = exc.diag
            fatal = is_fatal(diag.source_file, diag.severity_nonlocalized, diag.severity)
            fault = postgres_fault(exc.pgcode, str(exc), connecting=connecting, fatal=fatal)
            cursor = getattr(exc, "cursor", None)
            if cursor is not None:
                notice_foreign(cursor)
                if (
                    fault.kind is FaultKind.OTHER
                    and exc.pgcode is None
                    and cursor.connection.closed
                ):
                    fault = replace(fault, kind=FaultKind.LOST)
        return replace(fault, text=self.shown(fault.text))

    def session_id(self, conn: Connection) -> str | None:
        """Return the backend's pid."""
        return None if conn.closed else str(conn.info.backend_pid)

    def watch(self, conn: Connection) -> None:
        """Make our subclass report from now on. A connection that the caller made cannot be
        followed.
        """
        if hasattr(type(conn), "_reports"):
            conn._watched, conn._seen = True, conn.get_transaction_status()
            return
        ledger = scope.current(id(conn))
        if ledger is not None:
            ledger.doubt(
                f"psycopg2: statements of a {type(conn).__name__} cannot be seen", conn_id=id(conn)
            )

    def unwatch(self, conn: Connection) -> None:
        """Stop the reports."""
        if hasattr(type(conn), "_reports"):
            conn._watched = False


def _send_probe(conn: Connection) -> None:
    with conn.cursor() as cursor:
        cursor.execute(PROBE)


def _modes(conn: Connection) -> tuple[Any, ...]:
    return conn.isolation_level, conn.readonly, conn.deferrable


def _traits(conn: Connection) -> tuple[Any, ...]:
    return (
        dict(conn.string_types), dict(conn.binary_types), conn.autocommit, _modes(conn),
        conn.encoding, conn.cursor_factory, list(conn.notices), list(conn.notifies),
    )  # fmt: skip


# -- reports ---------------------------------------------------------------------------------------


# -- arguments -------------------------------------------------------------------------------------


def _arguments(target: Target) -> dict[str, Any]:
    kinds: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(_libpq_options(), str), "autocommit": optional_boolean,
        "connect_timeout": seconds,
    }  # fmt: skip
    out = coerce(target.options, kinds, NAME)
    given = {
        "host": target.unix_socket or target.host,
        "port": target.port,
        "user": target.user,
        "password": target.password,
        "dbname": target.database,
    }
    out.update({name: value for name, value in given.items() if value is not None})
    # libpq's default; psycopg2 refuses to connect without a single argument
    out.setdefault("dbname", "")
    return out


#: The options of libpq 9.2 to 17 in a connection string (its manual, "Parameter Key Words").
#: psycopg2 has no call that lists them.
_LIBPQ = """
    host hostaddr port passfile require_auth channel_binding connect_timeout client_encoding options
    application_name
    fallback_application_name keepalives keepalives_idle keepalives_interval keepalives_count
    tcp_user_timeout replication gssencmode
    sslmode sslnegotiation sslcompression sslcert sslkey sslpassword sslcertmode sslrootcert sslcrl
    sslcrldir sslsni requirepeer
    ssl_min_protocol_version ssl_max_protocol_version krbsrvname gsslib gssdelegation service
    target_session_attrs load_balance_hosts
"""


@cache
def _libpq_options() -> frozenset[str]:
    return frozenset(_LIBPQ.split())
