"""The meaning of PgBouncer's own errors.

PgBouncer gives nearly all of its answers one SQLSTATE, 08P01, so only the texts distinguish them.
They are taken from its source, versions 1.18 to 1.25. Each of them ends the connection.
"""

from __future__ import annotations

import re

from unbroken.abc import Cause, Fault, FaultKind

_K = FaultKind

#: Texts of an answer to an attempt to connect, or to a statement: it reached no server, and waiting
#: can help. The first match counts.
_CANNOT_SERVE: tuple[tuple[str, FaultKind], ...] = (
    (
        "server login has been failing",
        _K.NOT_READY,
    ),  # the cached error that follows is PostgreSQL's
    ("client_login_timeout", _K.NOT_READY),
    ("pgbouncer cannot connect to server", _K.NOT_READY),
    ("query_wait_timeout", _K.TOO_MANY),
    ("no more connections allowed", _K.TOO_MANY),
    ("client connections exceeded", _K.TOO_MANY),
)
#: The connection ends, and so may a statement that PostgreSQL was executing.
_ENDS: tuple[tuple[str, Cause | None], ...] = (
    ("client_idle_timeout", Cause.IDLE_LIMIT),
    ("idle transaction timeout", Cause.TRANSACTION_LIMIT),
    ("idle_transaction_timeout", Cause.TRANSACTION_LIMIT),
    ("transaction timeout", Cause.TRANSACTION_LIMIT),
    ("transaction_timeout", Cause.TRANSACTION_LIMIT),
    ("query_timeout", None),
    ("query timeout", None),
    ("admin forced disconnect", Cause.KILLED),
    ("database removed", Cause.KILLED),  # KILL, RELOAD
    ("server conn crashed", None),  # it was closed without a message
    ("shutting down", Cause.SHUTDOWN),
    ("suspend_timeout", Cause.SHUTDOWN),
    ("server connection closed", None),
    ("server lifetime", None),
    ("server idle timeout", None),
    ("server_lifetime", None),
    ("server_idle_timeout", None),
    ("obsolete connection", None),
    ("too many servers in the pool", None),
    ("database configuration changed", None),
    ("connect string changed", None),
    ("pause failed", None),
    ("resources exhaustion", None),
    ("no memory", None),
    ("out of memory", None),
    ("bouncer config error", None),  # a server that was lost while the client logged in
    ("unknown pkt", None),
    ("bad packet", None),
    ("bad pkt", None),
    ("invalid server parameter", None),
)
#: PgBouncer refuses this client, and waiting does not help.
_REFUSES = (
    "no such database",
    "no such user",
    "not allowed",
    "authentication failed",
    "auth failed",
    "login rejected",
    "ssl required",
    "no authentication method",
    "not supported",
    "unsupported startup parameter",
    "unsupported options startup parameter",
    "invalid startup packet",
    "invalid sasl",
    "no username supplied",
    "username too long",
    "password too long",
    "empty password",
)
_DISABLED = re.compile(r'database "[^"]*" is disabled', re.IGNORECASE)
#: Statements of its own that PostgreSQL answers with the same SQLSTATE: the connection works.
_PROTOCOL = re.compile(r"bind message|invalid message|insufficient data|invalid frontend", re.I)


def bouncer_fault(line: str, code: str | None, connecting: bool) -> Fault | None:
    """Return the fault in PgBouncer's answer *line*; None if it is not one of PgBouncer's."""
    lower = line.lower()
    for words, kind in _CANNOT_SERVE:
        if words in lower:
            return Fault(kind, None, code, line)
    if _DISABLED.search(line):
        return Fault(_K.NOT_READY, None, code, line)
    if connecting and any(words in lower for words in _REFUSES):
        return Fault(_K.REJECTED, None, code, line)
    for words, cause in _ENDS:
        if words in lower:
            return (
                Fault(_K.NOT_READY, None, code, line)
                if connecting
                else Fault(_K.LOST, cause, code, line)
            )
    return None


_FATAL = re.compile(r"^(?:FATAL|PANIC):\s+(.*)$", re.MULTILINE)


def last_refusal(text: str) -> Fault | None:
    """Return PgBouncer's error from before it closed a connection, found in libpq's *text* of all
    errors. None if there was none, or an unknown one.
    """
    said = _FATAL.findall(text)
    return bouncer_fault(said[-1], None, connecting=False) if said else None


def is_slip(line: str) -> bool:
    """Return whether *line*, with PgBouncer's SQLSTATE, is PostgreSQL's answer to a malformed
    request.
    """
    return _PROTOCOL.search(line) is not None


def never_executed(text: str) -> bool:
    """Return whether PgBouncer's answer *text* proves that it passed the statement to no server."""
    lower = text.lower()
    return any(words in lower for words, _ in _CANNOT_SERVE)


def cause_of(text: str) -> Cause | None:
    """Return why PgBouncer ended a connection, from its last message; None if unclear."""
    lower = text.lower()
    return next((cause for words, cause in _ENDS if words in lower), None)


# -- prepared statements that another session has --------------------------------------------------

#: The names that drivers give to statements which they prepare by themselves.
_OF_A_DRIVER = re.compile(
    r'prepared statement "(?:_pg3_|__asyncpg_|pg8000_statement_)[^"]*"', re.IGNORECASE
)


def is_strange_statement(sqlstate: str | None, text: str) -> bool:
    """Return whether the server does not know a statement that the driver itself prepared there, or
    knows another one by that name. A pooler has then switched the connection to another session.

    The statement was not executed.
    """
    if sqlstate in ("26000", "42P05"):
        return _OF_A_DRIVER.search(text) is not None or "unnamed prepared statement" in text
    # PgBouncer's own, which follows prepared statements itself
    return sqlstate == "08P01" and (
        "prepared statement did not exist" in text
        or "prepared statement name is already in use" in text
    )
