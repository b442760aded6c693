"""PyMySQL's connections, of subclasses that follow their exchange with the server and can
report.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._shared import AUTOCOMMIT_OFF
from unbroken.ledger import scope


@cache
def exact(base: Any) -> Any:
    """Return a subclass of *base*, a PyMySQL connection class, that follows its exchange with the
    server exactly. Return *base* itself if it already does.
    """
    if getattr(base, "_keeps_status", False):
        return base
    import pymysql
    from pymysql.connections import MySQLResult

    result_class = _result(MySQLResult)

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _keeps_status = True
        _handshake_until: float | None = None
        _result: Any
        _closed: bool
        _seen_busy = exchange.QUIET
        _seen_status: int | None = None
        _seen_pending: int | None = None
        _seen_touched = 0
        _seen_opened: Mapping[str, Any] | None = None
        _seen_due: tuple[int, ...] = ()
        _seen_flies = False
        _seen_wants: str | None = None
        _seen_follows: Callable[[Any], bool]
        _seen_texts: deque[str | bytes | None]
        _next_seq_id: int

        def connect(self, *args: Any, **kwargs: Any) -> None:
            self._seen_status = self._result = None
            self._seen_due, self._seen_texts = (), deque(maxlen=exchange.TEXTS)
            self._seen_wants = None
            self._seen_busy = exchange.BUSY  # until it has logged in
            super().connect(*args, **kwargs)
            exchange.untouch(self, self._seen_touched)  # the changes made by the connect itself
            if self._seen_opened is not None:
                exchange.touch(self, exchange.OTHERS)  # another session than the pool's

        def _request_authentication(self) -> None:
            if self._handshake_until is not None:  # the rest of the time to connect
                self._read_timeout = max(0.01, self._handshake_until - time.monotonic())
            super()._request_authentication()
            self._seen_busy = exchange.QUIET

        def _execute_command(self, command: int, sql: Any) -> None:
            if self._seen_wants is not None:
                self._seen_begin(command, sql)
            if self._seen_due and not (self._seen_flies and command == _mysql.COM_QUERY):
                self._seen_take()
            self._seen_ready()
            exchange.note(self, command, sql)
            super()._execute_command(command, sql)
            self._seen_busy = exchange.SENT

        def _write_bytes(self, data: bytes) -> None:
            self._seen_status = None
            if self._seen_busy < exchange.BUSY:
                self._seen_busy = exchange.BUSY
            super()._write_bytes(data)

        def write_packet(self, payload: bytes) -> None:
            exchange.begin_writing(self)
            super().write_packet(payload)
            self._seen_busy = exchange.BUSY

        def _seen_ready(self) -> None:
            """Ensure that a command may be sent: raise if an answer is outstanding, and read a
            result that was half-read.
            """
            if self._sock is None:
                return  # PyMySQL reports that itself
            if self._seen_busy:
                raise exchange.out_of_step(self)
            if self._result is not None and exchange.is_half_read(self):
                if self._result.unbuffered_active:
                    # as PyMySQL does
                    warnings.warn("Previous unbuffered result was left incomplete", stacklevel=4)
                self._seen_drain()

        def _seen_want(self, sql: str | None, follows: Callable[[Any], bool]) -> None:
            """Send *sql* before the next command. A query that satisfies *follows* may be sent
            behind it without waiting. None: nothing is sent first.
            """
            if sql is not None:
                exchange.touch(self, exchange.WANTS)
            self._seen_wants, self._seen_follows = sql, follows
            if sql is None:
                exchange.untouch(self, exchange.WANTS)

        def _seen_begin(self, command: int, sql: Any) -> None:
            """Send the statement that must precede *sql*. Wait if *sql* would do harm alone."""
            wanted = self._seen_wants
            if wanted is None or self._sock is None:
                return
            self._seen_ready()
            if exchange.status_of(self) is None:  # this was broken off: it is sent once more
                self._seen_busy = exchange.BUSY
                super()._execute_command(_mysql.COM_QUERY, wanted)
                self._seen_busy = exchange.SENT
                self._read_ok_packet()
            else:
                self._seen_leave(wanted)
                flies = self._seen_flies and command == _mysql.COM_QUERY
                if not (flies and self._seen_follows(sql)):
                    self._seen_take()
            # not before: until then it counts as not sent
            self._seen_want(None, self._seen_follows)

        def _seen_leave(self, sql: str) -> None:
            """Send *sql*: COMMIT, ROLLBACK, BEGIN or a statement that sets autocommit. Its answer
            is read before that of the next statement.
            """
            if self._seen_due and not self._seen_flies:
                self._seen_take()
            self._seen_ready()
            after = exchange.status_once(self, sql)
            self._seen_status = None
            self._seen_busy = exchange.BUSY
            super()._execute_command(_mysql.COM_QUERY, sql)  # not reported to any unit
            self._seen_due += (after,)
            self._seen_busy = exchange.QUIET
            self._seen_texts.clear()
            self._seen_status = after  # last: it marks the exchange as complete

        def _seen_take(self) -> None:
            """Read those answers.

            Raises the error of a lost connection if one is not the expected answer. A statement
            sent after it did not run in the state that its sender assumed.
            """
            busy, sequence, status = self._seen_busy, self._next_seq_id, self._seen_status
            if busy >= exchange.BUSY:
                raise exchange.out_of_step(self)  # it was broken off before
            self._seen_status, told = None, 0
            self._seen_busy = exchange.BUSY
            for left, due in zip(range(len(self._seen_due))[::-1], self._seen_due, strict=True):
                self._next_seq_id = 1
                try:
                    ok = super()._read_ok_packet()
                except pymysql.MySQLError as error:
                    if exchange.is_answer(error):  # to that ROLLBACK, not to the present command
                        raise exchange.out_of_step(self) from error
                    raise
                behind = busy or left
                told = exchange.after_due(self, due, ok.server_status, ok.has_next, behind=behind)
            self._seen_due, self._next_seq_id = (), sequence
            self._seen_busy = busy
            self._seen_status = status if busy else told  # last, as above

        def get_autocommit(self) -> bool:
            if self._seen_wants == AUTOCOMMIT_OFF:
                return False
            if self._seen_due:  # the last status read is older
                return bool(self._seen_due[-1] & _mysql.AUTOCOMMIT)
            return bool(super().get_autocommit())

        def _seen_drain(self) -> None:
            """Read the rest of a result, and the results after it."""
            result = self._result
            if result is not None and result.unbuffered_active:
                result._finish_unbuffered_query()
            while self._result is not None and self._result.has_next:
                self.next_result()

        def _read_ok_packet(self) -> Any:
            if self._seen_due:
                self._seen_take()
            exchange.begin_reading(self)
            try:
                ok = super()._read_ok_packet()
            except BaseException as error:
                exchange.failed(self, error)
                raise
            if not ok.has_next:
                exchange.ended(self, ok.server_status & exchange.KEPT)
            return ok

        def _read_query_result(self, unbuffered: bool = False) -> Any:
            # As PyMySQL's own, with our result class.
            if self._seen_due:
                self._seen_take()
            exchange.begin_reading(self)
            self._result = None
            result = result_class(self)
            try:
                result.init_unbuffered_query() if unbuffered else result.read()
            except BaseException as error:
                result.unbuffered_active, result.connection = False, None
                exchange.failed(self, error)
                raise
            self._result = result
            if result.server_status is not None:
                self.server_status = result.server_status
            affected = result.affected_rows
            exchange.ended(self, exchange.status_after(result))
            return affected

        def show_warnings(self) -> Any:
            self._execute_command(_mysql.COM_QUERY, "SHOW WARNINGS")
            self._read_query_result()
            rows, self._result = self._result.rows, None
            return rows

        def set_character_set(self, *args: Any, **kwargs: Any) -> None:
            if self._seen_due:
                self._seen_take()
            exchange.touch(self, exchange.CHARSET)
            try:
                super().set_character_set(*args, **kwargs)
            except BaseException as error:
                exchange.failed(self, error)
                raise
            exchange.ended(self, None)

        def select_db(self, db: Any) -> None:
            if self.db:
                exchange.touch(self, exchange.DATABASE)
            super().select_db(db)

        def close(self) -> None:
            if not self._closed and not exchange.is_quiet(self):
                # the bytes of a goodbye might complete a command
                self._closed = True
                self._force_close()
            else:
                super().close()

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _result(base: Any) -> Any:
    """Return a subclass of PyMySQL's result class, *base*, whose connection is out of step while a
    row is being read.
    """

    class Result(exchange.exact_result(base)):  # type: ignore[misc] # the base is only known here
        connection: Any
        unbuffered_active: bool

        def __del__(self) -> None:
            """Read nothing, because a finalizer may run anywhere.

            A half-read result is read before the next command.
            """

        def _read_load_local_packet(self, first_packet: Any) -> None:
            with exchange.loading(self.connection):
                super()._read_load_local_packet(first_packet)

        def _read_rowdata_packet_unbuffered(self) -> Any:
            if not self.unbuffered_active:
                return None
            conn = self.connection
            if conn._seen_busy:
                raise exchange.out_of_step(conn)
            conn._seen_busy = exchange.BUSY
            try:
                row = super()._read_rowdata_packet_unbuffered()
            except BaseException as error:
                exchange.failed(conn, error)
                raise
            exchange.ended(conn, exchange.status_after(self))
            return row

        def _finish_unbuffered_query(self) -> None:
            conn = self.connection
            if not self.unbuffered_active:
                return
            if conn._seen_busy or conn._sock is None:
                # the rest of it is lost; a close need not raise for that
                self.unbuffered_active = False
                return
            conn._seen_busy = exchange.BUSY
            try:
                super()._finish_unbuffered_query()
            except BaseException as error:
                exchange.failed(conn, error)
                raise
            exchange.ended(conn, exchange.status_after(self))

    return Result


def watched(base: Any) -> Any:
    """Return a subclass of *base* that tells the ledger of everything it sends.

    ``unwatched`` is the original class, to restore it.
    """
    if hasattr(base, "unwatched"):
        return base
    plain = exact(base)
    known = plain.__dict__.get("_watched")
    if known is not None:
        return known

    class Watched(plain):  # type: ignore[misc, valid-type] # the base is only known here
        __module__ = base.__module__
        unwatched = plain

        def _execute_command(self, command: int, sql: Any) -> None:
            ledger = scope.current(id(self))
            if ledger is None or command in exchange.UNREPORTED:
                super()._execute_command(command, sql)
                return
            exchange.tell_wanted(self, ledger)
            self._seen_begin(command, sql)
            self._seen_ready()
            pending = None if self._sock is None else exchange.tell(self, ledger, command, sql)
            super()._execute_command(command, sql)
            self._seen_pending = pending

    Watched.__name__ = Watched.__qualname__ = base.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched
