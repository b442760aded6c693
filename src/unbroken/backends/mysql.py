"""The meaning of MySQL's and MariaDB's errors."""

from __future__ import annotations

import errno as E  # noqa: N812 - the tables below read better

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends.services_mysql import service_fault
from unbroken.backends.system import (
    HUNG_UP_IN_TLS,
    TLS_SETTINGS,
    errno_of_text,
    flat,
    of_errno,
)

_K = FaultKind


CAUSES: dict[int, Cause | None] = {
    1927: Cause.KILLED,  # ER_CONNECTION_KILLED (MariaDB)
    4031: Cause.IDLE_LIMIT,  # ER_CLIENT_INTERACTION_TIMEOUT (MySQL 8.0.24+)
    1053: Cause.SHUTDOWN,  # ER_SERVER_SHUTDOWN
    1077: Cause.SHUTDOWN,  # ER_NORMAL_SHUTDOWN
    1079: Cause.SHUTDOWN,  # ER_SHUTDOWN_COMPLETE
    1080: Cause.KILLED,  # ER_FORCING_CLOSE
    1152: None,  # ER_ABORTING_CONNECTION
    1184: None,  # ER_NEW_ABORTING_CONNECTION
    1158: None,  # ER_NET_READ_ERROR
    1159: Cause.IDLE_LIMIT,  # ER_NET_READ_INTERRUPTED: the server waited for us too long
    1160: None,  # ER_NET_ERROR_ON_WRITE
    1161: (
        Cause.SILENT_DROP
    ),  # ER_NET_WRITE_INTERRUPTED: the server could not write to us in net_write_timeout
}
#: Client codes: the connection is gone (2006, 2013, 2055; MariaDB's library: 5013, 5014), or out of
#: step with the protocol (2014, 2027, 2048; 5015).
_CLIENT_LOST = {2006, 2013, 2014, 2027, 2045, 2048, 2055, 5013, 5014, 5015}
_CLIENT_CONNECT = {2001, 2002, 2003, 2004, 2005, 2009, 2010, 2011, 2012}
_TOO_MANY = {1040, 1203, 1135}  # server full, user full, no thread available
_REJECTED = {
    # the server's refusals
    1044, 1045, 1049, 1129, 1130, 1251, 1524, 1698, 1820, 1862, 3118, 3159, 3955, 4151,
    # the client's: protocol, character set, authentication plugin
    2007, 2047, 2049, 2054, 2058, 2059, 2060, 2061,
}  # fmt: skip
#: Those of them that another password or user may cure: denied, denied for want of a plugin, an
#: expired password, a locked account (MySQL 3118 and 3955, MariaDB 4151).
LOGIN_REFUSED = frozenset({1045, 1698, 1820, 1862, 3118, 3955, 4151})
# the server is read-only; 1792 is about the transaction, which the application may have wanted so
_READ_ONLY = {1836}
_TOO_LARGE = {1153, 2020}
# deadlock (and Galera's certification failure), group replication's forced rollback
_RETRY = {1213, 3101}


def mysql_fault(errno: int | None, text: str, *, connecting: bool = False) -> Fault:
    """Return the fault that error *errno* of a MySQL or MariaDB server or client, with its message
    *text*, reports.

    1205 (lock wait timeout) is OTHER: it undoes one statement, not the transaction, so nothing may
    be replayed on it.
    """
    line = flat(text)
    told = service_fault(errno, text, connecting)
    if told is not None:
        return told
    if errno in CAUSES:
        cause = CAUSES[errno]
        return Fault(
            _K.NOT_READY if connecting and cause is Cause.SHUTDOWN else _K.LOST, cause, errno, line
        )
    if errno in _CLIENT_LOST or errno == 2026:
        return _mysql_lost(errno, line, connecting)
    if errno in _CLIENT_CONNECT:
        return _mysql_connect(errno, line)
    if errno in _RETRY:
        return Fault(_K.RETRY, None, errno, line)
    if errno in _TOO_MANY or (errno == 1226 and "max_user_connections" in text):
        return Fault(_K.TOO_MANY, None, errno, line)
    if errno in _REJECTED or (errno == 1226 and "max_connections_per_hour" in text):
        return Fault(_K.REJECTED, None, errno, line)
    if errno == 2019:  # the client does not know the character set
        return Fault(_K.MISCONFIGURED, None, errno, line)
    if errno in _TOO_LARGE:
        return Fault(
            _K.REJECTED if connecting else _K.TOO_LARGE,
            None,
            errno,
            f"the packet is larger than max_allowed_packet: {line}",
        )
    if errno == 1792:
        return Fault(_K.READ_ONLY, None, errno, line)
    if errno in _READ_ONLY or (errno == 1290 and "read-only" in text.replace("_", "-").lower()):
        # in use the server is asked before that is believed
        kind = _K.WRONG_SERVER if connecting else _K.READ_ONLY
        return Fault(kind, Cause.FAILOVER, errno, line)
    if errno == 1047 and "wsrep" in text.lower():  # a Galera node outside the primary component
        return Fault(_K.NOT_READY if connecting else _K.WRONG_SERVER, Cause.FAILOVER, errno, line)
    return Fault(_K.OTHER, None, errno, line)


def _mysql_lost(errno: int, line: str, connecting: bool) -> Fault:
    number = errno_of_text(line)
    if number in (E.EAGAIN, E.EINPROGRESS) and connecting:
        # libmariadb's error for a handshake that timed out
        number = E.ETIMEDOUT
    known = of_errno(number, line, connecting) if number is not None else None
    if known is not None and known.kind in (_K.LOST, _K.UNREACHABLE):
        return Fault(known.kind, known.cause, errno, line)
    # TLS: an unusable certificate or version, unless the server was ended in the middle of it
    lower = line.lower()
    if errno == 2026 and connecting and any(words in lower for words in TLS_SETTINGS):
        return Fault(_K.MISCONFIGURED, None, errno, line)
    if errno == 2026 and connecting and not any(word in lower for word in HUNG_UP_IN_TLS):
        return Fault(_K.REJECTED, None, errno, line)
    return Fault(_K.LOST, None, errno, line)


def _mysql_connect(errno: int, line: str) -> Fault:
    number = errno_of_text(line)
    if number == E.EINPROGRESS:
        # libmariadb's (115) for a connect that failed immediately: a timeout is (110)
        number = E.ECONNREFUSED
    known = of_errno(number, line, True) if number is not None else None
    if known is not None:
        return Fault(known.kind, known.cause, errno, line)
    return Fault(_K.UNKNOWN_NAME if errno == 2005 else _K.UNREACHABLE, None, errno, line)


def cause_of_words(code: int | str | None, text: str) -> Cause:
    """Return why the server ended an idle connection, from *code* and *text* of its last packet."""
    try:
        number = int(code) if code is not None else 0
    except ValueError:
        number = 0
    told = service_fault(number, text, False)
    cause = CAUSES.get(number) if told is None else told.cause
    if cause is None and "killed" in text.lower():
        cause = Cause.KILLED
    return cause or Cause.CLOSED_BY_PEER
