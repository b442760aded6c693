"""pg8000: blocking, pure Python, no libpq. Its socket shows, and the server's last word on
transactions.

The pool hands out connections of ``pg8000.dbapi``; with ``connect=`` those of ``pg8000.legacy`` and
``pg8000.native`` serve too. Its timeout is the socket's: the connect obeys the pool's, later calls
the URL's ``timeout``, if any.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Target
from unbroken.backends.postgresql import postgres_fault
from unbroken.backends.system import chain, one_line, os_fault
from unbroken.drivers import _postgresql, _tls
from unbroken.drivers._base import Blocking
from unbroken.drivers._seams import PROBE, Seam, Trial, flaw_of_status
from unbroken.drivers._shared import (
    boolean,
    class_of,
    coerce,
    dial,
    from_connect,
    is_lost,
    lost,
    optional_boolean,
    seconds,
    without_target,
)
from unbroken.errors import ConfigurationError
from unbroken.ledger import scope, unit
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
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey")
_TLS = ("sslmode", *_TLS_FILES)
_OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys((*_SETTINGS, *_TLS, "application_name"), str), "timeout": seconds,
    "connect_timeout": seconds, "tcp_keepalive": boolean, "autocommit": optional_boolean,
}  # fmt: skip
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SSL_REQUEST = struct.pack("!II", 8, 80877103)  # PostgreSQL manual, "SSLRequest"
_CORE, _DBAPI = "pg8000.core:CoreConnection", "pg8000.dbapi"
_SEAMS = (
    Seam(_CORE, "handle_messages", ("self", "context"), ("_sock",)),
    Seam(_CORE, "execute_simple", ("self", "statement"), ("handle_messages",)),
    Seam(
        _CORE,
        "execute_unnamed",
        ("self", "statement", "vals", "oids", "stream"),
        ("handle_messages",),
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
    Seam(
        f"{_DBAPI}:Cursor",
        "execute",
        ("self", "operation", "args", "stream"),
        ("execute_simple", "execute_unnamed"),
    ),
    Seam(f"{_DBAPI}:Cursor", "executemany", ("self", "operation", "param_sets")),
    Seam(f"{_DBAPI}:Connection", "commit", ("self",), ("execute_unnamed",)),
    Seam(f"{_DBAPI}:Connection", "rollback", ("self",), ("execute_unnamed",)),
)
_REPORTS = (("BEGIN", True), (PROBE, False), "committing", "committed", (PROBE, True))


class Driver(Blocking):
    """See :class:`unbroken.abc.Driver`.

    Connections are pg8000's, of a subclass that knows whether an answer is outstanding.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import pg8000
        import pg8000.dbapi
        import pg8000.exceptions

        self.check_seams()
        self.target = target or without_target(NAME, "postgresql")
        # what its users catch for a lost connection is InterfaceError; it never raises its
        # OperationalError
        self.errors: tuple[type[BaseException], ...] = (
            pg8000.exceptions.InterfaceError, pg8000.exceptions.DatabaseError,
            pg8000.exceptions.Error,
        )  # fmt: skip
        self._connect = connect
        self._options = coerce(self.target.options, _OPTIONS, NAME)
        self._mode = _mode(self._options)
        base: Any = pg8000.dbapi.Connection
        self._class = exact(base) if self.is_known else base

    # ---- connecting

    def connect(self, timeout: float) -> Connection:
        """*timeout* bounds each wait of the connect; a user's own ``timeout`` holds afterwards."""
        return dial(lambda: self._dial(timeout))

    def _dial(self, timeout: float) -> Connection:
        if self._connect is not None:
            return self.adopt(self._connect())
        options = self._options
        sock = self._socket(min(timeout, options.get("connect_timeout", timeout)))
        try:
            conn = self._class(self.target.user, **self._arguments(), sock=sock, ssl_context=False)
        except BaseException:
            sock.close()  # pg8000 closes it only where it can still say goodbye
            raise
        if self.is_known:
            conn._seen_new()
        sock.settimeout(options.get("timeout"))
        conn.autocommit = bool(options.get("autocommit"))
        return conn

    def _arguments(self) -> dict[str, Any]:
        target, options = self.target, self._options
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
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = exact(class_of(conn))
            conn._seen_new()
        return conn

    def _socket(self, timeout: float) -> Any:
        """A connected socket, with TLS where it is wanted. pg8000's own way loads the CA store each
        time, 19 of 20 ms.
        """
        path = self.target.unix_socket
        if path is not None:
            if not os.path.basename(path).startswith(".s.PGSQL."):  # libpq's spelling: the folder
                path = os.path.join(path, f".s.PGSQL.{self.target.port or 5432}")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        host = self.target.host or "localhost"
        if path is None:
            sock = socket.create_connection((host, self.target.port or 5432), timeout)
        try:
            sock.settimeout(timeout)
            if path is not None:
                sock.connect(path)
            elif self._options.get("tcp_keepalive", True):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return (
                sock
                if path is not None or self._mode in ("disable", "allow")
                else self._with_tls(sock, host)
            )
        except BaseException:
            sock.close()
            raise

    def _with_tls(self, sock: Any, host: str) -> Any:
        sock.sendall(_SSL_REQUEST)
        answer = sock.recv(1)
        if answer == b"S":
            files = [self._options.get(name) for name in _TLS_FILES]
            context = _tls.shared(
                ("pg8000", self._mode, *files), files, lambda: _context(self._mode, self._options)
            )
            return context.wrap_socket(sock, server_hostname=host)
        if answer != b"N":
            raise self.errors[0]("network error: the server hung up in the handshake")
        if self._mode != "prefer":
            raise self.errors[0](
                f"server does not support SSL, but sslmode={self._mode} requires it"
            )
        return sock

    # ---- in use

    def probe(self, conn: Connection) -> str | None:
        """What is wrong with what our subclass reports and tells; None: nothing.

        Four round trips.
        """
        if not hasattr(conn, "cursor"):
            return self._probe_native(conn)
        autocommit, cursor, sent = conn.autocommit, conn.cursor(), conn._seen_sent
        with Trial(self, conn) as trial:
            if self.is_in_transaction(conn):
                # the caller's own connect= began it: it must stay as it is
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
            return "its connection does not tell when an answer is due"
        return trial.flaw(_REPORTS) or flaw_of_status(opened, closed)

    def _probe_native(self, conn: Connection) -> str | None:
        with Trial(self, conn) as trial:
            conn.run(PROBE)
        return trial.flaw([(PROBE, not self.is_in_transaction(conn))])

    def ping(self, conn: Connection, timeout: float) -> None:
        """An empty query: one round trip, no transaction."""
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
        """Not needed: pg8000 opens a transaction by itself while autocommit is off."""
        conn.execute_simple("BEGIN")

    def commit(self, conn: Connection) -> None:
        """COMMIT; no round trip where nothing is open."""
        self._end(conn, "commit")

    def rollback(self, conn: Connection) -> None:
        """Likewise."""
        self._end(conn, "rollback")

    def _end(self, conn: Connection, how: str) -> None:
        if self.is_in_transaction(conn) is not False:
            conn.execute_simple(how.upper())

    def idle_limit(self, conn: Connection) -> float | None:
        """``idle_session_timeout`` of this session."""
        rows = self._bounded(
            conn, 10.0, lambda: plain(conn).execute_simple(conn, _postgresql.ASK_IDLE_LIMIT)
        ).rows
        return _postgresql.limit(rows[0][0] if rows else None)

    def remember(self, conn: Connection) -> str | None:
        """Statements that set again what was set when *conn* was opened."""
        ask = _postgresql.ask_opening(self._connect is None or self.sets_only)
        rows = self._bounded(conn, 10.0, lambda: plain(conn).execute_simple(conn, ask)).rows
        opening: str | None = rows[0][0]
        return opening

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """One round trip."""
        reset = _postgresql.reset_of(left, opening)
        self._bounded(conn, 10.0, lambda: plain(conn).execute_simple(conn, reset))

    def close(self, conn: Connection) -> None:
        """Terminate if the socket takes it at once, then close."""
        file = conn._sock
        with suppress(Exception):
            conn._usock.settimeout(0.05)
        try:
            conn.close()
        except Exception:
            _leave_unsent(file)

    def fileno(self, conn: Connection) -> int | None:
        """The socket's, or None once it is closed."""
        sock = conn._usock
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last ReadyForQuery; None in the middle of an exchange."""
        return bool(conn._transaction_status != b"I") if self.is_quiet(conn) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Whether every statement was answered in full."""
        try:
            return bool(conn._usock is not None and conn._seen_sent == conn._seen_answered)
        except AttributeError:  # another make of connection
            return False

    def was_closed(self, conn: Connection) -> bool:
        """Whether ``close()`` said goodbye while nothing was under way."""
        return bool(conn._usock is None and getattr(conn, "_seen_closed", False))

    def traits(self, conn: Connection) -> Any:
        """Autocommit, how many types were registered, how much the server said unasked, and the
        time limit, which a ping changes.
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
        """Answered in full, with nothing open, and the traits are as they were; the server said
        nothing unasked.
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
        """No round trip: pg8000 sends none of it to the server."""
        if self.is_in_transaction(conn) is not False or conn._xid is not None:
            raise lost(self.errors[0](_OUT_OF_STEP))
        autocommit, registered, _, _, limit = traits
        conn._usock.settimeout(limit)
        if autocommit is not None:
            conn.autocommit = autocommit
        while len(conn._seen_registered) > registered:
            types, key, before = conn._seen_registered[-1]
            if before is _MISSING:
                types.pop(key, None)
            else:
                types[key] = before
            conn._seen_registered.pop()
        conn.notices.clear()
        conn.notifications.clear()

    def classify(self, exc: BaseException) -> Fault:
        """By SQLSTATE; by the system's error where there is none."""
        if is_lost(exc):
            return Fault(FaultKind.LOST, Cause.CANCELLED, None, str(exc))
        connecting = from_connect(exc)
        return replace(
            fault := self._fault(exc, connecting), text=one_line(fault.text, self.target.password)
        )

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
        for link in links:  # the failed goodbye after a failed login hides the server's no
            fields = link.args[0] if link.args else None
            if isinstance(fields, dict):
                return postgres_fault(fields.get("C"), str(fields.get("M")), connecting=connecting)
        for link in links[1:]:
            known = os_fault(link, connecting=connecting)
            if known.kind is not FaultKind.OTHER:
                return known
        if "network error" in str(exc):
            return Fault(FaultKind.LOST, None, None, "the server closed the connection")
        return postgres_fault(None, str(exc), connecting=connecting)

    def session_id(self, conn: Connection) -> str | None:
        """The backend's pid."""
        key = conn._backend_key_data
        return str(int.from_bytes(key[:4], "big")) if key and conn._usock is not None else None

    def watch(self, conn: Connection) -> None:
        """Everything goes out through the ``execute_…`` methods of the connection."""
        conn.__class__ = watched(type(conn))

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was."""
        conn.__class__ = plain(conn)


def _leave_unsent(file: Any) -> None:
    """What pg8000 could not send stays in its file's buffer: from Python 3.13 on the collector
    says, on stderr, that it cannot either.
    """
    for half in gc.get_referents(file):  # a BufferedRWPair has no attribute for its two halves
        with suppress(Exception):
            half.raw.close()


def plain(conn: Any) -> Any:
    """The class of *conn* when it is not watched."""
    return getattr(type(conn), "unwatched", type(conn))


#: The ways to send, and after how many answers an error of the server's leaves the protocol in
#: step.
_WAYS = {
    "execute_simple": (1,),
    "execute_unnamed": (1, 3),
    "execute_named": (1,),
    "prepare_statement": (1,),
    "close_prepared_statement": (1,),
}


@cache
def exact(base: Any) -> Any:
    """*base*, a pg8000 connection class, that knows whether it has read all that it asked for;
    *base* itself if it does.
    """
    if getattr(base, "_knows", False):
        return base

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _knows = True
        _transaction_status: bytes | None
        _seen_sent = _seen_answered = 0
        _seen_closed = False

        def _seen_new(self) -> None:
            #: Statements sent, and statements answered. Equal: nothing is under way, nothing is
            #: half read.
            self._seen_sent = self._seen_answered = 0
            self._seen_error, self._seen_answers = None, 0
            self.notices.clear()
            self.notifications.clear()
            self._seen_registered: list[tuple[Any, Any, Any]] = []  # what to undo
            if self._transaction_status is None:  # pg8000 forgets what the login ended with
                self._transaction_status = b"I"

        def handle_messages(self, context: Any) -> None:
            self._seen_error = None
            try:
                super().handle_messages(context)
            finally:
                self._seen_answers += 1
                self._seen_error = context.error

        def close(self) -> None:
            in_step = self._usock is not None and self._seen_sent == self._seen_answered
            super().close()
            self._seen_closed = in_step

        def register_out_adapter(self, typ: Any, out_func: Any) -> None:
            _register(self, self.py_types, typ)
            super().register_out_adapter(typ, out_func)

        def register_in_adapter(self, oid: Any, in_func: Any) -> None:
            _register(self, self.pg_types, oid)
            super().register_in_adapter(oid, in_func)

    for name, in_step in _WAYS.items():
        _followed(Connection, base, name, in_step)
    if hasattr(base, "rollback"):
        _refusing(Connection, base, "rollback")
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _followed(cls: Any, base: Any, name: str, in_step: tuple[int, ...]) -> None:
    send = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._seen_sent != self._seen_answered:
            # pg8000 would take the answer that is still to come for this one's
            raise lost(_error()(_OUT_OF_STEP))
        self._seen_sent += 1
        self._seen_answers = 0
        try:
            result = send(self, *args, **kwargs)
        except BaseException as error:
            if error is self._seen_error and self._seen_answers in in_step:
                self._seen_answered = self._seen_sent
            raise
        self._seen_answered = self._seen_sent
        return result

    method.__name__, method.__doc__ = name, send.__doc__
    setattr(cls, name, method)


def _refusing(cls: Any, base: Any, name: str) -> None:
    """pg8000's ``rollback()`` sends nothing where it believes that nothing is open; out of step it
    does not know.
    """
    plain = getattr(base, name)

    def method(self: Any) -> None:
        if self._seen_sent != self._seen_answered:
            raise lost(_error()(_OUT_OF_STEP))
        plain(self)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


_MISSING = object()


def _register(conn: Any, types: Any, key: Any) -> None:
    conn._seen_registered.append((types, key, types.get(key, _MISSING)))


@cache
def _error() -> Any:
    from pg8000.exceptions import InterfaceError

    return InterfaceError


_OUT_OF_STEP = (
    "connection is closed, or out of step: an answer of the server was not read to its end"
)


def watched(base: Any) -> Any:
    """*base* that tells the ledger of everything it sends.

    ``unwatched`` is the class to go back to.
    """
    return base if hasattr(base, "unwatched") else _watched(exact(base))


@cache
def _watched(base: Any) -> Any:
    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def execute_simple(self, statement: Any) -> Any:
            return _sent(self, statement, lambda: super(Watched, self).execute_simple(statement))

        def execute_unnamed(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
            return _sent(
                self,
                statement,
                lambda: super(Watched, self).execute_unnamed(statement, *args, **kwargs),
            )

        def execute_named(
            self, name: Any, params: Any, columns: Any, input_funcs: Any, statement: Any
        ) -> Any:
            return _sent(
                self,
                statement,
                lambda: super(Watched, self).execute_named(
                    name, params, columns, input_funcs, statement
                ),
            )

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _sent(conn: Any, statement: Any, send: Callable[[], Any]) -> Any:
    ledger = scope.current(id(conn))
    if ledger is None or conn._usock is None or conn._seen_sent != conn._seen_answered:
        # then nothing is sent
        return send()
    failed = conn._transaction_status == b"E"
    ends = _postgresql.about_to_send(
        ledger, id(conn), str(statement), conn._transaction_status == b"I"
    )
    try:
        result = send()
    except Exception as error:
        _tell_refused(ledger, conn, ends, failed, error)
        raise
    _postgresql.answered(ledger, id(conn), ends, "ROLLBACK" if failed else None)
    return result


def _tell_refused(
    ledger: unit.Unit, conn: Any, ends: bool | None, failed: bool, error: Exception
) -> None:
    if conn._seen_sent != conn._seen_answered:
        return
    if ends and failed and conn._transaction_status == b"I":
        # "in failed transaction block": the server rolled back
        _postgresql.answered(ledger, id(conn), True, "ROLLBACK")
    elif error.args and isinstance(error.args[0], dict):
        _postgresql.refused(ledger, id(conn), ends, error.args[0].get("C"), str(error))


# -- TLS -------------------------------------------------------------------------------------------


def _mode(options: dict[str, Any]) -> str:
    mode: str = options.get("sslmode", "prefer")
    if mode not in _MODES:
        raise ConfigurationError(
            f"option sslmode={mode!r} in the URL is not one of {', '.join(_MODES)}"
        )
    return mode


def _context(mode: str, options: dict[str, Any]) -> Any:
    """What libpq's *mode* means, as an SSL context."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    root = options.get("sslrootcert")
    if mode.startswith("verify") or root is not None:
        (
            context.load_default_certs()
            if root in (None, "system")
            else context.load_verify_locations(root)
        )
    else:
        context.verify_mode = ssl.CERT_NONE
    if "sslcert" in options:
        context.load_cert_chain(options["sslcert"], options.get("sslkey"))
    return context
