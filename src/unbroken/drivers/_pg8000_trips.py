"""Fewer round trips with pg8000: an answer that is read later, a statement with values in one
request, and a BEGIN that is not waited for.

pg8000 sends a statement with values in three requests and waits for each of them. Here its parts
share one Sync and are sent in one write. Everything that can fail without the server (values that
cannot be converted, texts that cannot be encoded) is done before the first byte.

- BEGIN shares that Sync, too, in a *flight*. If the server refuses BEGIN, it skips the statement.
- The answer to the pool's COMMIT or ROLLBACK is *due* from when the command is sent until the
  answer is read. It is read just before the answer to the next statement.

Each exchange counts its statements in ``_seen_sent`` before it writes, and as the last step in
``_seen_answered``. An exception in between leaves the two apart for good. The connection is then
out of step, and never used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from struct import pack
from typing import Any

from unbroken.drivers._psycopg_texts import (
    TEXTS,
    hear_level,
    is_one_text,
    knows_level,
    may_set_level,
)
from unbroken.drivers._shared import lost
from unbroken.ledger.statements import LONGEST_CACHED

IDLE, IN_TRANSACTION = b"I", b"T"  # ReadyForQuery
#: The statement that pg8000 sends before the first statement of a transaction.
BEGIN = "begin transaction"
OUT_OF_STEP = (
    "connection is closed, or out of sync: an answer of the server was not read to its end"
)

# Message codes of the protocol, version 3
_COMPLETE, _ERROR, _READY, _ROW = b"C", b"E", b"Z", b"D"
_PARSED, _BOUND = b"1", b"2"
_UNASKED = (b"N", b"A", b"S")  # notices, notifications, settings
#: Classes of errors that report that a statement is not understood.
_NOT_KNOWN = ("42", "0A", "22")


@cache
def _library() -> Any:
    from pg8000 import core

    return core


def out_of_step() -> BaseException:
    """Return the error of a lost connection, for one whose answers can no longer be told apart."""
    from pg8000.exceptions import InterfaceError

    error: BaseException = lost(InterfaceError(OUT_OF_STEP))
    return error


# -- sending ---------------------------------------------------------------------------------------


def _message(code: bytes, data: bytes) -> bytes:
    return code + pack("!i", len(data) + 4) + data


_SYNC = _message(b"S", b"")
_DESCRIBE = _message(b"D", b"P\0")
_EXECUTE = _message(b"E", b"\0" + pack("!i", 0))


def _parse(sql: bytes, oids: Sequence[int] = ()) -> bytes:
    kinds = b"".join(pack("!i", 0 if oid == -1 else oid) for oid in oids)
    return _message(b"P", b"\0" + sql + b"\0" + pack("!H", len(oids)) + kinds)


def _bind(values: Sequence[bytes | None] = ()) -> bytes:
    parts = [pack("!i", -1) if each is None else pack("!i", len(each)) + each for each in values]
    head = b"\0\0" + pack("!HH", 0, len(values))
    return _message(b"B", head + b"".join(parts) + pack("!H", 0))


_BEGIN = _parse(BEGIN.encode()) + _bind() + _EXECUTE
_ASK_LEVEL = _parse(b"SHOW TRANSACTION ISOLATION LEVEL") + _bind() + _EXECUTE


def _encoded(conn: Any, statement: str, vals: Any, oids: Any) -> bytes:
    """Return the messages of one statement, without its Sync. Raises pg8000's error for values that
    it cannot convert.
    """
    from pg8000.converters import make_params

    encoding = conn._client_encoding
    values = [
        None if each is None else each.encode(encoding) for each in make_params(conn.py_types, vals)
    ]
    return _parse(statement.encode(encoding), oids) + _bind(values) + _DESCRIBE + _EXECUTE


def exchange(conn: Any, statement: str, vals: Any, oids: Any, *, begins: bool = False) -> Any:
    """Send *statement* in one write and read its answer. *begins*: behind a BEGIN; if the server
    refuses that, it skips the statement.

    Returns pg8000's Context. Raises the server's error.
    """
    core = _library()
    check_open(conn)
    take_first(conn)
    data = _encoded(conn, statement, vals, oids)
    asks = begins and conn._seen_asks and not knows_level(conn)
    if begins:
        data = _BEGIN + (_ASK_LEVEL if asks else b"") + data
    context = core.Context(statement)
    note(conn, statement)
    conn._seen_sent += 2 if begins else 1
    conn._seen_answers = 0
    try:
        core._write(conn._sock, data + _SYNC)
        core._flush(conn._sock)
        if begins:
            _begun(conn, context, asks)
        conn.handle_messages(context)
        if begins and conn._transaction_status != IN_TRANSACTION:
            raise out_of_step()  # no known server does so
    except BaseException as error:
        if error is conn._seen_error and conn._seen_answers == 1:
            conn._seen_answered = conn._seen_sent
        raise
    conn._seen_answered = conn._seen_sent
    return context


def fly(conn: Any, statement: str, vals: Any, oids: Any) -> Any:
    """Send BEGIN and *statement*, like :func:`exchange`."""
    try:
        return exchange(conn, statement, vals, oids, begins=True)
    except Exception as error:
        if error is not conn._seen_untold or error.args[0].get("C", "")[:2] not in _NOT_KNOWN:
            raise
    # A server of another vendor does not understand that query, and has skipped the statement. It
    # is not asked again, and the query is not reported to any unit of work.
    conn._seen_asks = False
    getattr(type(conn), "unwatched", type(conn)).execute_simple(conn, "ROLLBACK")
    return exchange(conn, statement, vals, oids, begins=True)


def _begun(conn: Any, context: Any, asks: bool) -> None:
    """Read the answers to BEGIN and to the query for the level. After an error, which *context*
    gets, the rest is left to ``handle_messages``.
    """
    if conn._seen_due is not None:
        _read_due(conn)
    level: bytes | None = None
    for is_question in (False, True) if asks else (False,):
        code = b""
        while code != _COMPLETE:
            code, data = _read(conn)
            if code in _UNASKED or code == _ERROR:
                conn.message_types[code](data, context)
                if code == _ERROR:
                    conn._seen_untold = context.error if is_question else None
                    return
            elif code == _ROW:
                level = data[6:]  # one column: its number (2) and length (4) come first
            elif code not in (_PARSED, _BOUND, _COMPLETE):
                raise out_of_step()
    if asks:
        hear_level(conn.__dict__, level, conn._seen_texts)


def _read(conn: Any) -> tuple[bytes, bytes]:
    """Read the server's next message."""
    core = _library()
    code, length = core.ci_unpack(core._read(conn._sock, 5))
    return code, core._read(conn._sock, length - 4)


def check_open(conn: Any) -> None:
    """Raise if nothing can be sent on *conn*: it is closed, or an answer was not read."""
    if conn._usock is None:
        raise _library().InterfaceError("connection is closed")
    if conn._seen_sent != conn._seen_answered:
        # pg8000 would take the answer that is still to come for the next one
        raise out_of_step()


# -- the end of a transaction, whose answer is read later ------------------------------------------


def send_end(conn: Any, sql: str) -> None:
    """Send *sql*, COMMIT or ROLLBACK, and do not wait. Its answer is due from now on.

    Raises the error of a lost connection if it cannot be sent.
    """
    core = _library()
    check_open(conn)
    if conn._seen_due is not None:
        raise out_of_step()
    tag = sql.encode()
    conn._seen_sent += 1
    core._write(conn._sock, _message(b"Q", tag + b"\0"))
    core._flush(conn._sock)
    conn._seen_texts.clear()
    # otherwise the end may restore an encoding, in which the next text is not yet written
    conn._seen_ahead = conn._seen_alone and conn._client_encoding == conn._seen_encoding
    conn._seen_due = tag
    conn._transaction_status = IDLE
    conn._seen_answered = conn._seen_sent  # last: it marks the exchange as complete


def take_first(conn: Any) -> None:
    """Read the answer that is due, if any, when nothing may be sent before."""
    if conn._seen_due is not None and not (conn._seen_ahead and conn._seen_alone):
        take(conn)


def take(conn: Any) -> None:
    """Read the answer that is due. Unrequested messages that came with it are discarded, as after a
    COMMIT or ROLLBACK of the pool's that is waited for.

    Raises the error of a lost connection if it is not the expected answer.
    """
    check_open(conn)
    conn._seen_sent += 1  # out of step from here, until all is read
    unasked = conn.notices, conn.notifications
    before = [len(each) for each in unasked]
    _read_due(conn)
    for each, length in zip(unasked, before, strict=True):
        while len(each) > length:
            each.pop()
    conn._seen_answered = conn._seen_sent


def _read_due(conn: Any) -> None:
    """Read it, in an exchange that is under way."""
    context, tag, code = _library().Context(None), b"", b""
    try:
        while code != _READY:
            code, data = _read(conn)
            if code == _COMPLETE:
                tag = data
            elif code in _UNASKED or code in (_ERROR, _READY):
                conn.message_types[code](data, context)
            else:
                raise out_of_step()
    except Exception as broken:
        if context.error is None:
            raise
        raise broken from context.error  # the server's error before it closed the connection
    if context.error is not None or tag != conn._seen_due + b"\0" or _is_open(conn):
        raise out_of_step() from context.error  # a statement sent behind it had another effect
    conn._seen_due = None


def read_due(conn: Any) -> None:
    """Read the answer that is due, if any, in the exchange that is under way, before its own."""
    if conn._seen_due is not None:
        _read_due(conn)


def _is_open(conn: Any) -> bool:
    return bool(conn._transaction_status != IDLE)


# -- the statements sent, and their isolation level ------------------------------------------------


def note(conn: Any, statement: Any) -> None:
    """Note *statement*, which is sent next. A long one, and anything but a text, counts as
    unknown.
    """
    texts = conn._seen_texts
    if conn._transaction_status == IDLE:
        texts.clear()
        conn._seen_encoding = conn._client_encoding
    if statement in (BEGIN, ""):  # pg8000's own, and a ping
        return
    known = isinstance(statement, str) and len(statement) <= LONGEST_CACHED
    texts.append(statement if known else None)
    if not known or may_set_level(statement):
        conn.__dict__["_unbroken_level"] = None


def new_texts(conn: Any) -> deque[str | None]:
    """Return the record for a connection on which nothing was seen yet."""
    return deque(() if conn._transaction_status == IDLE else (None,), maxlen=TEXTS)


def texts(conn: Any) -> Sequence[str | None]:
    """Return the statements sent in the open transaction.

    None stands for an unknown statement. It also stands for a level at which a COMMIT may fail
    although its transaction only read, and for a transaction in error, whose COMMIT is a ROLLBACK.
    """
    if conn._transaction_status != IN_TRANSACTION or not knows_level(conn):
        return (None,)
    sent: Sequence[str | None] = conn._seen_texts
    return sent


# -- cursors ---------------------------------------------------------------------------------------


def may_fly(conn: Any, operation: Any, args: Any) -> bool:
    """Return whether BEGIN and the present statement can be sent together on *conn*."""
    return (
        conn._seen_alone
        and conn._transaction_status == IDLE
        and not conn.autocommit
        and conn._usock is not None
        and conn._seen_sent == conn._seen_answered
        and isinstance(operation, str)
        and is_one_text(operation, has_values=len(args) > 0)
    )


class _Flight:
    """A stand-in for a connection, used by its cursor, which sends the first statement of a
    transaction and must send no BEGIN of its own.
    """

    __slots__ = ("_conn",)

    _in_transaction = True

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    def execute_simple(self, statement: Any) -> Any:
        return self._conn._seen_fly(statement, (), ())

    def execute_unnamed(
        self, statement: Any, vals: Any = (), oids: Any = (), stream: Any = None
    ) -> Any:
        assert stream is None
        return self._conn._seen_fly(statement, vals, oids)

    @property
    def _sock(self) -> Any:
        return self._conn._sock


class _Passenger:
    """A stand-in for a cursor while pg8000's own ``execute()`` works on it."""


@cache
def flying(base: Any) -> Any:
    """Return a subclass of *base* that sends BEGIN with the first statement of a transaction.

    *base* is a class of ``pg8000.dbapi``'s cursors, or of those that ``pg8000`` itself and
    SQLAlchemy use. It is returned itself if it overrides something.
    """
    from pg8000 import dbapi, legacy

    plain: Any = getattr(base, "execute", None)
    if plain not in (dbapi.Cursor.execute, legacy.Cursor.execute):
        return base

    class Cursor(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        def execute(self, operation: Any, args: Any = (), stream: Any = None) -> Any:
            conn = self._c
            if stream is not None or conn is None or not may_fly(conn, operation, args):
                return plain(self, operation, args, stream)
            stand_in = _Passenger()
            stand_in.__dict__ = {**self.__dict__, "_c": _Flight(conn)}
            result = plain(stand_in, operation, args)
            self.__dict__.update({**stand_in.__dict__, "_c": conn})
            return self if result is stand_in else result

    Cursor.execute.__doc__ = plain.__doc__
    Cursor.__name__ = Cursor.__qualname__ = base.__name__
    return Cursor
