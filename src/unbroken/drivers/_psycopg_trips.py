"""Fewer round trips with psycopg: an answer that is read later, and a BEGIN that is not waited for.

libpq reads answers in the order in which it sent, so it can wait for several in its pipeline mode.
It is in that mode in two cases:

- The answer to the pool's COMMIT or ROLLBACK, which was not waited for, is *due* (:class:`Due`).
- In a *flight* (:class:`Flight`), BEGIN and the first statement are sent together, behind any
  command whose answer is due. They share one Sync: the server skips the statement if it refuses
  BEGIN.

libpq's mode is authoritative. A connection in pipeline mode that is neither due nor in psycopg's
own pipeline is out of step and is not used again: an exception struck while its answers were read.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from unbroken.backends.postgresql import postgres_fault
from unbroken.drivers._psycopg_dial import drive
from unbroken.drivers._psycopg_lock import ThreadLock
from unbroken.drivers._psycopg_texts import (
    hear_level,
    keeps_encoding,
    knows_level,
    note_encoding,
)
from unbroken.drivers._shared import lost
from unbroken.ledger.reading import reads

if TYPE_CHECKING:
    import psycopg

_OK, _IDLE = 0, 0  # PQstatus, PQtransactionStatus
_READ = 1  # psycopg's constant for waiting until the socket is readable
_COMMAND_OK, _TUPLES_OK, _FATAL, _SYNC = 1, 2, 7, 10  # ExecStatusType

#: The seconds that a property read by the application waits for an answer that is due.
ANSWER_WITHIN = 1.0
OUT_OF_STEP = "the connection is out of sync: an answer was not read to its end"
_ASK_LEVEL = b"SHOW transaction_isolation"


class Due(NamedTuple):
    """Commands that were sent and whose answers were not read."""

    tags: tuple[bytes, ...]  #: the server's answer to each of them
    in_pipeline: bool  #: whether more can be sent before these answers have come


#: The usual ones, made once.
_USUAL = {sql: Due((sql.encode(),), True) for sql in ("COMMIT", "ROLLBACK")}


@dataclass(slots=True)
class Flight:
    """The commands in libpq's buffer, or on their way, before the first statement."""

    due: Due | None
    turn: int  #: of the lock: a flight ends with the hold on the lock in which it began
    asks_level: bool
    begins: bool = True  #: False: autocommit is on
    is_full: bool = False  #: whether something of the statement may be in the buffer


# -- the end of a transaction, whose answer is read later ------------------------------------------


def send_end(conn: Any, sql: str) -> None:
    """Send *sql*, COMMIT or ROLLBACK, and do not wait. Its answer is due from now on.

    Raises the error of a lost connection if it cannot be sent immediately.
    """
    state = conn.__dict__
    pgconn, prepared = state["pgconn"], conn._prepared
    if state.get("_unbroken_due") is not None or conn.lock.locked() or conn._pipeline is not None:
        raise out_of_step()
    due = _USUAL[sql]
    if state.get("_unbroken_alone") and keeps_encoding(conn):
        if sql == "ROLLBACK" and prepared._names:  # as psycopg does after a ROLLBACK
            due = Due((*due.tags, b"DEALLOCATE ALL"), in_pipeline=True)
        pgconn.enter_pipeline_mode()
        for command in due.tags:
            pgconn.send_query_params(command, None)
            pgconn.pipeline_sync()
    else:
        due = Due(due.tags, in_pipeline=False)
        pgconn.send_query(due.tags[0])
    if pgconn.flush():
        raise out_of_step()  # the socket's send buffer is full
    if sql == "ROLLBACK":
        prepared.clear()
        if due.in_pipeline:
            prepared._to_flush.clear()
    state["_unbroken_texts"].clear()
    state["_unbroken_due"] = due


def take(conn: Any) -> Generator[Any, Any, None]:
    """Read the answers that are due, and leave pipeline mode.

    Raises the error of a lost connection if they are not the expected ones.
    """
    state = conn.__dict__
    pgconn, due = state["pgconn"], state["_unbroken_due"]
    if due is None:
        return
    state["_unbroken_due"] = None  # out of step from here, until all is read
    yield from _read_due(pgconn, due)
    _taken(pgconn, due)


def take_free(conn: Any) -> Generator[Any, Any, None] | None:
    """Do the same as :func:`take`, as far as the answer has come, if one is due. Returns the rest
    of the work. Only the caller has the connection.

    It is no generator if all answers have come. With callers that follow each other quickly, each
    answer is read here.
    """
    state = conn.__dict__
    pgconn, due = state["pgconn"], state.get("_unbroken_due")
    if due is None:
        return None
    if conn.lock.locked():
        raise out_of_step()
    if due is not _USUAL["COMMIT"] and due is not _USUAL["ROLLBACK"]:
        return take(conn)
    pgconn.consume_input()
    if pgconn.is_busy():
        return take(conn)
    state["_unbroken_due"] = None  # out of step from here, until all is read
    result = pgconn.get_result()
    if result is None:
        raise out_of_step()
    is_whole = result.status != _FATAL and not pgconn.is_busy()
    if is_whole:
        if pgconn.get_result() is not None or not _is_as_due(result, due.tags[0]):
            raise _unexpected(pgconn, result)
        if not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None or result.status != _SYNC:
                raise out_of_step()
            _taken(pgconn, due)
            return None
    return _take_on(pgconn, due, None if is_whole else result)


def _take_on(pgconn: Any, due: Due, result: Any) -> Generator[Any, Any, None]:
    """Read the rest of a usual answer. *result* is the part already read, unless examined."""
    if result is not None:
        yield from _rest(pgconn)
        if not _is_as_due(result, due.tags[0]):
            raise _unexpected(pgconn, result)
    yield from _read_sync(pgconn)
    _taken(pgconn, due)


def _taken(pgconn: Any, due: Due) -> None:
    """Note that all due answers were read."""
    if due.in_pipeline:
        pgconn.exit_pipeline_mode()
    while (heard := pgconn.notifies()) is not None:  # as psycopg does behind each answer
        if pgconn.notify_handler:
            pgconn.notify_handler(heard)


def _is_as_due(result: Any, tag: bytes) -> bool:
    return bool(result.status == _COMMAND_OK and result.command_status == tag)


def _read_due(pgconn: Any, due: Due) -> Generator[Any, Any, None]:
    for tag in due.tags:
        result = yield from _one(pgconn)
        if not _is_as_due(result, tag):
            raise _unexpected(pgconn, result)
        if due.in_pipeline:
            yield from _read_sync(pgconn)


def _read_sync(pgconn: Any) -> Generator[Any, Any, None]:
    result = yield from _one(pgconn)
    if result.status != _SYNC:
        raise _unexpected(pgconn, result)


def _is_synced(pgconn: Any, begun: Any, answers: list[list[Any]]) -> Generator[Any, Any, bool]:
    """Whether the server is ready again. False: it hung up behind an error, one of the answers."""
    try:
        yield from _read_sync(pgconn)
    except Exception as error:
        heard = [each for some in answers for each in some] + ([] if begun is None else [begun])
        failed = any(each.status == _FATAL for each in heard)
        if pgconn.status == _OK or not failed or not isinstance(error, _psycopg().DatabaseError):
            raise
        return False
    return True


def _one(pgconn: Any) -> Generator[Any, Any, Any]:
    while pgconn.is_busy():
        while not (yield _READ):
            pass
        pgconn.consume_input()
    result = pgconn.get_result()
    if result is None:
        raise out_of_step()
    status = result.status
    if status == _SYNC:
        return result
    if status == _FATAL or pgconn.is_busy():
        # the server may close the connection behind it
        yield from _rest(pgconn)
    elif pgconn.get_result() is not None:
        raise out_of_step()
    return result


def _rest(pgconn: Any) -> Generator[Any, Any, None]:
    """Read the data behind an answer: nothing, or the end of the connection."""
    import psycopg
    from psycopg.generators import fetch

    try:
        if (yield from fetch(pgconn)) is not None:
            raise out_of_step()
    except psycopg.DatabaseError:
        if pgconn.status == _OK:
            raise


def _unexpected(pgconn: Any, result: Any) -> BaseException:
    """Return the error for an unexpected answer to the pool's own command.

    The server's goodbye is returned unchanged; other answers are not the caller's concern.
    """
    if result.status != _FATAL:
        return out_of_step()
    error = _server_error(pgconn, result)
    if postgres_fault(error.sqlstate, str(error)).is_lost:
        return error
    wrong = out_of_step()
    wrong.__cause__ = error
    return wrong


@cache
def _psycopg() -> Any:
    """Return the library. An import statement costs as much as the rest of reading an answer."""
    import psycopg.generators

    return psycopg


def _server_error(pgconn: Any, result: Any) -> psycopg.Error:
    error: psycopg.Error = _psycopg().errors.error_from_result(result, encoding=pgconn._encoding)
    return error


def out_of_step() -> BaseException:
    """Return the error of a lost connection, for one whose answers can no longer be told apart."""
    import psycopg

    error: BaseException = lost(psycopg.OperationalError(OUT_OF_STEP))
    return error


def begin_now(conn: Any) -> Generator[Any, Any, None]:
    """Send the wanted command now, and wait."""
    state = conn.__dict__
    wanted = state.get("_unbroken_wants")
    if wanted is None:
        return
    state["_unbroken_beginning"] = True
    try:
        yield from conn._exec_command(wanted)
        # not before: a broken-off command is sent once more
        conn._unbroken_wants = None
    finally:
        state.pop("_unbroken_beginning", None)


def take_and_begin(conn: Any) -> Generator[Any, Any, None]:
    """Read the due answers, and send the wanted command."""
    yield from take(conn)
    yield from begin_now(conn)


def is_owed(state: dict[str, Any]) -> bool:
    """Return whether an answer is due on the connection of *state*, or a command is wanted."""
    wants = state.get("_unbroken_wants") is not None and "_unbroken_beginning" not in state
    return wants or state.get("_unbroken_due") is not None


def is_due(conn: Any) -> bool:
    """Return whether an answer to the pool's own COMMIT or ROLLBACK was not read yet."""
    return conn.__dict__.get("_unbroken_due") is not None


# -- the first statement of a transaction ----------------------------------------------------------


def may_fly(conn: Any, query: Any) -> bool:
    """Return whether BEGIN and *query*, the present one, can be sent together on *conn*, behind
    commands whose answers are due.

    In autocommit there is no BEGIN, and only reads are sent behind them: another statement may
    still fail behind its own answer, at a deferred constraint.
    """
    state = conn.__dict__
    begins = state.get("_unbroken_wants") or not conn._autocommit
    if (
        not (begins or (is_due(conn) and _only_reads(query)))
        or not state.get("_unbroken_alone")
        or conn._pipeline is not None
        or state.get("_unbroken_inside")
        or conn._tpc is not None
        or getattr(conn.lock, "turns", None) is None
    ):
        return False
    pgconn, due = state["pgconn"], state.get("_unbroken_due")
    if due is not None:
        return bool(due.in_pipeline)
    return (
        pgconn.transaction_status == _IDLE
        and pgconn.status == _OK
        and not pgconn.pipeline_status
        and not conn._prepared._to_flush
    )


def _only_reads(query: Any) -> bool:
    return isinstance(query, (str, bytes)) and reads(query, may_hide=False)


def start(conn: Any) -> Generator[Any, Any, None]:
    """Put BEGIN into libpq's buffer, for a statement that follows immediately."""
    state = conn.__dict__
    pgconn, due = state["pgconn"], state.get("_unbroken_due")
    if due is None:
        note_encoding(conn)
        pgconn.enter_pipeline_mode()
    state["_unbroken_due"] = None  # out of step from here, until all is read
    wanted = state.get("_unbroken_wants")
    begins = bool(wanted) or not conn._autocommit
    asks = begins and conn._isolation_level is None and not knows_level(conn)
    state["_unbroken_flight"] = Flight(due, conn.lock.turns, asks, begins)
    if wanted:
        conn._unbroken_wants = None
    if begins:
        yield from conn._exec_command(wanted or conn._get_tx_start_command())
    if asks:
        pgconn.send_query_params(_ASK_LEVEL, None)


def flight_of(conn: Any) -> Flight | None:
    """Return the flight that the caller is in, if any."""
    flight: Flight | None = conn.__dict__.get("_unbroken_flight")
    return None if flight is None or flight.turn != conn.lock.turns else flight


def land(conn: Any, statement: int = 0) -> Generator[Any, Any, list[list[Any]]]:
    """Send the buffer. Read the due answers and that to BEGIN, then those to *statement* commands,
    and leave pipeline mode.

    Returns the latter. Raises the server's error if it refused BEGIN.
    """
    state = conn.__dict__
    pgconn, flight = state["pgconn"], state.pop("_unbroken_flight")
    pgconn.pipeline_sync()
    if pgconn.flush():
        yield from _psycopg().generators.send(pgconn)
    if flight.due is not None:
        try:
            yield from _read_due(pgconn, flight.due)
        except BaseException as error:
            state["_unbroken_unread"] = getattr(error, "sqlstate", None) is None
            raise
    begun = (yield from _one(pgconn)) if flight.begins else None
    level = (yield from _one(pgconn)) if flight.asks_level else None
    answers: list[list[Any]] = []
    for _ in range(statement):
        answers += [(yield from _psycopg().generators.fetch_many(pgconn))]
    # otherwise an answer was the server's goodbye, which is raised here or by the caller
    if (yield from _is_synced(pgconn, begun, answers)):
        pgconn.exit_pipeline_mode()
    if begun is not None and begun.status != _COMMAND_OK:
        raise _server_error(pgconn, begun) if begun.status == _FATAL else out_of_step()
    if level is not None:
        if level.status != _TUPLES_OK:
            raise _not_asked(pgconn, level) if level.status == _FATAL else out_of_step()
        hear_level(state, level.get_value(0, 0), state["_unbroken_texts"])
    return answers


class NotAskedError(Exception):
    """A server of another vendor refused that query, and has skipped the commands behind it."""


def _not_asked(pgconn: Any, refused: Any) -> BaseException:
    error = _server_error(pgconn, refused)
    return NotAskedError() if (error.sqlstate or "")[:2] in ("42", "0A", "22") else error


def begin_again(conn: Any) -> Generator[Any, Any, None]:
    """Begin the transaction that failed with that query once more, and stop asking on *conn*. This
    is not reported to any unit of work.
    """
    from psycopg.generators import execute

    state = conn.__dict__
    state["_unbroken_alone"] = False
    for command in (b"ROLLBACK", conn._get_tx_start_command()):
        state["pgconn"].send_query(command)
        results = yield from execute(state["pgconn"])
        if any(each.status != _COMMAND_OK for each in results):
            raise _unexpected(state["pgconn"], results[-1])


def settle(conn: Any) -> None:
    """Read the due answers, send the wanted command, and block until that is done. It serves
    callers that cannot await.

    It does nothing if another thread or task works on *conn*: that one reads the answers.
    """
    lock, pgconn, work = conn.lock, conn.__dict__["pgconn"], take_and_begin(conn)
    if not isinstance(lock, ThreadLock):
        # no other task comes in between
        is_free = not lock.locked() or getattr(lock, "owner", None) == _current_task()
    elif lock.owner != threading.get_ident() and lock.acquire(blocking=False):
        try:
            drive(pgconn, work, ANSWER_WITHIN, out_of_step)
        finally:
            lock.release()
        return
    else:
        is_free = lock.owner == threading.get_ident()
    if is_free:
        drive(pgconn, work, ANSWER_WITHIN, out_of_step)


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None
