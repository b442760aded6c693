"""mysql-connector: the progress of an exchange with the server, and its reports to the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from unbroken.drivers import _mysql
from unbroken.drivers._shared import is_commit, is_rollback
from unbroken.ledger import scope
from unbroken.net.liveness import Liveness, look

# Commands of the protocol (MySQL manual, "Command Phase"). These neither change data nor a
# transaction:
INIT_DB, QUERY, PING, PREPARE, _LONG_DATA, CLOSE, _RESET = 2, 3, 14, 22, 24, 25, 26


_HARMLESS = {INIT_DB, PING, PREPARE, _LONG_DATA, CLOSE, _RESET}


UNANSWERED = {_LONG_DATA, CLOSE}


ERR = 0xFF


class Followed(Protocol):
    """A connection of either form, of a class that follows its exchange with the server."""

    unread_result: bool
    _have_next_result: bool
    _socket: Any


def is_quiet(conn: Followed) -> bool:
    """Return whether the last command was answered in full."""
    return not (
        conn.__dict__.get("_seen_busy", True) or conn.unread_result or conn._have_next_result
    )


def is_there(conn: Followed) -> bool:
    """Return whether a command can be sent, and the kernel has reported no end of the connection.
    Sends nothing to the server. For the pure Python form.
    """
    sock = conn._socket.sock if conn._socket is not None else None
    if sock is None or conn.__dict__.get("_seen_busy", True):
        return False
    return look(sock.fileno()) is not Liveness.DEAD


def is_half_read(conn: Followed) -> bool:
    """Return whether only rows or further results that the application did not fetch are unread."""
    return not conn.__dict__.get("_seen_busy", True) and bool(
        conn.unread_result or conn._have_next_result
    )


def status_of(conn: Followed) -> int | None:
    """Return the server's status at the end of the last exchange; None if it is not certain."""
    if not is_quiet(conn):
        return None
    status: int | None = conn.__dict__.get("_seen_status")
    return status


def is_answer(error: BaseException) -> bool:
    """Return whether *error*, which the connector raised, is an ERR packet of the server's.

    That ends an exchange; nothing else does.
    """
    number = getattr(error, "errno", None)
    if not isinstance(number, int) or number < 1000 or 2000 <= number < 3000:
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith("mysql.connector") and type(error).__name__ not in _TIMEOUTS


#: The connector's own errors that carry a server's error number.
_TIMEOUTS = frozenset({"ReadTimeoutError", "WriteTimeoutError", "ConnectionTimeoutError"})


_OUT_OF_STEP = "Commands out of sync: the answer to an earlier command was not read to its end"


def refuse_if_busy(conn: Followed) -> None:
    """Raise the error of a lost connection if the answer to an earlier command was not read to its
    end.
    """
    if conn.__dict__.get("_seen_busy", False):
        raise out_of_step()


def out_of_step() -> BaseException:
    """Return the error to raise instead of sending a command on a connection that is out of step.
    It is that of a lost connection.
    """
    from mysql.connector.errors import OperationalError

    error: BaseException = OperationalError(errno=2014, msg=_OUT_OF_STEP)
    return error


def doubt_others(conn: Followed, command: int) -> None:
    if command == QUERY:
        return  # queries are reported with their text
    ledger = scope.current(id(conn))
    if ledger is not None and command in _HARMLESS:
        ledger.harmless(conn_id=id(conn))
    elif ledger is not None:
        ledger.doubt(f"command {command} of the MySQL protocol was sent", conn_id=id(conn))


def tell(conn: Followed, sql: Any) -> int | None:
    """Report *sql*. Returns the mark that :func:`answered` takes once the answer has come."""
    conn.__dict__.pop("_seen_told", None)
    ledger = scope.current(id(conn))
    if ledger is None or is_closed(conn):
        return None  # nothing can be sent on a closed one
    if sql is not None and is_commit(sql):
        ledger.committing(conn_id=id(conn))
        return _mysql.COMMIT
    ledger.statement(
        bytes(sql) if isinstance(sql, bytearray) else sql, _commits_itself(conn), conn_id=id(conn)
    )
    return _mysql.ROLLBACK if sql is not None and is_rollback(sql) else _mysql.STATEMENT


def is_closed(conn: Followed) -> bool:
    """Return whether the connector's state shows that *conn* is closed."""
    holder = conn._socket
    return holder is None or (getattr(holder, "sock", holder) is None)


def _commits_itself(conn: Followed) -> bool | None:
    """Return whether a statement sent now is committed by itself: autocommit on and no transaction
    open. None if unknown.
    """
    status = status_of(conn)
    return (
        None
        if status is None
        else status & (_mysql.AUTOCOMMIT | _mysql.IN_TRANSACTION) == _mysql.AUTOCOMMIT
    )


def sent(conn: Followed, sql: Any, send: Callable[[], Any]) -> Any:
    pending = tell(conn, sql)
    try:
        result = send()
    except Exception as error:
        answered(conn, pending, error)
        raise
    answered(conn, pending, None)
    return result


async def sent_async(conn: Followed, sql: Any, sending: Awaitable[Any]) -> Any:
    pending = tell(conn, sql)
    try:
        result = await sending
    except Exception as error:
        answered(conn, pending, error)
        raise
    answered(conn, pending, None)
    return result


def answered(conn: Followed, told: int | None, error: BaseException | None) -> None:
    if told is None:
        return
    if told == _mysql.STATEMENT and error is None and _is_unread(conn):
        conn.__dict__["_seen_told"] = told  # its rows are still to come
    else:
        _mysql.answered(conn, told, error)


def rest_answered(conn: Followed) -> None:
    """Report that the rows were read."""
    told = conn.__dict__.get("_seen_told")
    if told is not None and not _is_unread(conn):
        del conn.__dict__["_seen_told"]
        _mysql.answered(conn, told, None)


def _is_unread(conn: Followed) -> bool:
    return bool(conn.unread_result or conn._have_next_result)
