"""The meaning of PostgreSQL's errors, and of those of PgBouncer in front of it."""

from __future__ import annotations

import re
from dataclasses import replace

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.backends.pgbouncer import bouncer_fault, cause_of, is_slip, is_strange_statement
from unbroken.backends.services_postgresql import service_fault
from unbroken.backends.system import (
    _OS_WORDS,
    HUNG_UP_IN_TLS,
    TLS_SETTINGS,
    errno_of_text,
    flat,
    of_errno,
)

_K = FaultKind


CAUSES: dict[str, Cause | None] = {
    "57P01": (
        Cause.KILLED
    ),  # admin_shutdown: the same text for pg_terminate_backend and for a fast shutdown
    "57P02": Cause.CRASHED,  # crash_shutdown
    "57P04": None,  # database_dropped
    "57P05": Cause.IDLE_LIMIT,  # idle_session_timeout (14+)
    "25P03": Cause.TRANSACTION_LIMIT,  # idle_in_transaction_session_timeout
    "25P04": Cause.TRANSACTION_LIMIT,  # transaction_timeout (17+)
    "40003": None,  # statement_completion_unknown
}
_ENOENT = "no such file or directory"  #: also of a unix socket: the server is down
_REJECTED = {"28000", "28P01", "3D000"}
_RETRY = {"40001", "40P01"}
#: Kinds that only an attempt to connect can meet.
_AT_CONNECT = (_K.REJECTED, _K.MISCONFIGURED)
#: Texts of libpq and the server for errors without a SQLSTATE (libpq gives none for a failed
#: connect).
_WORDS: tuple[tuple[str, FaultKind, str | None], ...] = (
    ("starting up", _K.NOT_READY, "57P03"),
    ("shutting down", _K.NOT_READY, "57P03"),
    ("in recovery mode", _K.NOT_READY, "57P03"),
    ("not yet accepting connections", _K.NOT_READY, "57P03"),
    ("not accepting connections", _K.NOT_READY, "57P03"),
    ("too many clients", _K.TOO_MANY, "53300"),
    ("too many connections", _K.TOO_MANY, "53300"),
    ("remaining connection slots", _K.TOO_MANY, "53300"),
    ("no more connections allowed", _K.TOO_MANY, "53300"),
    ("could not fork new process", _K.TOO_MANY, "53000"),
    ("session is read-only", _K.WRONG_SERVER, "25006"),
    ("session is not read-only", _K.WRONG_SERVER, None),
    ("server is not in hot standby", _K.WRONG_SERVER, None),
    ("server is in hot standby", _K.WRONG_SERVER, None),
    ("password authentication failed", _K.REJECTED, "28P01"),
    ("no password supplied", _K.REJECTED, "28P01"),
    ("authentication failed", _K.REJECTED, "28000"),
    ("no pg_hba.conf entry", _K.REJECTED, "28000"),
    ("pg_hba.conf rejects", _K.REJECTED, "28000"),
    ("not permitted to log in", _K.REJECTED, "28000"),
    ("permission denied for database", _K.REJECTED, "42501"),
    ("certificate verify failed", _K.REJECTED, None),
    ("root certificate", _K.MISCONFIGURED, None),
    ("server does not support ssl", _K.REJECTED, None),
    ("server certificate for", _K.REJECTED, None),
    ("invalid value for parameter", _K.REJECTED, "22023"),
    ("unrecognized configuration parameter", _K.REJECTED, "42704"),
    *((words, _K.MISCONFIGURED, None) for words in TLS_SETTINGS if words != _ENOENT),
    *((words, _K.MISCONFIGURED, None) for words in (
        "definition of service", "service file", "invalid connection option", "invalid sslmode",
        "invalid uri", "missing \"=\" after", "unterminated quoted string", "invalid port number",
        "invalid integer value", "could not match", "embedded null",
        "group or world access", "has group or others access", "weak sslmode",
        "invalid scram client key", "invalid scram server key",
    )),
)  # fmt: skip
#: libpq refuses the value of one of its own options.
_BAD_VALUE = re.compile(r'invalid (?:"?\w+"? )?value: ', re.IGNORECASE)
_ROLE_OR_DATABASE = re.compile(r'(role|database) "[^"]*" does not exist', re.IGNORECASE)
_LOST_WORDS = (
    "server closed the connection", "connection is closed", "the connection is lost",
    "connection was closed", "connection already closed", "terminating connection",
    "connection socket closed", "ssl connection has been closed", "ssl syscall error",
    "no connection to the server", "could not receive data", "could not send data",
    "consuming input failed", "lost synchronization", "connection not open",
    "unexpected connection_lost", "underlying connection is closed", "sending query failed",
    "flushing failed", "connection is bad",
)  # fmt: skip


def postgres_fault(
    sqlstate: str | None, text: str, *, connecting: bool = False, fatal: bool | None = None
) -> Fault:
    """Return the fault that an error of PostgreSQL (or PgBouncer, or libpq: *sqlstate* None) with
    its message *text* reports.

    *fatal*: whether the server ends the session with it, see :func:`is_fatal`.
    """
    line = flat(text)
    fault = _fault(sqlstate, text, line, connecting)
    if fatal is False and not connecting and fault.kind in CANNOT_SERVE:
        return Fault(_K.OTHER, None, sqlstate, line)  # RAISE, or another server's, through dblink
    if fatal and not connecting and not fault.is_lost and fault.kind in (_K.OTHER, _K.RETRY):
        return replace(fault, kind=_K.LOST)
    return fault


def is_fatal(source: object, *severities: object) -> bool | None:
    """Return whether one of an error's *severities* (its fields V and S) means that the session
    ends. None: not known.

    PgBouncer sends only the second, and in English. Other servers with this protocol send ERROR and
    close the connection. PostgreSQL does not. It names the file in its own *source* (field F);
    poolers send no such field.
    """
    if "FATAL" in severities or "PANIC" in severities:
        return True
    return False if source else None


def _fault(sqlstate: str | None, text: str, line: str, connecting: bool) -> Fault:
    told = service_fault(sqlstate, text, connecting)
    if told is not None:
        return told
    if not sqlstate:
        return _postgres_words(line, connecting)
    if sqlstate in CAUSES:
        if connecting and sqlstate in ("57P01", "57P02"):
            return Fault(_K.NOT_READY, Cause.SHUTDOWN, sqlstate, line)
        return Fault(_K.LOST, cause_of_words(sqlstate, text), sqlstate, line)
    if sqlstate == "57P03":  # cannot_connect_now
        return Fault(_K.NOT_READY, None, sqlstate, line)
    if sqlstate == "53300":
        return Fault(_K.TOO_MANY, None, sqlstate, line)
    if sqlstate in _RETRY:
        return Fault(_K.RETRY, None, sqlstate, line)
    if sqlstate in _REJECTED or (connecting and sqlstate in ("42501", "42704", "22023")):
        return Fault(_K.REJECTED, None, sqlstate, line)
    if sqlstate == "25006":  # after a failover, or because the application asked for it
        return Fault(
            _K.WRONG_SERVER if connecting else _K.READ_ONLY,
            Cause.FAILOVER if connecting else None,
            sqlstate,
            line,
        )
    if is_strange_statement(sqlstate, line):
        # nothing was executed, and the driver's knowledge of its session does not apply to this one
        return Fault(_K.LOST, Cause.OTHER_SESSION, sqlstate, line)
    if sqlstate == "08P01":
        return _bouncer(sqlstate, line, connecting)
    if sqlstate.startswith("08"):
        return _connection_exception(sqlstate, line, connecting)
    return Fault(_K.OTHER, None, sqlstate, line)


def refuses_login(fault: Fault) -> bool:
    """Return whether *fault*, which is REJECTED, concerns the login: another password, or user,
    might be accepted.

    pg_hba.conf also answers 28000 to every login; PgBouncer has only texts.
    """
    lower = fault.text.lower()
    if fault.code == "28P01":
        return True
    if fault.code == "28000":
        return "pg_hba.conf" not in lower
    return fault.code == "08P01" and ("auth" in lower or "no such user" in lower)


def _bouncer(sqlstate: str, line: str, connecting: bool) -> Fault:
    """Return the fault in an 08P01. PgBouncer uses that code for everything, also for PostgreSQL's
    answer to its own login.

    From a server in use it is a protocol error of the application's.
    """
    if not connecting and is_slip(line):
        return Fault(_K.OTHER, None, sqlstate, line)
    known = bouncer_fault(line, sqlstate, connecting)
    if known is not None:
        return known
    if connecting:
        return replace(_postgres_words(line, connecting), code=sqlstate)
    return Fault(_K.OTHER, None, sqlstate, line)


def _connection_exception(sqlstate: str, line: str, connecting: bool) -> Fault:
    number = errno_of_text(line)
    known = of_errno(number, line, connecting) if number is not None else None
    if known is not None:
        return Fault(known.kind, known.cause, sqlstate, line)
    return Fault(_K.LOST, None, sqlstate, line)


def _postgres_words(line: str, connecting: bool) -> Fault:
    lower = line.lower()
    bouncers = bouncer_fault(line, "08P01", True) if connecting and "FATAL" in line else None
    if bouncers is not None and bouncers.kind is not _K.REJECTED:
        return bouncers
    if "terminating connection" not in lower:
        for words, kind, code in _WORDS:
            if words in lower and (connecting or kind not in _AT_CONNECT):
                return Fault(kind, Cause.FAILOVER if kind is _K.WRONG_SERVER else None, code, line)
        if connecting and _BAD_VALUE.search(line):
            return Fault(_K.MISCONFIGURED, None, None, line)
        if connecting and _is_refused_by_tls(lower):
            return Fault(_K.REJECTED, None, None, line)
        if connecting and _ROLE_OR_DATABASE.search(line):
            return Fault(_K.REJECTED, None, "3D000" if "database" in lower else "28000", line)
    if bouncers is not None:
        return bouncers
    number = next((number for words, number in _OS_WORDS if words in lower), None)
    known = of_errno(number, line, connecting) if number is not None else None
    if known is not None:
        return known
    if any(words in lower for words in _LOST_WORDS):
        return Fault(_K.LOST, _goodbye(lower), None, line)
    # A failed connect with a text in another language: waiting is bounded and does less harm than
    # giving up.
    return Fault(_K.NOT_READY if connecting else _K.OTHER, None, None, line)


def _is_refused_by_tls(lower: str) -> bool:
    """Return whether libpq reports that the two sides agreed on no TLS parameters, and neither
    closed the connection.
    """
    return "ssl error:" in lower and not any(words in lower for words in HUNG_UP_IN_TLS)


def _goodbye(lower: str) -> Cause | None:
    if "administrator command" in lower:
        return Cause.KILLED
    if "crash of another server process" in lower:
        return Cause.CRASHED
    if "idle-session timeout" in lower:
        return Cause.IDLE_LIMIT
    if "idle-in-transaction timeout" in lower or "transaction timeout" in lower:
        return Cause.TRANSACTION_LIMIT
    return None


def cause_of_words(code: int | str | None, text: str) -> Cause:
    """Return why the server ended an idle connection, from *code* and *text* of its last packet."""
    lower = text.lower()
    told = service_fault(None if code is None else str(code), text, False)
    if told is not None and told.cause is not None:
        return told.cause
    if (code == "57P01" and "shut" in lower) or code == "57P03":
        return Cause.SHUTDOWN
    known = CAUSES.get(str(code)) or _goodbye(lower)
    return known or (cause_of(lower) if code == "08P01" else None) or Cause.CLOSED_BY_PEER
