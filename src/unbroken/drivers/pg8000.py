"""pg8000: blocking, pure Python, no libpq. It exposes its socket, and the server's last transaction
status.

The pool hands out connections of ``pg8000.dbapi``. With ``connect=`` those of ``pg8000.legacy`` and
``pg8000.native`` work too. Its timeout is the socket's: the pool's during the connect, and the
URL's ``timeout``, if any, for later calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Login, Target
from unbroken.backends.postgresql import is_fatal, postgres_fault
from unbroken.backends.system import chain, os_fault
from unbroken.drivers import _pg8000_trips as trips
from unbroken.drivers import _postgresql
from unbroken.drivers._base import Blocking
from unbroken.drivers._login import target_of
from unbroken.drivers._pg8000_ahead import Ahead
from unbroken.drivers._pg8000_connection import (
    MISSING,
    exact,
    leave_unsent,
    plain,
    watched,
)
from unbroken.drivers._pg8000_socket import TLS, connected, mode_of, send_at_once
from unbroken.drivers._seams import PROBE, Seam, Trial, flaw_of_status
from unbroken.drivers._shared import (
    boolean,
    class_of,
    coerce,
    dial,
    from_connect,
    is_lost,
    optional_boolean,
    seconds,
    without_target,
)
from unbroken.ledger.residue import Left

NAME = "pg8000"
SCHEMES = ("postgresql+pg8000",)
DISTRIBUTION = "pg8000"
MODULE = "pg8000"
TESTED = ">=1.31.3,<1.32"
RANK = 40

_SETTINGS = (
    "options",
    "search_path",
    "timezone",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
)
_OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys((*_SETTINGS, *TLS, "application_name"), str), "timeout": seconds,
    "connect_timeout": seconds, "tcp_keepalive": boolean, "autocommit": optional_boolean,
}  # fmt: skip
_CORE, _DBAPI = "pg8000.core:CoreConnection", "pg8000.dbapi"
_SEAMS = (
    Seam(_CORE, "__init__", None, ("_client_encoding", "py_types", "message_types", "_xid")),
    Seam(_CORE, "handle_messages", ("self", "context"), ("_sock", "_read", "message_types")),
    Seam(_CORE, "execute_simple", ("self", "statement"), ("handle_messages",)),
    Seam(
        _CORE,
        "execute_unnamed",
        ("self", "statement", "vals", "oids", "stream"),
        ("handle_messages", "make_params", "py_types"),
    ),
    Seam(
        _CORE,
        "execute_named",
        ("self", "statement_name_bin", "params", "columns", "input_funcs", "statement"),
        ("handle_messages",),
    ),
    Seam(_CORE, "prepare_statement", ("self", "statement", "oids"), ("handle_messages",)),
    Seam(_CORE, "close_prepared_statement", ("self", "statement_name_bin"), ("handle_messages",)),
    Seam(_CORE, "handle_READY_FOR_QUERY", ("self", "data", "context"), ("_transaction_status",)),
    Seam(_CORE, "handle_BACKEND_KEY_DATA", ("self", "data", "context"), ("_backend_key_data",)),
    Seam(_CORE, "close", ("self",), ("_usock", "_sock")),
    *(
        Seam(
            f"{each}:Cursor",
            "execute",
            ("self", "operation", "args", "stream"),
            ("execute_simple", "execute_unnamed", "_in_transaction", "autocommit", "_c"),
        )
        for each in (_DBAPI, "pg8000.legacy")
    ),
    Seam(f"{_DBAPI}:Cursor", "executemany", ("self", "operation", "param_sets")),
    Seam(f"{_DBAPI}:Connection", "cursor", ("self",), ("Cursor",)),
    Seam(f"{_DBAPI}:Connection", "commit", ("self",), ("execute_unnamed",)),
    Seam(f"{_DBAPI}:Connection", "rollback", ("self",), ("execute_unnamed",)),
    Seam("pg8000.core", "_read", ("sock", "size")),
    Seam("pg8000.core", "_write", ("sock", "d")),
    Seam("pg8000.core", "_flush", ("sock",)),
    Seam("pg8000.core", "ci_unpack"),
    Seam("pg8000.core", "InterfaceError"),
    Seam("pg8000.core:Context", "__init__", ("self", "statement", ...), ("error", "rows")),
    Seam("pg8000.converters", "make_params", ("py_types", "values")),
)
_REPORTS = (("BEGIN", True), (PROBE, False), "committing", "committed", (PROBE, True))


class Driver(Ahead, Blocking):
    """The blocking driver for pg8000; its methods are described in :class:`unbroken.abc.Driver`.

    Connections are pg8000's, of a subclass that knows whether an answer is outstanding.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS
    _names = ("password", "unix_sock")

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import pg8000
        import pg8000.dbapi
        import pg8000.exceptions

        self.check_seams()
        self.target = target or without_target(NAME, "postgresql")
        # Its users catch InterfaceError for a lost connection; it never raises its
        # OperationalError.
        self.errors: tuple[type[BaseException], ...] = (
            pg8000.exceptions.InterfaceError, pg8000.exceptions.DatabaseError,
            pg8000.exceptions.Error,
        )  # fmt: skip
        self._connect = connect
        self._options = coerce(self.target.options, _OPTIONS, NAME)
        mode_of(self._options)  # refuse an unknown one now, and not at each connect
        base: Any = pg8000.dbapi.Connection
        self._class = exact(base) if self.is_known else base

    # ---- connecting

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds each wait of the connect; a user's own ``timeout``
        holds afterwards.
        """
        return dial(lambda: self._dial(timeout, login))

    def _dial(self, timeout: float, login: Login | None) -> Connection:
        if self._connect is not None:
            return self.adopt(self.own(login))
        options = self._options
        limit = min(timeout, options.get("connect_timeout", timeout))
        self.brings(login)
        target = target_of(self.target, login)
        sock = connected(target, options, limit, self.errors[0])
        try:
            given = self._given(target)
            conn = self._class(target.user, **given, sock=sock, ssl_context=False)
        except BaseException:
            sock.close()  # pg8000 closes it only if it can still send a goodbye
            raise
        if self.is_known:
            conn._seen_new()
        sock.settimeout(options.get("timeout"))
        conn.autocommit = bool(options.get("autocommit"))
        return conn

    def _given(self, target: Target) -> dict[str, Any]:
        options = self._options
        settings = {name: options[name] for name in _SETTINGS if name in options}
        given = {
            "database": target.database,
            "password": target.password,
            "application_name": options.get("application_name"),
        }
        return {
            **{name: value for name, value in given.items() if value is not None},
            "startup_params": settings or None,
        }

    def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = exact(class_of(conn))
            conn._seen_new()
            send_at_once(conn._usock)
        return conn

    # ---- in use

    def probe(self, conn: Connection) -> str | None:
        """Return the flaw in the reports and the status of our subclass; None: there is none.

        Four round trips.
        """
        if not hasattr(conn, "cursor"):
            return self._probe_native(conn)
        autocommit, cursor, sent = conn.autocommit, conn.cursor(), conn._seen_sent
        with Trial(self, conn) as trial:
            if self.is_in_transaction(conn):
                # the caller's own connect= began it, so it must stay open
                cursor.execute(PROBE)
                return trial.flaw([(PROBE, False)])
            conn.autocommit = False
            cursor.execute(PROBE)
            opened = self.is_in_transaction(conn)
            conn.commit()
            closed = self.is_in_transaction(conn)
            conn.autocommit = True
            cursor.execute(PROBE)
            conn.autocommit = autocommit
        if (
            conn._seen_sent - sent != len([each for each in _REPORTS if each != "committed"])
            or not conn._seen_answers
        ):
            return "its connection does not report when an answer is due"
        return trial.flaw(_REPORTS) or flaw_of_status(opened, closed)

    def _probe_native(self, conn: Connection) -> str | None:
        with Trial(self, conn) as trial:
            conn.run(PROBE)
        return trial.flaw([(PROBE, not self.is_in_transaction(conn))])

    def ping(self, conn: Connection, timeout: float) -> None:
        """Send an empty query: one round trip, no transaction."""
        self._bounded(conn, timeout, lambda: plain(conn).execute_simple(conn, ""))

    def _bounded(self, conn: Connection, timeout: float, work: Callable[[], Any]) -> Any:
        sock = conn._usock
        if sock is None:
            raise self.errors[0]("connection is closed")
        kept = sock.gettimeout()
        sock.settimeout(timeout)
        try:
            return work()
        finally:
            with suppress(OSError):
                sock.settimeout(kept)

    def begin(self, conn: Connection) -> None:
        """Do nothing: pg8000 opens a transaction by itself while autocommit is off."""
        conn.execute_simple("BEGIN")

    def commit(self, conn: Connection) -> None:
        """Send COMMIT; no round trip if nothing is open."""
        self._end(conn, "commit")

    def rollback(self, conn: Connection) -> None:
        """Send ROLLBACK; no round trip if nothing is open."""
        self._end(conn, "rollback")

    def _end(self, conn: Connection, how: str) -> None:
        if self.is_in_transaction(conn) is not False:
            conn.execute_simple(how.upper())

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``idle_session_timeout`` of this session, in seconds."""
        rows = self._bounded(
            conn, 10.0, lambda: plain(conn).execute_simple(conn, _postgresql.ASK_IDLE_LIMIT)
        ).rows
        return _postgresql.limit(rows[0][0] if rows else None)

    def remember(self, conn: Connection) -> str | None:
        """Return statements that restore the settings that *conn* had when it was opened."""
        ask = _postgresql.ask_opening(self._connect is None or self.sets_only)
        rows = self._bounded(conn, 10.0, lambda: plain(conn).execute_simple(conn, ask)).rows
        opening: str | None = rows[0][0]
        return opening

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Reset the session in one round trip."""
        reset = _postgresql.reset_of(left, opening)
        self._bounded(conn, 10.0, lambda: plain(conn).execute_simple(conn, reset))

    def close(self, conn: Connection) -> None:
        """Send Terminate if the socket's buffer has room for it, then close."""
        file = conn._sock
        with suppress(Exception):
            conn._usock.settimeout(0.05)
        try:
            conn.close()
        except Exception:
            leave_unsent(file)

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's number, or None once it is closed."""
        sock = conn._usock
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state from the last ReadyForQuery; None in the middle of an exchange."""
        return bool(conn._transaction_status != b"I") if self.is_quiet(conn) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether every statement was answered in full."""
        try:
            return bool(conn._usock is not None and conn._seen_sent == conn._seen_answered)
        except AttributeError:  # another class of connection
            return False

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` sent a goodbye while nothing was under way."""
        return bool(conn._usock is None and getattr(conn, "_seen_closed", False))

    def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        trips.send_end(conn, sql)

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        return conn._seen_due is not None

    def take_answer(self, conn: Connection, timeout: float) -> bool:
        """Read that answer, if it was not read yet. Returns whether it did."""
        if conn._seen_due is None:
            return False
        self._bounded(conn, timeout, lambda: trips.take(conn))
        return True

    def may_leave(self, conn: Connection) -> bool:
        """Return whether a transaction is open, and needs nothing more than its end."""
        return self.is_in_transaction(conn) is True and conn._xid is None

    def was_unsent(self, conn: Connection) -> bool:
        """Return whether *conn* was lost while a BEGIN was sent alone."""
        return bool(conn._seen_unbegun == conn._seen_sent > 0)

    def texts(self, conn: Connection) -> Sequence[str | None]:
        """Return the statements sent in the open transaction. None stands for an unknown one."""
        return trips.texts(conn)

    def traits(self, conn: Connection) -> Any:
        """Return autocommit, the number of registered types, the number of unrequested messages
        from the server, and the time limit, which a ping changes.
        """
        registered = len(getattr(conn, "_seen_registered", ()))
        limit = None if conn._usock is None else conn._usock.gettimeout()
        return (
            getattr(conn, "autocommit", None),
            registered,
            len(conn.notices),
            len(conn.notifications),
            limit,
        )

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether *conn* was answered in full, has nothing open, has unchanged traits, and
        got no unrequested message from the server.
        """
        try:
            return (
                conn._seen_sent == conn._seen_answered
                and conn._transaction_status == b"I"
                and conn._usock is not None
                and conn._xid is None
                and (
                    getattr(conn, "autocommit", None),
                    len(conn._seen_registered),
                    len(conn.notices),
                    len(conn.notifications),
                    conn._usock.gettimeout(),
                )
                == traits
            )
        except Exception:
            return False

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the traits without a round trip: pg8000 sends none of them to the server."""
        if self.is_in_transaction(conn) is not False or conn._xid is not None:
            raise trips.out_of_step()
        autocommit, registered, notices, notifications, limit = traits
        conn._usock.settimeout(limit)
        if autocommit is not None:
            conn.autocommit = autocommit
        while len(conn._seen_registered) > registered:
            types, key, before = conn._seen_registered[-1]
            if before is MISSING:
                types.pop(key, None)
            else:
                types[key] = before
            conn._seen_registered.pop()
        for unasked, before in ((conn.notices, notices), (conn.notifications, notifications)):
            while len(unasked) > before:
                unasked.pop()

    def classify(self, exc: BaseException) -> Fault:
        """Classify an error by SQLSTATE, or by the system's error if there is none."""
        if is_lost(exc):
            return Fault(FaultKind.LOST, Cause.CANCELLED, None, str(exc))
        connecting = from_connect(exc)
        return replace(fault := self._fault(exc, connecting), text=self.shown(fault.text))

    def _fault(self, exc: BaseException, connecting: bool) -> Fault:
        if (
            isinstance(exc, AttributeError)
            and "NoneType" in str(exc)
            and any(word in str(exc) for word in ("flush", "write", "read"))
        ):
            return Fault(FaultKind.LOST, None, None, "the connection is closed")
        if not isinstance(exc, self.errors):
            return os_fault(exc, connecting=connecting)
        links = list(chain(exc)) if isinstance(exc, self.errors[0]) else [exc]
        for link in links:  # the failed goodbye after a failed login hides the server's refusal
            fields = link.args[0] if link.args else None
            if isinstance(fields, dict):
                code, text = fields.get("C"), str(fields.get("M"))
                fatal = is_fatal(*(fields.get(each) for each in "FVS"))
                return postgres_fault(code, text, connecting=connecting, fatal=fatal)
        for link in links[1:]:
            known = os_fault(link, connecting=connecting, is_link=True)
            if known.kind is not FaultKind.OTHER:
                return known
        if "network error" in str(exc):
            return Fault(FaultKind.LOST, None, None, "the server closed the connection")
        return postgres_fault(None, str(exc), connecting=connecting)

    def session_id(self, conn: Connection) -> str | None:
        """Return the backend's pid."""
        key = conn._backend_key_data
        return str(int.from_bytes(key[:4], "big")) if key and conn._usock is not None else None

    def watch(self, conn: Connection) -> None:
        """Report everything that is sent through the ``execute_…`` methods of the connection."""
        conn.__class__ = watched(type(conn))

    def unwatch(self, conn: Connection) -> None:
        """Restore the class that *conn* had before."""
        conn.__class__ = plain(conn)


# -- TLS -------------------------------------------------------------------------------------------
