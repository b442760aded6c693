"""The exchange of PyMySQL, aiomysql and asyncmy with the server: its progress, a holder's changes,
and the reports to the ledger.

The three are one library in three forms. Everything here is without I/O. Their classes (see
``exact`` in each driver's file) call it around their library's own steps.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from unbroken.drivers import _mysql
from unbroken.drivers._mysql import (
    ANSI_QUOTES,
    AUTOCOMMIT,
    IN_READ_ONLY,
    IN_TRANSACTION,
    NO_BACKSLASH_ESCAPES,
)
from unbroken.drivers._mysql_converters import Converters
from unbroken.drivers._shared import AUTOCOMMIT_OFF, AUTOCOMMIT_ON, is_commit, is_rollback

#: How far a connection of PyMySQL, aiomysql or asyncmy is in its exchange with the server
#: (``_seen_busy``). Only QUIET is false. The mark is set before the first byte of a command leaves,
#: and cleared as the last step of reading its answer. No step in between can be mistaken for the
#: end, wherever an exception strikes.
QUIET = 0  #: every command was answered in full
SENT = 1  #: a command was sent in full, and no part of its answer was read
#: sending or reading; if no call is active on the connection any more, this state is final
BUSY = 2
WRITING = 3  #: the same, in the middle of a packet

#: The flags of the server's status that are kept: those that a borrower can change, and those that
#: change how its SQL is read.
KEPT = IN_TRANSACTION | AUTOCOMMIT | NO_BACKSLASH_ESCAPES | IN_READ_ONLY | ANSI_QUOTES
#: without the flags that only hold for a transaction
_SETTLED = AUTOCOMMIT | NO_BACKSLASH_ESCAPES | ANSI_QUOTES

#: The number of last statements of a transaction that are kept. One that sent more counts as
#: unknown.
TEXTS = 16
#: The length of the longest statement that is kept. A longer one counts as unknown.
LONGEST_TEXT = 1 << 16

#: Commands that change neither data nor a transaction, so that the ledger needs no report of them.
UNREPORTED = frozenset({_mysql.COM_PING, _mysql.COM_INIT_DB})

#: A holder's changes through a call of the library (``_seen_touched``). The marks are part of the
#: known status, so that one comparison covers them.
CHARSET, DATABASE, TIMEOUTS, OTHERS = 1 << 16, 1 << 17, 1 << 18, 1 << 19
#: the same kind of mark: something must be sent before the next command (``_seen_wants``)
WANTS = 1 << 20


class Followed(Protocol):
    """A connection of one of the three libraries, of a class that follows its exchange with the
    server.
    """

    OperationalError: Any
    InterfaceError: Any
    server_status: int  #: wrong after an error, and after a SELECT
    _result: Any
    _seen_busy: int  #: QUIET, SENT, BUSY or WRITING
    _seen_status: int | None  #: the kept status of the server, with the holder's marks
    #: the command that the ledger was told of, and that is not answered yet
    _seen_pending: int | None
    _seen_touched: int
    _seen_opened: Mapping[str, Any] | None  #: attributes as they were when it was opened
    #: the expected status in each answer that was not waited for, in their order
    _seen_due: tuple[int, ...]
    _seen_wants: str | None  #: the statement that must be sent before the next command
    #: the last statements that were sent since no transaction was open
    _seen_texts: deque[str | bytes | None]


_OUT_OF_STEP = "Commands out of sync: the answer to an earlier command was not read to its end"
_EOF_LENGTH = 5
_HEADER = 4  #: bytes: the length of a packet (3) and its number
_LIBRARIES = {"pymysql", "aiomysql", "asyncmy", "unbroken"}


def exact_result(base: type[Any]) -> type[Any]:
    """Return a result class (of PyMySQL, aiomysql or asyncmy) that keeps the server's status from
    the EOF packet after the rows.

    The drivers discard that packet, so their ``server_status`` is wrong after a SELECT. The
    subclass costs nothing per row.
    """

    class Result(base):  # type: ignore[misc] # the base is only known when the driver is
        eof_status: int | None = None

        def _check_packet_is_eof(self, packet: Any) -> bool:
            if not super()._check_packet_is_eof(packet):
                return False
            data = packet.get_all_data()
            if len(data) == _EOF_LENGTH:  # without DEPRECATE_EOF: 0xFE, warnings (2), status (2)
                self.eof_status = data[3] | data[4] << 8
            return True

    return Result


def status_after(result: Any) -> int | None:
    """Return the server's status at the end of *result*. None while rows or results are still to
    come, or if no status is sent.
    """
    if result.unbuffered_active or result.has_next:
        return None
    status = getattr(result, "eof_status", None)
    if status is None:
        status = result.server_status
    return None if status is None else status & KEPT


def out_of_step(conn: Followed) -> BaseException:
    """Return the error to raise instead of sending a command on a connection that is out of step.
    It is that of a lost connection.
    """
    error: BaseException = conn.OperationalError(2014, _OUT_OF_STEP)
    return error


def follow(conn: Followed) -> None:
    """Follow *conn*, which was opened elsewhere. The statements sent on it before are not known."""
    conn._seen_texts = deque([None], maxlen=TEXTS)


def note(conn: Followed, command: int, sql: Any) -> None:
    """Note a command that is about to be sent.

    If it may change the effect of a COMMIT or ROLLBACK on this session, the session counts as one
    that cannot be restored.
    """
    known = command == _mysql.COM_QUERY and len(sql) <= LONGEST_TEXT
    text = bytes(sql) if known and isinstance(sql, bytearray) else sql  # executemany's
    conn._seen_texts.append(text if known else None)
    if not known:
        if command not in UNREPORTED:
            _mysql.unknown_text(sql if command == _mysql.COM_QUERY else None, conn)
    elif _mysql.changes_ends(text, conn):
        _mysql.note_chains(conn)
        touch(conn, OTHERS)


def begin_writing(conn: Followed) -> None:
    """Note that a packet is about to be written in the middle of an exchange: of a file, or of a
    long command.

    Raises if the packet before was broken off. PyMySQL ends a file in a ``finally``, and the server
    would never answer.
    """
    if conn._seen_busy == WRITING:
        raise out_of_step(conn)
    conn._seen_busy = WRITING


_FILE_ERRORS = {1017, 1024}  #: the libraries' errors for a file that cannot be opened or read


@contextmanager
def loading(conn: Followed) -> Iterator[None]:
    """Wrap the sending of a file for LOAD DATA LOCAL.

    If that fails, the libraries wait for the server's answer before they raise the error. That is
    right if the file failed, because then they have told the server. After an exception from
    elsewhere they would wait for ever.
    """
    before = sys.exc_info()[1]
    name = "_read_packet" if hasattr(type(conn), "_read_packet") else "read_packet"  # asyncmy's

    def read_packet(*args: Any) -> Any:
        error = sys.exc_info()[1]
        if error not in (None, before) and not (
            isinstance(error, conn.OperationalError) and error.args[0] in _FILE_ERRORS
        ):
            raise out_of_step(conn)
        return getattr(type(conn), name)(conn, *args)

    setattr(conn, name, read_packet)
    try:
        yield
    finally:
        delattr(conn, name)


def begin_reading(conn: Followed) -> None:
    """Note that an answer, or the next one of several results, is about to be read.

    Raises if none is known to be next.
    """
    result = conn._result
    if conn._seen_busy != SENT and (
        conn._seen_busy or result is None or result.unbuffered_active or not result.has_next
    ):
        raise out_of_step(conn)
    conn._seen_busy = BUSY


def ended(conn: Followed, status: int | None) -> None:
    """Note that the answer was read to its end with the server's *status*. This is its last
    step.
    """
    pending = conn._seen_pending
    if pending is not None and not (pending == _mysql.STATEMENT and _is_unfinished(conn)):
        conn._seen_pending = None
        _mysql.answered(conn, pending, None)
    conn._seen_busy = QUIET
    if status is not None:
        conn._seen_status = status | conn._seen_touched
        if not status & IN_TRANSACTION:
            conn._seen_texts.clear()


def failed(conn: Followed, error: BaseException) -> None:
    """Note that reading an answer raised *error*.

    It ends the exchange only if it is the server's own answer.
    """
    if not is_answer(error):
        return
    pending = conn._seen_pending
    if pending is not None:
        conn._seen_pending = None
        _mysql.answered(conn, pending, error)
    conn._seen_busy = QUIET


def is_answer(error: BaseException) -> bool:
    """Return whether *error* is an ERR packet of the server's, raised by the library itself.

    An error of a signal handler, a converter or another connection also passes through the
    library's code. An error that the library made up is not raised by the function that raises the
    server's errors.
    """
    number = _mysql.number_of(error)
    trace = error.__traceback__
    if number is None or number < 1000 or 2000 <= number < 3000 or trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
        if str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] not in _LIBRARIES:
            return False
    # compiled code puts the module before the name
    return trace.tb_frame.f_code.co_name.rpartition(".")[2] == "raise_mysql_exception"


def is_half_read(conn: Followed) -> bool:
    """Return whether only rows, or further results, of an answer are left to be read, because the
    application did not fetch them yet.
    """
    return not conn._seen_busy and _is_unfinished(conn)


def _is_unfinished(conn: Followed) -> bool:
    result = conn._result
    return result is not None and bool(result.unbuffered_active or result.has_next)


def is_quiet(conn: Followed) -> bool:
    """Return whether every command on *conn*, which is open, was answered in full, and nothing is
    left unread.
    """
    result = conn._result
    return not conn._seen_busy and (
        result is None or not (result.unbuffered_active or result.has_next)
    )


def status_of(conn: Followed) -> int | None:
    """Return the kept status of the server at the end of the last exchange; None if it is not
    certain.
    """
    return None if conn._seen_busy else conn._seen_status


def status_once(conn: Followed, sql: str) -> int:
    """Return the kept status of the server after *sql*, which is sent now, is answered. *sql* is
    COMMIT, ROLLBACK, BEGIN, or a statement that sets autocommit.

    Raises if the status is not known.
    """
    status = status_of(conn)
    if status is None:
        raise out_of_step(conn)
    if sql == "BEGIN":
        return status | IN_TRANSACTION
    status &= ~(IN_TRANSACTION | IN_READ_ONLY)
    if sql == AUTOCOMMIT_ON:
        return status | AUTOCOMMIT
    return status & ~AUTOCOMMIT if sql == AUTOCOMMIT_OFF else status


def after_due(conn: Followed, due: int, status: int, has_next: bool, *, behind: object) -> int:
    """Return the kept part of *status*, which came with the answer to a command that was not waited
    for.

    Raises if a statement was sent *behind* it and the answer is not the expected one (*due*). That
    happens if ``completion_type`` opens a transaction after each, say.
    """
    # a holder's mark set meanwhile is no part of the server's answer
    if has_next or (behind and (status ^ due) & KEPT):
        raise out_of_step(conn)
    return (status & KEPT) | conn._seen_touched


def holds_more(unread: bytes | bytearray, answers: int) -> bool:
    """Return whether *unread*, the bytes read from the socket while so many *answers* are due,
    holds more than those.
    """
    end = 0
    for _ in range(answers):
        end += _HEADER + int.from_bytes(unread[end : end + 3], "little")
    return len(unread) > end


def in_transaction(conn: Followed) -> bool | None:
    """Return whether a transaction is open, from :func:`status_of`."""
    status = None if conn._seen_busy else conn._seen_status
    return None if status is None else bool(status & IN_TRANSACTION)


# -- a holder's changes ----------------------------------------------------------------------------


def touch(conn: Followed, mark: int) -> None:
    """Note that *conn* is about to be changed in a way that its attributes or the server's status
    do not show.
    """
    conn._seen_touched |= mark
    if conn._seen_status is not None:
        conn._seen_status |= mark


def _converters_changed(conn: Followed) -> None:
    touch(conn, OTHERS)


def untouch(conn: Followed, mark: int) -> None:
    """Note that such a change was undone."""
    conn._seen_touched &= ~mark
    if conn._seen_status is not None:
        conn._seen_status &= ~mark


def adopt(conn: Followed, kept: tuple[str, ...], tables: tuple[str, ...]) -> int:
    """Return the kept status of the server. The first time, the present state of *conn* counts as
    its state at opening.

    *kept* are attributes that a call of the library changes, *tables* those with converters.
    """
    if conn._seen_opened is None:
        for name in tables:
            setattr(conn, name, Converters(getattr(conn, name), conn, _converters_changed))
        untouch(conn, CHARSET | DATABASE | TIMEOUTS | OTHERS)
        conn._seen_opened = {name: getattr(conn, name) for name in kept}
    status: int = conn.server_status if conn._seen_status is None else conn._seen_status
    touched: int = conn._seen_touched
    return (status & _SETTLED) | touched


def settled(conn: Followed) -> int | None:
    """Return the result of :func:`adopt` for a connection that was adopted; None if it is not
    known.
    """
    status = conn._seen_status
    return None if status is None else (status & _SETTLED) | conn._seen_touched


def put_back(conn: Followed, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    """Restore the attributes of the object."""
    for name, value in (*zip(names, values, strict=True), *(conn._seen_opened or {}).items()):
        if getattr(conn, name) is not value:
            setattr(conn, name, value)


def to_put_back(conn: Followed, opened: int, charset: str) -> str | None:
    """Return the statement that restores the session, to the status *opened* and to *charset* (with
    its collation).

    None if only the database must be chosen again. Raises if one round trip is not enough.
    """
    status, touched = conn._seen_status, conn._seen_touched
    parts = [f"NAMES {charset}"] if touched & CHARSET else []
    changes = AUTOCOMMIT if status is None else (status ^ opened) & _SETTLED
    if changes & AUTOCOMMIT:
        parts.append(f"autocommit = {int(bool(opened & AUTOCOMMIT))}")
    if changes & ~AUTOCOMMIT or touched & OTHERS or (parts and touched & DATABASE):
        raise out_of_shape(conn)
    return f"SET {', '.join(parts)}" if parts else None


def out_of_shape(conn: Followed) -> BaseException:
    """Return the error for a connection that cannot be restored to its state at opening."""
    error: BaseException = conn.InterfaceError(
        0, "the connection's opening state cannot be restored"
    )
    return error


# -- reports to the ledger -------------------------------------------------------------------------


def commits_itself(conn: Followed) -> bool | None:
    """Return whether a statement sent now would be committed by itself: autocommit on and no
    transaction open. None if unknown.
    """
    status = status_of(conn)
    return None if status is None else status & (AUTOCOMMIT | IN_TRANSACTION) == AUTOCOMMIT


def tell_wanted(conn: Followed, ledger: Any) -> None:
    """Report the statement that is sent before the next command and begins a transaction. Otherwise
    bytes would be sent unreported.
    """
    if conn._seen_wants is not None:
        ledger.statement(conn._seen_wants, commits_itself(conn), conn_id=id(conn))


def tell(conn: Followed, ledger: Any, command: int, sql: Any) -> int | None:
    """Report one command that is about to be sent.

    Returns the mark with which :func:`ended` and :func:`failed` report its answer.
    """
    if command != _mysql.COM_QUERY:
        ledger.doubt(f"command {command} of the MySQL protocol was sent", conn_id=id(conn))
        return None
    if is_commit(sql):
        ledger.committing(conn_id=id(conn))
        return _mysql.COMMIT
    ledger.statement(sql, commits_itself(conn), conn_id=id(conn))
    return _mysql.ROLLBACK if is_rollback(sql) else _mysql.STATEMENT
