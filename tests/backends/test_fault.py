"""What codes and words of servers, clients and the system mean.

Words are copied from real servers and drivers.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.abc import Cause, FaultKind
from unbroken.backends.fault import cause_of_words, is_own, shows_server
from unbroken.backends.mysql import mysql_fault
from unbroken.backends.postgresql import postgres_fault
from unbroken.backends.system import chain, errno_of_text, one_line, os_fault

K = FaultKind


@pytest.mark.parametrize(
    ("code", "text", "connecting", "kind", "cause"),
    [
        (1927, "Connection was killed", False, K.LOST, Cause.KILLED),
        (4031, "The client was disconnected by the server because of inactivity.", False, K.LOST, Cause.IDLE_LIMIT),  # noqa: E501
        (1053, "Server shutdown in progress", False, K.LOST, Cause.SHUTDOWN),
        (1053, "Server shutdown in progress", True, K.NOT_READY, Cause.SHUTDOWN),
        (1158, "Got an error reading communication packets", False, K.LOST, None),
        (1161, "Got timeout writing communication packets", False, K.LOST, Cause.SILENT_DROP),
        (2006, "MySQL server has gone away", False, K.LOST, None),
        (2006, "MySQL server has gone away (BrokenPipeError(32, 'Broken pipe'))", False, K.LOST, Cause.CONNECTION_RESET),  # noqa: E501
        (2013, "Lost connection to MySQL server during query", False, K.LOST, None),
        (2013, "Lost connection to MySQL server during query ([Errno 104] Connection reset by peer)", False, K.LOST, Cause.CONNECTION_RESET),  # noqa: E501
        (2013, "Lost connection to MySQL server during query (timed out)", False, K.LOST, Cause.SILENT_DROP),  # noqa: E501
        (2013, "Lost connection to MySQL server during query (timed out)", True, K.UNREACHABLE, None),  # noqa: E501
        (2013, "Lost connection to server at 'handshake: reading initial communication packet', system error: 110", True, K.UNREACHABLE, None),  # noqa: E501
        (2013, "Lost connection to server at 'handshake: reading initial communication packet', system error: 104", True, K.LOST, Cause.CONNECTION_RESET),  # noqa: E501
        (2014, "Commands out of sync; you can't run this command now", False, K.LOST, None),
        (2048, "Invalid connection handle", False, K.LOST, None),
        (2055, "Lost connection to MySQL server at '%s', system error: %d", False, K.LOST, None),
        (5013, "Read error: Connection timed out (110)", False, K.LOST, Cause.SILENT_DROP),
        (5014, "Write error: Broken pipe (32)", False, K.LOST, Cause.CONNECTION_RESET),
        (2002, "Can't connect to local server through socket '/run/my.sock' (2)", True, K.REFUSED, None),  # noqa: E501
        (2002, "Can't connect to server on '127.0.0.1' (115)", True, K.REFUSED, None),
        (2002, "Can't connect to server on '127.0.0.1' (110)", True, K.UNREACHABLE, None),
        (2003, "Can't connect to MySQL server on 'db' ([Errno 111] Connection refused)", True, K.REFUSED, None),  # noqa: E501
        (2003, "Can't connect to MySQL server on 'db' (timed out)", True, K.UNREACHABLE, None),
        (2003, "Can't connect to MySQL server on 'db' ([Errno 113] No route to host)", True, K.UNREACHABLE, None),  # noqa: E501
        (2003, "Can't connect to MySQL server on 'db' ([Errno -2] Name or service not known)", True, K.UNKNOWN_NAME, None),  # noqa: E501
        (2003, "Can't connect to MySQL server on 'db' ([Errno -3] Temporary failure in name resolution)", True, K.UNREACHABLE, None),  # noqa: E501
        (2005, "Unknown server host 'db' (-2)", True, K.UNKNOWN_NAME, None),
        (2005, "Unknown server host 'db' (-3)", True, K.UNREACHABLE, None),
        (2005, "Unknown MySQL server host 'db' (-2)", True, K.UNKNOWN_NAME, None),
        (2005, "Unbekannter MySQL Server Host 'db'", True, K.UNKNOWN_NAME, None),
        (2003, "Can't connect to MySQL server on 'db:3306' (-2 Name or service not known)", True, K.UNKNOWN_NAME, None),  # noqa: E501
        (2026, "TLS/SSL error: self-signed certificate in certificate chain", True, K.REJECTED, None),  # noqa: E501
        (2026, "TLS/SSL error: unexpected eof while reading", True, K.LOST, None),
        (2026, "SSL connection error: error:00000005", False, K.LOST, None),
        (2026, "SSL connection error: error:00000000:lib(0)::reason(0)", True, K.LOST, None),
        (2026, "SSL connection error: error:00000005:lib(0)::reason(5)", True, K.LOST, None),
        (2026, "SSL connection error: error:0A000086:SSL routines::certificate verify failed", True, K.REJECTED, None),  # noqa: E501
        (1040, "Too many connections", True, K.TOO_MANY, None),
        (1203, "User app already has more than 'max_user_connections' active connections", True, K.TOO_MANY, None),  # noqa: E501
        (1226, "User 'app' has exceeded the 'max_user_connections' resource (current value: 2)", True, K.TOO_MANY, None),  # noqa: E501
        (1226, "User 'app' has exceeded the 'max_connections_per_hour' resource (current value: 2)", True, K.REJECTED, None),  # noqa: E501
        (1226, "User 'app' has exceeded the 'max_questions' resource (current value: 2)", False, K.OTHER, None),  # noqa: E501
        (1290, "The MariaDB server is running with the --read-only option so it cannot execute this statement", False, K.READ_ONLY, Cause.FAILOVER),  # noqa: E501
        (1290, "The MySQL server is running with the --super-read-only option so …", False, K.READ_ONLY, Cause.FAILOVER),  # noqa: E501
        (1290, "The MySQL server is running with the --secure-file-priv option so …", False, K.OTHER, None),  # noqa: E501
        (1792, "Cannot execute statement in a READ ONLY transaction", False, K.READ_ONLY, None),
        (1153, "Got a packet bigger than 'max_allowed_packet' bytes", False, K.TOO_LARGE, None),
        (2020, "Got packet bigger than 'max_allowed_packet' bytes", False, K.TOO_LARGE, None),
        (2020, "Got packet bigger than 'max_allowed_packet' bytes", True, K.REJECTED, None),
        (1836, "Running in read-only mode", False, K.READ_ONLY, Cause.FAILOVER),
        (1836, "Running in read-only mode", True, K.WRONG_SERVER, Cause.FAILOVER),
        (1047, "WSREP has not yet prepared node for application use", False, K.WRONG_SERVER, Cause.FAILOVER),  # noqa: E501
        (1047, "Unknown command", False, K.OTHER, None),
        (1213, "Deadlock found when trying to get lock; try restarting transaction", False, K.RETRY, None),  # noqa: E501
        (1205, "Lock wait timeout exceeded; try restarting transaction", False, K.OTHER, None),
        (1317, "Query execution was interrupted", False, K.OTHER, None),
        (1045, "Access denied for user 'app'@'h' (using password: YES)", True, K.REJECTED, None),
        (1044, "Access denied for user", True, K.REJECTED, None),
        (1049, "Unknown database 'x'", True, K.REJECTED, None),
        (1698, "Access denied for user", True, K.REJECTED, None),
        (2059, "Authentication plugin 'x' cannot be loaded", True, K.REJECTED, None),
        (1062, "Duplicate entry '1' for key 'PRIMARY'", False, K.OTHER, None),
        (None, "", False, K.OTHER, None),
    ],
)  # fmt: skip
def test_what_an_error_of_mysql_means(
    code: int | None, text: str, connecting: bool, kind: FaultKind, cause: Cause | None
) -> None:
    fault = mysql_fault(code, text, connecting=connecting)
    assert (fault.kind, fault.cause, fault.code) == (kind, cause, code)


GOODBYE = (
    "terminating connection due to administrator command SSL connection has been closed"
    " unexpectedly"
)


@pytest.mark.parametrize(
    ("sqlstate", "text", "connecting", "kind", "cause"),
    [
        ("57P01", GOODBYE, False, K.LOST, Cause.KILLED),
        ("57P01", GOODBYE, True, K.NOT_READY, Cause.SHUTDOWN),
        ("57P02", "terminating connection because of crash of another server process", False, K.LOST, Cause.CRASHED),  # noqa: E501
        ("57P03", "the database system is starting up", True, K.NOT_READY, None),
        ("57P04", "terminating connection because the database was dropped", False, K.LOST, Cause.CLOSED_BY_PEER),  # noqa: E501
        ("57P05", "terminating connection due to idle-session timeout", False, K.LOST, Cause.IDLE_LIMIT),  # noqa: E501
        ("25P03", "terminating connection due to idle-in-transaction timeout", False, K.LOST, Cause.TRANSACTION_LIMIT),  # noqa: E501
        ("25P04", "terminating connection due to transaction timeout", False, K.LOST, Cause.TRANSACTION_LIMIT),  # noqa: E501
        ("53300", "sorry, too many clients already", True, K.TOO_MANY, None),
        ("25006", "cannot execute INSERT in a read-only transaction", False, K.READ_ONLY, None),
        ("25006", "session is read-only", True, K.WRONG_SERVER, Cause.FAILOVER),
        ("40001", "could not serialize access due to concurrent update", False, K.RETRY, None),
        ("40P01", "deadlock detected", False, K.RETRY, None),
        ("28P01", 'password authentication failed for user "app"', True, K.REJECTED, None),
        ("28000", "no pg_hba.conf entry", True, K.REJECTED, None),
        ("3D000", 'database "x" does not exist', True, K.REJECTED, None),
        ("42501", "permission denied for database", True, K.REJECTED, None),
        ("42501", "permission denied for table t", False, K.OTHER, None),
        ("08006", "connection failure", False, K.LOST, None),
        ("08003", "connection does not exist", False, K.LOST, None),
        ("08P01", "bind message supplies 1 parameters, but prepared statement requires 2", False, K.OTHER, None),  # noqa: E501
        ("08P01", "no more connections allowed (max_client_conn)", True, K.TOO_MANY, None),
        ("08P01", "no such database: x", True, K.REJECTED, None),
        ("08P01", "server login has been failing, cached error: connect failed (server_login_retry)", True, K.NOT_READY, None),  # noqa: E501
        ("08P01", "server conn crashed?", False, K.LOST, None),
        ("08P01", "server conn crashed?", True, K.NOT_READY, None),
        ("08P01", "server login has been failing, try again later (server_login_retry)", False, K.NOT_READY, None),  # noqa: E501
        ("08P01", "server login has been failing, cached error: password authentication failed (server_login_retry)", True, K.NOT_READY, None),  # noqa: E501
        ("08P01", "query_wait_timeout", False, K.TOO_MANY, None),
        ("08P01", "query_wait_timeout", True, K.TOO_MANY, None),
        ("08P01", "client_login_timeout (server down)", True, K.NOT_READY, None),
        ("08P01", "client_login_timeout", True, K.NOT_READY, None),
        ("08P01", "client connections exceeded (max_db_client_connections)", True, K.TOO_MANY, None),  # noqa: E501
        ("08P01", 'database "shop" is disabled', True, K.NOT_READY, None),
        ("08P01", "pgbouncer cannot connect to server", True, K.NOT_READY, None),
        ("08P01", "pooler is shutting down", True, K.NOT_READY, None),
        ("08P01", "server shutting down", False, K.LOST, Cause.SHUTDOWN),
        ("08P01", "client_idle_timeout", False, K.LOST, Cause.IDLE_LIMIT),
        ("08P01", "idle transaction timeout", False, K.LOST, Cause.TRANSACTION_LIMIT),
        ("08P01", "query timeout", False, K.LOST, None),
        ("08P01", "database removed", False, K.LOST, Cause.KILLED),
        ("08P01", "admin forced disconnect", False, K.LOST, Cause.KILLED),
        ("08P01", "database configuration changed", False, K.LOST, None),
        ("08P01", "server lifetime over", False, K.LOST, None),
        ("08P01", "bouncer config error", True, K.NOT_READY, None),
        ("08P01", "unsupported startup parameter: extra_float_digits", True, K.REJECTED, None),
        ("08P01", "SSL required", True, K.REJECTED, None),
        ("08P01", "SASL authentication failed", True, K.REJECTED, None),
        ("08P01", "password authentication failed", True, K.REJECTED, None),
        ("08P01", "no such user: app", True, K.REJECTED, None),
        ("08P01", "the database system is starting up", True, K.NOT_READY, None),
        ("08P01", "sorry, too many clients already", True, K.TOO_MANY, None),
        ("08P01", 'database "x" does not exist', True, K.REJECTED, None),
        ("08P01", "words of a later version", True, K.NOT_READY, None),
        ("08P01", "words of a later version", False, K.OTHER, None),
        ("08P01", "prepared statement did not exist", False, K.LOST, Cause.OTHER_SESSION),
        ("26000", 'prepared statement "_pg3_0" does not exist', False, K.LOST, Cause.OTHER_SESSION),
        ("42P05", 'prepared statement "_pg3_0" already exists', False, K.LOST, Cause.OTHER_SESSION),
        ("26000", 'prepared statement "__asyncpg_stmt_7__" does not exist', False, K.LOST, Cause.OTHER_SESSION),  # noqa: E501
        ("26000", "unnamed prepared statement does not exist", False, K.LOST, Cause.OTHER_SESSION),
        ("26000", 'prepared statement "theirs" does not exist', False, K.OTHER, None),
        ("42P05", 'prepared statement "theirs" already exists', False, K.OTHER, None),
        ("23505", "duplicate key value", False, K.OTHER, None),
        ("55P03", "could not obtain lock", False, K.OTHER, None),
        ("57014", "canceling statement due to user request", False, K.OTHER, None),
        (None, 'connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused\n\tIs the server running?', True, K.REFUSED, None),  # noqa: E501
        (None, 'connection to server on socket "/x/.s.PGSQL.5432" failed: No such file or directory', True, K.REFUSED, None),  # noqa: E501
        (None, "connection timeout expired", True, K.UNREACHABLE, None),
        (None, "failed to resolve host 'db': [Errno -2] Name or service not known", True, K.UNKNOWN_NAME, None),  # noqa: E501
        (None, 'could not translate host name "db" to address: Name or service not known', True, K.UNKNOWN_NAME, None),  # noqa: E501
        (None, 'could not translate host name "db" to address: Name oder Dienst nicht bekannt', True, K.UNKNOWN_NAME, None),  # noqa: E501
        (None, 'could not translate host name "db" to address: Temporary failure in name resolution', True, K.UNREACHABLE, None),  # noqa: E501
        (None, 'connection failed: FATAL:  password authentication failed for user "app"', True, K.REJECTED, None),  # noqa: E501
        (None, 'connection failed: FATAL:  database "x" does not exist', True, K.REJECTED, None),
        (None, 'connection failed: FATAL:  role "x" does not exist', True, K.REJECTED, None),
        (None, "connection failed: FATAL:  the database system is shutting down", True, K.NOT_READY, None),  # noqa: E501
        (None, "connection failed: FATAL:  sorry, too many clients already", True, K.TOO_MANY, None),  # noqa: E501
        (None, "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", True, K.TOO_MANY, None),  # noqa: E501
        (None, "connection failed: FATAL:  SSL required", True, K.REJECTED, None),
        (None, "connection failed: FATAL:  unsupported startup parameter: options", True, K.REJECTED, None),  # noqa: E501
        (None, "connection failed: FATAL:  server login has been failing, cached error: password authentication failed (server_login_retry)", True, K.NOT_READY, None),  # noqa: E501
        (None, "connection failed: FATAL:  query_wait_timeout", True, K.TOO_MANY, None),
        (None, "FATAL:  Passwort-Authentifizierung fehlgeschlagen", True, K.NOT_READY, None),
        (None, "consuming input failed: server closed the connection unexpectedly This probably means the server terminated …", False, K.LOST, None),  # noqa: E501
        (None, f"consuming input failed: {GOODBYE}", False, K.LOST, Cause.KILLED),
        (None, "terminating connection due to idle-session timeout", False, K.LOST, Cause.IDLE_LIMIT),  # noqa: E501
        (None, "the connection is closed", False, K.LOST, None),
        (None, "could not receive data from server: Connection reset by peer", False, K.LOST, Cause.CONNECTION_RESET),  # noqa: E501
        (None, "could not receive data from server: Connection timed out", False, K.LOST, Cause.SILENT_DROP),  # noqa: E501
        (None, "something of the application's", False, K.OTHER, None),
    ],
)  # fmt: skip
def test_what_an_error_of_postgresql_means(
    sqlstate: str | None, text: str, connecting: bool, kind: FaultKind, cause: Cause | None
) -> None:
    fault = postgres_fault(sqlstate, text, connecting=connecting)
    assert (fault.kind, fault.cause) == (kind, cause)
    assert "\n" not in fault.text


@pytest.mark.parametrize(
    ("sqlstate", "text", "kind"),
    [
        ("08P01", "words of a later version", K.LOST),
        ("40001", "terminating connection due to conflict with recovery", K.LOST),
        ("XX000", "something broke", K.LOST),
        ("08P01", "query_wait_timeout", K.TOO_MANY),
        ("57P03", "the database system is shutting down", K.NOT_READY),
    ],
)
def test_a_fatal_error_ends_its_session(sqlstate: str, text: str, kind: FaultKind) -> None:
    assert postgres_fault(sqlstate, text, fatal=True).kind is kind
    assert postgres_fault(sqlstate, text, connecting=True, fatal=True).kind is not K.OTHER or (
        sqlstate == "XX000"
    )


@pytest.mark.parametrize(
    ("exc", "connecting", "kind", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True, K.REFUSED, None),
        (FileNotFoundError(errno.ENOENT, "no socket"), True, K.REFUSED, None),
        (FileNotFoundError(errno.ENOENT, "their own file"), False, K.OTHER, None),
        (PermissionError(errno.EACCES, "socket"), True, K.REJECTED, None),
        (TimeoutError(), True, K.UNREACHABLE, None),
        (TimeoutError("timed out"), False, K.LOST, Cause.SILENT_DROP),
        (OSError(errno.ETIMEDOUT, "x"), False, K.LOST, Cause.SILENT_DROP),
        (OSError(errno.EHOSTUNREACH, "x"), True, K.UNREACHABLE, None),
        (ConnectionResetError(errno.ECONNRESET, "x"), False, K.LOST, Cause.CONNECTION_RESET),
        (BrokenPipeError(errno.EPIPE, "x"), False, K.LOST, Cause.CONNECTION_RESET),
        (ConnectionError("unexpected connection_lost() call"), False, K.LOST, None),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed ('127.0.0.1', 1)"), True, K.REFUSED, None),  # noqa: E501
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True, K.UNKNOWN_NAME, None),  # noqa: E501
        (socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"), True, K.UNKNOWN_NAME, None),  # noqa: E501
        (socket.gaierror(socket.EAI_SYSTEM, "System error"), True, K.UNREACHABLE, None),
        (socket.gaierror(socket.EAI_FAMILY, "ai_family not supported"), True, K.REJECTED, None),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True, K.UNREACHABLE, None),  # noqa: E501
        (ssl.SSLCertVerificationError("self-signed"), True, K.REJECTED, None),
        (ssl.SSLEOFError("EOF"), True, K.LOST, Cause.CLOSED_BY_PEER),
        (ssl.SSLError("wrong version number"), True, K.REJECTED, None),
        (ssl.SSLError("bad record mac"), False, K.LOST, None),
        (EOFError(), False, K.LOST, Cause.CLOSED_BY_PEER),
        (OSError(errno.ENOSPC, "disk full"), False, K.OTHER, None),
        (ValueError("theirs"), False, K.OTHER, None),
    ],
)  # fmt: skip
def test_what_an_error_of_the_system_means(
    exc: BaseException, connecting: bool, kind: FaultKind, cause: Cause | None
) -> None:
    fault = os_fault(exc, connecting=connecting)
    assert (fault.kind, fault.cause) == (kind, cause)


@pytest.mark.parametrize(
    ("code", "text", "backend", "cause"),
    [
        (4031, "", "mysql", Cause.IDLE_LIMIT),
        (1927, "Connection was killed", "mariadb", Cause.KILLED),
        ("1053", "", "mysql", Cause.SHUTDOWN),
        (1158, "", "mysql", Cause.CLOSED_BY_PEER),
        (None, "", "mysql", Cause.CLOSED_BY_PEER),
        ("odd", "", "mysql", Cause.CLOSED_BY_PEER),
        ("57P01", GOODBYE, "postgresql", Cause.KILLED),
        ("57P01", "the database system is shutting down", "postgresql", Cause.SHUTDOWN),
        ("57P02", "", "postgresql", Cause.CRASHED),
        ("57P03", "", "postgresql", Cause.SHUTDOWN),
        ("57P05", "", "postgresql", Cause.IDLE_LIMIT),
        ("25P03", "", "postgresql", Cause.TRANSACTION_LIMIT),
        ("25P04", "", "postgresql", Cause.TRANSACTION_LIMIT),
        ("08P01", "client_idle_timeout", "postgresql", Cause.IDLE_LIMIT),
        ("08P01", "database removed", "postgresql", Cause.KILLED),
        ("08P01", "server shutting down", "postgresql", Cause.SHUTDOWN),
        ("08P01", "query_wait_timeout", "postgresql", Cause.CLOSED_BY_PEER),
        (
            None,
            "terminating connection due to idle-session timeout",
            "postgresql",
            Cause.IDLE_LIMIT,
        ),
        (None, "", "postgresql", Cause.CLOSED_BY_PEER),
    ],
)
def test_what_the_last_words_of_a_server_mean(
    code: Any, text: str, backend: str, cause: Cause
) -> None:
    assert cause_of_words(code, text, backend) is cause


def test_one_line_is_one_line_without_secrets() -> None:
    text = one_line(
        "failed:\n  password=hunter2 for mysql://app:s3cret@db/x\tand hunter3", "hunter3"
    )
    assert text == "failed: password=*** for mysql://app:***@db/x and ***"
    assert len(one_line("x" * 1000)) == 300


def test_the_chain_of_an_error_ends() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert list(chain(first)) == [first, second]


@given(st.integers(0, 6000) | st.none(), st.text(max_size=80), st.booleans())
def test_any_error_of_mysql_gives_a_fault(code: int | None, text: str, connecting: bool) -> None:
    assert isinstance(mysql_fault(code, text, connecting=connecting).kind, FaultKind)


@given(
    st.text("0123456789ABCDPXZ", min_size=5, max_size=5) | st.none(),
    st.text(max_size=80),
    st.booleans(),
)
def test_any_error_of_postgresql_gives_a_fault(
    sqlstate: str | None, text: str, connecting: bool
) -> None:
    assert isinstance(postgres_fault(sqlstate, text, connecting=connecting).kind, FaultKind)


@given(st.text(max_size=80))
def test_any_text_has_a_number_or_none(text: str) -> None:
    assert isinstance(errno_of_text(text), int | None)


def test_what_was_handled_before_a_connect_failed_says_nothing_of_its_arguments() -> None:
    assert os_fault(KeyError("host"), connecting=True).kind is K.MISCONFIGURED
    assert os_fault(KeyError("host"), connecting=True, is_link=True).kind is K.OTHER
    assert os_fault(KeyError("host")).kind is K.OTHER


@pytest.mark.parametrize("error", [OverflowError("too large"), struct.error("'I' format")])
def test_a_number_that_does_not_fit_its_field_is_a_wrong_argument(error: Exception) -> None:
    fault = os_fault(error, connecting=True)
    assert fault.kind is K.MISCONFIGURED
    assert is_own(fault)
    assert os_fault(error).kind is K.OTHER


@pytest.mark.parametrize("error", [PermissionError(1, "x"), PermissionError(13, "x")])
def test_what_the_clients_own_system_refuses_does_not_show_a_server(error: OSError) -> None:
    fault = os_fault(error, connecting=True)
    assert fault.kind is K.REJECTED
    assert not shows_server(fault)
    assert is_own(fault)
