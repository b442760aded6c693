"""What an error, or a server's last packet, means for the connection it came from and for those who
wait for one.

Pure tables and functions: a driver takes the code and the text out of its exception and asks here.
Sources: the MySQL 8.4 and MariaDB 10.11 error references, errmsg.h of both clients, PostgreSQL's
errcodes.txt, the drivers' own sources, and faults provoked on real servers (tests/drivers). In
every function *connecting* says that the error came out of an attempt to connect: a timeout then
means that the server is away, later that this one connection is lost.
"""

from __future__ import annotations

import errno as E  # noqa: N812 - the tables below read better
import re
from collections.abc import Iterator

from unbroken.abc import Cause, Fault, FaultKind

_K = FaultKind

# -- text for people -------------------------------------------------------------------------------

_SECRET = re.compile(
    r"""(?ix) \b (password|passwd|pwd|secret) (\s*[=:]\s*) ('[^']*' | "[^"]*" | [^\s,;&)]+)"""
)
_USERINFO = re.compile(r"(\w+://[^\s:/@]*):[^\s/]*@")
_MAX_TEXT = 300


def one_line(text: object, secret: str | None = None) -> str:
    """*text* as one line of at most 300 characters, without *secret* and without anything that
    looks like a password.
    """
    line = " ".join(str(text).split())
    if secret:
        line = line.replace(secret, "***")
    line = _SECRET.sub(r"\1\2***", _USERINFO.sub(r"\1:***@", line))
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


# -- the -------------------------------------------------------------------------------------------
# system's errors

_REFUSED = {E.ECONNREFUSED, E.ENOENT}  # ENOENT: the unix socket's file is not there
_UNREACHABLE = {
    E.ETIMEDOUT,
    E.EHOSTUNREACH,
    E.ENETUNREACH,
    E.EHOSTDOWN,
    E.ENETDOWN,
    E.ENETRESET,
    E.EADDRNOTAVAIL,
}
_RESET = {E.ECONNRESET, E.EPIPE, E.ECONNABORTED, E.ENOTCONN, E.ESHUTDOWN}
_DENIED = {E.EACCES, E.EPERM}

# getaddrinfo's answers, as numbers since they differ by system (Linux is negative, macOS positive)
_NAME_UNKNOWN = {-2, -5, 7, 8}  # EAI_NONAME, EAI_NODATA
_NAME_LATER = {-3, -4, 2, 4}  # EAI_AGAIN, EAI_FAIL: the name service itself is not well

# what the system and getaddrinfo say, for drivers that hand on nothing but the text
_OS_WORDS: tuple[tuple[str, int], ...] = (
    ("connection refused", E.ECONNREFUSED),
    ("connect call failed", E.ECONNREFUSED),
    ("no such file or directory", E.ENOENT),
    ("timed out", E.ETIMEDOUT),
    ("timeout expired", E.ETIMEDOUT),
    ("connection timeout", E.ETIMEDOUT),
    ("no route to host", E.EHOSTUNREACH),
    ("network is unreachable", E.ENETUNREACH),
    ("connection reset by peer", E.ECONNRESET),
    ("broken pipe", E.EPIPE),
    ("permission denied", E.EACCES),
    ("temporary failure in name resolution", -3),
    ("name or service not known", -2),
    ("nodename nor servname", -2),
    ("no address associated with hostname", -5),
)
_EMBEDDED = re.compile(r"\[Errno (-?\d+)\]|\((-?\d+)(?:\)|\s+\"| ')|system error: (\d+)")


def errno_of_text(text: str) -> int | None:
    """The system's (or getaddrinfo's) number inside a driver's message, or what its words say; None
    without one.
    """
    found = _EMBEDDED.search(text)
    if found:
        return int(next(group for group in found.groups() if group))
    lower = text.lower()
    return next((number for words, number in _OS_WORDS if words in lower), None)


def _of_errno(number: int, text: str, connecting: bool) -> Fault | None:
    if number in _REFUSED and (connecting or number != E.ENOENT):
        return Fault(_K.REFUSED if connecting else _K.LOST, None, number, text)
    if number in _UNREACHABLE:
        if connecting:
            return Fault(_K.UNREACHABLE, None, number, text)
        return Fault(_K.LOST, Cause.SILENT_DROP, number, text)
    if number in _RESET:
        return Fault(_K.LOST, Cause.CONNECTION_RESET, number, text)
    if number in _DENIED and connecting:
        return Fault(_K.REJECTED, None, number, text)
    if number in _NAME_UNKNOWN and number < 0:
        return Fault(_K.REJECTED, None, number, text)
    if number in _NAME_LATER and number < 0:
        return Fault(_K.UNREACHABLE, None, number, text)
    return None


def chain(exc: BaseException) -> Iterator[BaseException]:
    """*exc*, then what it was raised from, innermost last; PyMySQL's ``original_exception`` counts
    too.
    """
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = (
            getattr(link, "original_exception", None)
            or link.__cause__
            or (None if link.__suppress_context__ else link.__context__)
        )


def os_fault(exc: BaseException, *, connecting: bool = False) -> Fault:
    """What an exception of the system (socket, name service, TLS, timeout) means; OTHER for
    anything else.
    """
    text = one_line(str(exc) or type(exc).__name__)
    names = {cls.__name__ for cls in type(exc).__mro__}
    number = getattr(exc, "errno", None)
    if "gaierror" in names:
        kind = _K.UNREACHABLE if number in _NAME_LATER else _K.REJECTED
        return Fault(kind, None, number, text)
    if "SSLError" in names:
        return _of_tls(names, text, connecting)
    if isinstance(exc, EOFError):
        return Fault(_K.LOST, Cause.CLOSED_BY_PEER, None, text)
    if isinstance(exc, TimeoutError):
        return _of_errno(number or E.ETIMEDOUT, text, connecting) or Fault(
            _K.LOST, None, number, text
        )
    if isinstance(exc, OSError):
        number = number if number is not None else errno_of_text(text)
        known = _of_errno(number, text, connecting) if number is not None else None
        if known is None and isinstance(exc, ConnectionError):
            return Fault(_K.LOST, None, number, text)
        return known or Fault(_K.OTHER, None, number, text)
    return Fault(_K.OTHER, None, None, text)


def _of_tls(names: set[str], text: str, connecting: bool) -> Fault:
    if "SSLCertVerificationError" in names:
        return Fault(_K.REJECTED, None, None, text)
    if names & {"SSLEOFError", "SSLZeroReturnError", "SSLSyscallError"}:
        return Fault(_K.LOST, Cause.CLOSED_BY_PEER, None, text)
    if "timed out" in text:
        return Fault(
            _K.UNREACHABLE if connecting else _K.LOST,
            None if connecting else Cause.SILENT_DROP,
            None,
            text,
        )
    return Fault(_K.REJECTED if connecting else _K.LOST, None, None, text)


# -- MySQL and MariaDB -----------------------------------------------------------------------------

_MYSQL_CAUSES: dict[int, Cause | None] = {
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
#: Client codes: the connection is gone (2006, 2013, 2055), or out of step with the protocol (2014,
#: 2027, 2048).
_MYSQL_CLIENT_LOST = {2006, 2013, 2014, 2027, 2045, 2048, 2055}
#: How OpenSSL says that the other side went away during the handshake; the last two are the client
#: library's words where OpenSSL has no error of its own to tell: nothing, or SSL_ERROR_SYSCALL.
_HUNG_UP_IN_TLS = (
    "unexpected eof",
    "connection reset",
    "broken pipe",
    "connection was closed",
    "error:00000000",
    "error:00000005",
)
_MYSQL_CLIENT_CONNECT = {2001, 2002, 2003, 2004, 2005, 2009, 2010, 2011, 2012}
_MYSQL_TOO_MANY = {1040, 1203, 1135}  # server full, user full, no thread to be had
_MYSQL_REJECTED = {
    1044, 1045, 1049, 1129, 1130, 1251, 1524, 1698, 1820, 1862, 3118, 3159, 4151,  # the server's no
    # the client's: protocol, character set, authentication plugin
    2007, 2019, 2047, 2049, 2054, 2058, 2059, 2060, 2061,
}  # fmt: skip
# the server is; 1792 is the transaction, which the application may have wanted so
_MYSQL_READ_ONLY = {1836}
_MYSQL_TOO_LARGE = {1153, 2020}
# deadlock (and Galera's certification failure), group replication's forced rollback
_MYSQL_RETRY = {1213, 3101}


def mysql_fault(errno: int | None, text: str, *, connecting: bool = False) -> Fault:
    """What error *errno* of a MySQL or MariaDB server or client, with its message *text*, means.

    1205 (lock wait timeout) is OTHER: it undoes one statement, not the transaction, so nothing may
    be replayed on it.
    """
    line = one_line(text)
    if errno in _MYSQL_CAUSES:
        cause = _MYSQL_CAUSES[errno]
        return Fault(
            _K.NOT_READY if connecting and cause is Cause.SHUTDOWN else _K.LOST, cause, errno, line
        )
    if errno in _MYSQL_CLIENT_LOST or errno == 2026:
        return _mysql_lost(errno, line, connecting)
    if errno in _MYSQL_CLIENT_CONNECT:
        return _mysql_connect(errno, line)
    if errno in _MYSQL_RETRY:
        return Fault(_K.RETRY, None, errno, line)
    if errno in _MYSQL_TOO_MANY or (errno == 1226 and "max_user_connections" in text):
        return Fault(_K.TOO_MANY, None, errno, line)
    if errno in _MYSQL_REJECTED or (errno == 1226 and "max_connections_per_hour" in text):
        return Fault(_K.REJECTED, None, errno, line)
    if errno in _MYSQL_TOO_LARGE:
        return Fault(
            _K.REJECTED if connecting else _K.TOO_LARGE,
            None,
            errno,
            f"larger than max_allowed_packet: {line}",
        )
    if errno == 1792:
        return Fault(_K.READ_ONLY, None, errno, line)
    if errno in _MYSQL_READ_ONLY or (
        errno == 1290 and "read-only" in text.replace("_", "-").lower()
    ):
        return Fault(_K.WRONG_SERVER, Cause.FAILOVER, errno, line)
    if errno == 1047 and "wsrep" in text.lower():  # a Galera node outside the primary component
        return Fault(_K.NOT_READY if connecting else _K.WRONG_SERVER, Cause.FAILOVER, errno, line)
    return Fault(_K.OTHER, None, errno, line)


def _mysql_lost(errno: int, line: str, connecting: bool) -> Fault:
    number = errno_of_text(line)
    if number in (E.EAGAIN, E.EINPROGRESS) and connecting:
        # libmariadb's word for a handshake that timed out
        number = E.ETIMEDOUT
    known = _of_errno(number, line, connecting) if number is not None else None
    if known is not None and known.kind in (_K.LOST, _K.UNREACHABLE):
        return Fault(known.kind, known.cause, errno, line)
    # TLS: a certificate or a version that will not do, unless the server was ended in the middle of
    # it
    if errno == 2026 and connecting and not any(word in line.lower() for word in _HUNG_UP_IN_TLS):
        return Fault(_K.REJECTED, None, errno, line)
    return Fault(_K.LOST, None, errno, line)


def _mysql_connect(errno: int, line: str) -> Fault:
    number = errno_of_text(line)
    if number == E.EINPROGRESS:
        # libmariadb's (115) for a connect that failed at once: a time-out is (110)
        number = E.ECONNREFUSED
    known = _of_errno(number, line, True) if number is not None else None
    if known is not None:
        return Fault(known.kind, known.cause, errno, line)
    return Fault(_K.REJECTED if errno == 2005 else _K.UNREACHABLE, None, errno, line)


# -- PostgreSQL ------------------------------------------------------------------------------------

_PG_CAUSES: dict[str, Cause | None] = {
    "57P01": (
        Cause.KILLED
    ),  # admin_shutdown: the same words for pg_terminate_backend and for a fast shutdown
    "57P02": Cause.CRASHED,  # crash_shutdown
    "57P04": None,  # database_dropped
    "57P05": Cause.IDLE_LIMIT,  # idle_session_timeout (14+)
    "25P03": Cause.TRANSACTION_LIMIT,  # idle_in_transaction_session_timeout
    "25P04": Cause.TRANSACTION_LIMIT,  # transaction_timeout (17+)
    "40003": None,  # statement_completion_unknown
}
_PG_REJECTED = {"28000", "28P01", "3D000"}
_PG_RETRY = {"40001", "40P01"}
#: PgBouncer gives most of its answers one SQLSTATE, 08P01, so that only the words tell them apart.
_BOUNCER_WORDS: tuple[tuple[str, FaultKind], ...] = (
    ("no more connections allowed", _K.TOO_MANY),
    ("query_wait_timeout", _K.TOO_MANY),
    ("too many", _K.TOO_MANY),
    ("no such database", _K.REJECTED),
    ("no such user", _K.REJECTED),
    ("not allowed", _K.REJECTED),
    ("auth", _K.REJECTED),
    ("login", _K.NOT_READY),
    ("shutting down", _K.NOT_READY),
    ("cannot connect", _K.NOT_READY),
    ("disabled", _K.NOT_READY),
    ("server conn crashed", _K.LOST),
    ("idle_transaction_timeout", _K.LOST),
    ("client_idle_timeout", _K.LOST),
    ("connection", _K.LOST),
)
#: libpq's and the server's words where no SQLSTATE is handed on (libpq gives none for a failed
#: connect).
_PG_WORDS: tuple[tuple[str, FaultKind, str | None], ...] = (
    ("starting up", _K.NOT_READY, "57P03"),
    ("shutting down", _K.NOT_READY, "57P03"),
    ("in recovery mode", _K.NOT_READY, "57P03"),
    ("not yet accepting connections", _K.NOT_READY, "57P03"),
    ("not accepting connections", _K.NOT_READY, "57P03"),
    ("too many clients", _K.TOO_MANY, "53300"),
    ("too many connections", _K.TOO_MANY, "53300"),
    ("remaining connection slots", _K.TOO_MANY, "53300"),
    ("no more connections allowed", _K.TOO_MANY, "53300"),
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
    ("root certificate", _K.REJECTED, None),
    ("server does not support ssl", _K.REJECTED, None),
    ("invalid connection option", _K.REJECTED, None),
    ("invalid value for parameter", _K.REJECTED, "22023"),
    ("unrecognized configuration parameter", _K.REJECTED, "42704"),
)  # fmt: skip
_PG_ROLE_OR_DATABASE = re.compile(r'(role|database) "[^"]*" does not exist', re.IGNORECASE)
_PG_LOST_WORDS = (
    "server closed the connection", "connection is closed", "the connection is lost",
    "connection was closed", "connection already closed", "terminating connection",
    "connection socket closed", "ssl connection has been closed", "ssl syscall error",
    "no connection to the server", "could not receive data", "could not send data",
    "consuming input failed", "lost synchronization", "connection not open",
    "unexpected connection_lost", "underlying connection is closed", "sending query failed",
    "flushing failed", "connection is bad",
)  # fmt: skip


def postgres_fault(sqlstate: str | None, text: str, *, connecting: bool = False) -> Fault:
    """What an error of PostgreSQL (or PgBouncer, or libpq: *sqlstate* None) with its message *text*
    means.
    """
    line = one_line(text)
    if not sqlstate:
        return _postgres_words(line, connecting)
    if sqlstate in _PG_CAUSES:
        if connecting and sqlstate in ("57P01", "57P02"):
            return Fault(_K.NOT_READY, Cause.SHUTDOWN, sqlstate, line)
        return Fault(_K.LOST, cause_of_words(sqlstate, text, "postgresql"), sqlstate, line)
    if sqlstate == "57P03":  # cannot_connect_now
        return Fault(_K.NOT_READY, None, sqlstate, line)
    if sqlstate == "53300":
        return Fault(_K.TOO_MANY, None, sqlstate, line)
    if sqlstate in _PG_RETRY:
        return Fault(_K.RETRY, None, sqlstate, line)
    if sqlstate in _PG_REJECTED or (connecting and sqlstate in ("42501", "42704", "22023")):
        return Fault(_K.REJECTED, None, sqlstate, line)
    if sqlstate == "25006":  # after a failover, or because the application asked for it
        return Fault(
            _K.WRONG_SERVER if connecting else _K.READ_ONLY,
            Cause.FAILOVER if connecting else None,
            sqlstate,
            line,
        )
    if sqlstate == "08P01":
        return _bouncer(sqlstate, line, connecting)
    if sqlstate.startswith("08"):
        return _connection_exception(sqlstate, line, connecting)
    return Fault(_K.OTHER, None, sqlstate, line)


def _bouncer(sqlstate: str, line: str, connecting: bool) -> Fault:
    """08P01 is PgBouncer's code for everything; from a server in use it is a protocol slip of the
    application's.
    """
    lower = line.lower()
    if not connecting and "bind message" in lower:
        return Fault(_K.OTHER, None, sqlstate, line)
    for words, kind in _BOUNCER_WORDS:
        if words in lower:
            return Fault(kind, None, sqlstate, line)
    return Fault(_K.NOT_READY if connecting else _K.OTHER, None, sqlstate, line)


def _connection_exception(sqlstate: str, line: str, connecting: bool) -> Fault:
    number = errno_of_text(line)
    known = _of_errno(number, line, connecting) if number is not None else None
    if known is not None:
        return Fault(known.kind, known.cause, sqlstate, line)
    return Fault(_K.LOST, None, sqlstate, line)


def _postgres_words(line: str, connecting: bool) -> Fault:
    lower = line.lower()
    if "terminating connection" not in lower:
        for words, kind, code in _PG_WORDS:
            if words in lower and (connecting or kind is not _K.REJECTED):
                return Fault(kind, Cause.FAILOVER if kind is _K.WRONG_SERVER else None, code, line)
        if connecting and _PG_ROLE_OR_DATABASE.search(line):
            return Fault(_K.REJECTED, None, "3D000" if "database" in lower else "28000", line)
    number = next((number for words, number in _OS_WORDS if words in lower), None)
    known = _of_errno(number, line, connecting) if number is not None else None
    if known is not None:
        return known
    if any(words in lower for words in _PG_LOST_WORDS):
        return Fault(_K.LOST, _pg_goodbye(lower), None, line)
    # A failed connect whose words are in another language: waiting is bounded and harms less than
    # giving up.
    return Fault(_K.NOT_READY if connecting else _K.OTHER, None, None, line)


def _pg_goodbye(lower: str) -> Cause | None:
    if "administrator command" in lower:
        return Cause.KILLED
    if "crash of another server process" in lower:
        return Cause.CRASHED
    if "idle-session timeout" in lower:
        return Cause.IDLE_LIMIT
    if "idle-in-transaction timeout" in lower or "transaction timeout" in lower:
        return Cause.TRANSACTION_LIMIT
    return None


# -- last words ------------------------------------------------------------------------------------


def is_goodbye(code: int | str, text: str, backend: str) -> bool:
    """Whether a server that sent *code* (MySQL errno or SQLSTATE) and *text* unasked ends the
    session with it.
    """
    if backend == "postgresql":
        return postgres_fault(str(code), text).is_lost
    return mysql_fault(int(code), text).is_lost


def cause_of_words(code: int | str | None, text: str, backend: str) -> Cause:
    """Why a server ended an idle connection, from its last packet: *code* (MySQL errno or SQLSTATE)
    and *text*.

    *backend* is ``mysql``, ``mariadb`` or ``postgresql``. CLOSED_BY_PEER where the packet does not
    tell. PostgreSQL says 57P01 in the same words for pg_terminate_backend and for a shutdown;
    KILLED then means "on an administrator's order".
    """
    lower = text.lower()
    if backend == "postgresql":
        if code == "57P01" and "shut" in lower:
            return Cause.SHUTDOWN
        if code == "57P03":
            return Cause.SHUTDOWN
        return _PG_CAUSES.get(str(code)) or _pg_goodbye(lower) or Cause.CLOSED_BY_PEER
    try:
        number = int(code) if code is not None else 0
    except ValueError:
        number = 0
    cause = _MYSQL_CAUSES.get(number)
    if cause is None and "killed" in lower:
        cause = Cause.KILLED
    return cause or Cause.CLOSED_BY_PEER
