"""A trial of whether statements can be sent on a psycopg connection before the last one was
answered (:mod:`unbroken.drivers._postgresql_flight`).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from unbroken.backends.postgresql import postgres_fault
from unbroken.drivers import _postgresql_flight as flight
from unbroken.drivers import _psycopg_trips as trips

_COMMAND_OK, _TUPLES_OK, _FATAL, _SYNC = 1, 2, 7, 10  # ExecStatusType
_IDLE = 0  # PQtransactionStatus


class OtherAnswerError(Exception):
    """The server, or a proxy before it, has answered something else."""


def first(conn: Any, mark: str) -> Generator[Any, Any, None]:
    """Send all statements, and read the answer to the first.

    Raises OtherAnswerError, and the error of a lost connection.
    """
    pgconn = conn.__dict__["pgconn"]
    pgconn.enter_pipeline_mode()
    for texts in ((flight.SLOW,), (flight.BEGIN, flight.question(mark)), (flight.END,)):
        for text in texts:
            pgconn.send_query_params(text.encode(), None)
        pgconn.pipeline_sync()
    if pgconn.flush():
        raise trips.out_of_step()
    slept = yield from trips._one(pgconn)
    if slept.status == _FATAL:
        _raise_lost(pgconn, slept)  # otherwise the server does not know that function
    elif (slept.status, slept.command_status) != (_TUPLES_OK, b"SELECT 1") or slept.get_value(0, 0):
        raise OtherAnswerError
    yield from _expect(pgconn, _SYNC)


def others(conn: Any, mark: str) -> Generator[Any, Any, None]:
    """Read the answers to the others. Raises the same errors."""
    pgconn = conn.__dict__["pgconn"]
    yield from _expect(pgconn, _COMMAND_OK, b"BEGIN")
    told = yield from _expect(pgconn, _TUPLES_OK, b"SELECT 1")
    if told.get_value(0, 0) != mark.encode():
        raise OtherAnswerError
    yield from _expect(pgconn, _SYNC)
    yield from _expect(pgconn, _COMMAND_OK, b"ROLLBACK")
    yield from _expect(pgconn, _SYNC)
    if pgconn.transaction_status != _IDLE:
        raise OtherAnswerError
    pgconn.exit_pipeline_mode()


def _expect(pgconn: Any, status: int, tag: bytes | None = None) -> Generator[Any, Any, Any]:
    result = yield from trips._one(pgconn)
    if result.status == _FATAL:
        _raise_lost(pgconn, result)
    if result.status != status or (tag is not None and result.command_status != tag):
        raise OtherAnswerError
    return result


def _raise_lost(pgconn: Any, result: Any) -> None:
    """Raise the server's goodbye, if *result* is one."""
    error = trips._server_error(pgconn, result)
    if postgres_fault(error.sqlstate, str(error)).is_lost:
        raise error
