"""The common parts of the MySQL drivers: options, TLS arguments, error codes, and the server's
status.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from unbroken.abc import Cause, Fault, FaultKind, Target
from unbroken.backends.commits import proves_nothing_stored
from unbroken.backends.mysql import mysql_fault
from unbroken.backends.system import chain, os_fault
from unbroken.drivers._shared import boolean, coerce, from_connect, optional_boolean, seconds, whole
from unbroken.errors import ConfigurationError
from unbroken.ledger import scope, unit
from unbroken.messages.configuration import OPTION_HAS_NO_PLACE

#: Flags of the server's status, in every OK and EOF packet (MySQL manual,
#: "Protocol::SERVER_STATUS_flags_enum").
IN_TRANSACTION, AUTOCOMMIT, MORE_RESULTS = 0x0001, 0x0002, 0x0008
# the last one is MariaDB's
NO_BACKSLASH_ESCAPES, IN_READ_ONLY, ANSI_QUOTES = (0x0200, 0x2000, 0x8000)

COM_INIT_DB, COM_QUERY, COM_PING, COM_QUIT = 2, 3, 14, 1

#: The session value. Interactive clients (mysql shell, CLIENT_INTERACTIVE) have a value other than
#: the global one.
ASK_IDLE_LIMIT = "SELECT @@SESSION.wait_timeout"

Kinds: TypeAlias = Mapping[str, Callable[[str], Any]]

#: Options that every MySQL driver here understands.
COMMON: Kinds = {
    "autocommit": optional_boolean, "charset": str, "client_flag": whole,
    "connect_timeout": seconds, "init_command": str, "local_infile": boolean,
    "read_default_file": str, "read_default_group": str, "sql_mode": str, "use_unicode": boolean,
}  # fmt: skip

#: TLS options under the names of SQLAlchemy's MySQL dialects in a URL. They become the ``ssl``
#: dictionary of PyMySQL and mysqlclient.
TLS: Kinds = {
    "ssl_ca": str, "ssl_capath": str, "ssl_cert": str, "ssl_key": str, "ssl_cipher": str,
    "ssl_check_hostname": boolean,
}  # fmt: skip


def arguments(
    target: Target, kinds: Kinds, driver: str, *, password: str, database: str
) -> dict[str, Any]:
    """Return the keyword arguments for the driver's connect. *password* and *database* are the
    driver's names for these two.
    """
    out = coerce(target.options, kinds, driver)
    given = {
        "host": target.host or "localhost", "port": target.port, "unix_socket": target.unix_socket,
        "user": target.user, password: target.password, database: target.database,
    }  # fmt: skip
    out.update({name: value for name, value in given.items() if value is not None})
    return out


def take_tls(out: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of :data:`TLS` from *out*, and return them as the ``ssl`` dictionary
    (``ca``, ``cert`` …).
    """
    return {name.removeprefix("ssl_"): out.pop(name) for name in TLS if name in out}


def refuse(out: Mapping[str, Any], names: set[str], why: str) -> None:
    """Raise ConfigurationError if any of *names* is among the options."""
    clash = sorted(names & set(out))
    if clash:
        raise ConfigurationError(
            OPTION_HAS_NO_PLACE(f"option {clash[0]!r} in the URL cannot be used here; {why}")
        )


def classify(
    exc: BaseException,
    base: type[BaseException] | tuple[type[BaseException], ...],
    shown: Callable[[object], str],
) -> Fault:
    """Return the fault that *exc* reports. *base* is the driver's ``Error``; *shown* masks the
    secrets in the text.
    """
    connecting = from_connect(exc)
    if not isinstance(exc, base):
        fault = _foreign(exc, connecting)
    else:
        fault = _of_driver(
            exc, number_of(exc), str(exc.args[1]) if len(exc.args) > 1 else str(exc), connecting
        )
    return replace(fault, text=shown(fault.text))


def number_of(exc: BaseException) -> int | None:
    """Return MySQL's number of an error: the first argument in PyMySQL and its relatives, an
    attribute in the connectors.
    """
    number = (
        exc.args[0] if exc.args and isinstance(exc.args[0], int) else getattr(exc, "errno", None)
    )
    return number if isinstance(number, int) and number > 0 else None


def is_answer(exc: BaseException) -> bool:
    """Return whether *exc*, of a driver based on a C library, is an ERR packet of the server's.

    It ends an exchange; nothing else does.
    """
    number = number_of(exc)
    return number is not None and number >= 1000 and not 2000 <= number < 3000


#: The error text for a connection whose last answer was not read to its end. The error counts as a
#: lost connection and is raised instead of sending.
OUT_OF_STEP = "Commands out of sync: the answer to an earlier command was not read to its end"


def _of_driver(exc: BaseException, errno: int | None, text: str, connecting: bool) -> Fault:
    if not errno or errno == 2000:  # CR_UNKNOWN_ERROR: only the text tells more
        lower = f"{text} {exc}".lower()
        gone = type(exc).__name__ == "InterfaceError" or any(words in lower for words in _GONE)
        kind, cause = (
            FaultKind.LOST if gone else FaultKind.OTHER,
            Cause.CANCELLED if "cancelled" in lower else None,
        )
        return Fault(kind, cause, None, text or "the connection is closed")
    fault = mysql_fault(errno, text, connecting=connecting or errno in (2001, 2002, 2003, 2005))
    if errno in (2002, 2003, 2005, 2006, 2013, 2055):
        for inner in list(chain(exc))[1:]:  # aiomysql keeps the system's error only as the cause
            known = os_fault(
                inner, connecting=connecting or errno in (2002, 2003, 2005), is_link=True
            )
            if known.kind is not FaultKind.OTHER:
                return replace(
                    known, code=errno, text=text if known.text in text else f"{text} ({known.text})"
                )
    return fault


def _foreign(exc: BaseException, connecting: bool) -> Fault:
    if (
        isinstance(exc, AttributeError)
        and "NoneType" in str(exc)
        and any(word in str(exc) for word in _SOCKET_WORDS)
    ):
        # its socket was closed in the middle of a call
        return Fault(FaultKind.LOST, None, None, "the connection is closed")
    return os_fault(exc, connecting=connecting)


# Texts of errors that the drivers raise without a code when their socket is gone or the protocol is
# out of step. PyMySQL raises (0, '') besides these.
_GONE = ("closed", "sequence number", "out of sync", "not connected", "not available", "cancelled")
_SOCKET_WORDS = ("sendall", "settimeout", "'read", "recv", "'write", "transport")


#: The effect of a library call, which is no statement, on a session (``_seen_moved``). The next
#: user would find another database, or be another user of the server.
MOVED, ANOTHER_USER = 1, 2


def note_move(conn: Any, how: int) -> None:
    """Note that *conn* is about to be moved to another database, or given to another user."""
    state = conn.__dict__
    state["_seen_moved"] = max(how, state.get("_seen_moved", 0))


#: Beginnings of statements that, if they stand alone, set no variable of the session.
_SETS_NOTHING: frozenset[str | bytes] = frozenset(
    form
    for word in "SEL INS UPD DEL REP COM ROL BEG STA SAV REL SHO DES EXP WIT".split()
    for text in (word, word.lower(), word.title())
    for form in (text, text.encode())
)


#: Statements that run a routine, or a text that is not known.
_RUNS = r"\b(?:CALL|EXECUTE|DO|ATOMIC)\b"
_RUNS_CODE = re.compile(_RUNS, re.IGNORECASE)
_RUNS_CODE_BYTES = re.compile(_RUNS.encode(), re.IGNORECASE)


def note_chains(conn: Any) -> None:
    """Note that a statement on *conn* may have changed the effect of a COMMIT or ROLLBACK there."""
    conn.__dict__["_seen_chains"] = True


def may_chain(conn: Any) -> bool:
    """Return whether that was noted."""
    return bool(conn.__dict__.get("_seen_chains"))


def changes_ends(sql: str | bytes, conn: Any) -> bool:
    """Return whether *sql*, text or bytes sent on *conn*, changes by its words the effect of a
    COMMIT or ROLLBACK on its session.

    A routine that it calls by name may do so unseen; :func:`ran_code` covers that.
    """
    text: Any = sql
    several, name = (";", "completion_type") if isinstance(sql, str) else (b";", b"completion_type")
    if text[:3] in _SETS_NOTHING and several not in text:
        return False
    runs = _RUNS_CODE if isinstance(sql, str) else _RUNS_CODE_BYTES
    if runs.search(text) is not None:
        conn.__dict__["_seen_code"] = True
    return name in text.lower()


def unknown_text(sql: Any, conn: Any) -> None:
    """Note that a command sent on *conn* is too long to examine, or no text at all (None)."""
    if sql is None or sql[:3] not in _SETS_NOTHING:
        conn.__dict__["_seen_code"] = True


def ran_code(conn: Any) -> bool:
    """Return whether a routine was run on *conn* since the last COMMIT or ROLLBACK was seen to work
    as expected. The routine may have changed the effect of the next one.
    """
    return bool(conn.__dict__.get("_seen_code"))


#: The last report on a connection that is not answered yet, as passed to :func:`answered`.
COMMIT, ROLLBACK, STATEMENT = 1, 2, 3


def answered(conn: Any, what: int, error: BaseException | None) -> None:
    """Tell the ledger that the command *what* was answered in full: with success, or with *error*.

    An error in answer to a statement in autocommit does not tell what is stored: tables without
    transactions keep everything that was done before.
    """
    ledger = scope.current(id(conn))
    if ledger is None:
        return
    if error is not None:
        refused(ledger, conn, error)
    elif what == COMMIT:
        ledger.committed(conn_id=id(conn))
    elif what == ROLLBACK:
        ledger.rolled_back(conn_id=id(conn))
    else:
        ledger.acknowledged(conn_id=id(conn))


def refused(ledger: unit.Unit, conn: Any, error: BaseException) -> None:
    """Tell *ledger* what *error* means for the COMMIT that it answers. An error in answer to
    anything else, or one that is not the server's, is not reported.
    """
    if not is_answer(error):
        return
    if proves_nothing_stored("mysql", number_of(error), str(error)):
        ledger.commit_failed(conn_id=id(conn))
    else:
        ledger.commit_doubted(conn_id=id(conn))
