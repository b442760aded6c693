"""Subclasses of pg8000's connections that know whether an answer is outstanding, and report."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from unbroken.backends.pgbouncer import never_executed
from unbroken.drivers import _pg8000_trips as trips
from unbroken.drivers import _postgresql
from unbroken.ledger import scope, unit


def leave_unsent(file: Any) -> None:
    """Close the raw files below *file*. Bytes that pg8000 could not send stay in its buffer. From
    Python 3.13 on, the garbage collector reports on stderr that it cannot send them either.
    """
    for half in gc.get_referents(file):  # a BufferedRWPair has no attribute for its two halves
        with suppress(Exception):
            half.raw.close()


def plain(conn: Any) -> Any:
    """Return the class of *conn* when it is not watched."""
    return getattr(type(conn), "unwatched", type(conn))


#: The ways to send. For each: the numbers of answers after which an error of the server's leaves
#: the protocol in step, and the index of the argument that is the executed text.
_WAYS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "execute_simple": ((1,), 0),
    "execute_unnamed": ((1, 3), 0),
    "execute_named": ((1,), 4),
    "prepare_statement": ((1,), None),
    "close_prepared_statement": ((1,), None),
}


@cache
def exact(base: Any) -> Any:
    """Return a subclass of *base*, a pg8000 connection class, that knows whether every answer was
    read. Return *base* itself if it already does.
    """
    if getattr(base, "_knows", False):
        return base

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _knows = True
        _transaction_status: bytes | None
        _seen_sent = _seen_answered = 0
        _seen_unbegun = 0  #: the number of a statement that was a BEGIN and failed
        _seen_closed = False
        _seen_shared = False  #: whether a pooler may change the session after each transaction
        _seen_flies = False  #: whether it was tried to send two statements in one flight
        _seen_alone = False  #: … and that succeeded, and no pooler can change the session
        #: the server's answer to the pool's own COMMIT or ROLLBACK; None: no answer is due
        _seen_due: bytes | None = None
        _seen_asks = True  #: whether the server reports the isolation level
        _seen_untold: Exception | None = None  #: its error, if it did not
        _seen_ahead = False  #: whether a statement may be sent before that answer was read
        _seen_encoding: str | None = None  #: of texts, before the transaction began

        def _seen_new(self) -> None:
            #: Statements sent, and statements answered. If they are equal, nothing is under way and
            #: nothing is half read.
            self._seen_sent = self._seen_answered = 0
            self._seen_error, self._seen_answers = None, 0
            self.notices.clear()
            self.notifications.clear()
            self._seen_registered: list[tuple[Any, Any, Any]] = []  # registrations to undo
            # pg8000 forgets the status at the end of the login
            if self._transaction_status is None:
                self._transaction_status = b"I"
            #: the last statements that were sent since no transaction was open
            self._seen_texts = trips.new_texts(self)
            self._seen_due = self._unbroken_level = None

        def handle_messages(self, context: Any) -> None:
            self._seen_error = None
            trips.read_due(self)
            try:
                super().handle_messages(context)
            except Exception as broken:
                if context.error is None or broken is context.error:
                    raise
                # the server's error before it closed the connection
                raise broken from context.error
            finally:
                self._seen_answers += 1
                self._seen_error = context.error

        def _seen_fly(self, statement: Any, vals: Any, oids: Any) -> Any:
            """Send BEGIN and *statement* together."""
            return trips.fly(self, statement, vals, oids)

        def close(self) -> None:
            in_step = self._usock is not None and self._seen_sent == self._seen_answered
            super().close()
            self._seen_closed = in_step

        def register_out_adapter(self, typ: Any, out_func: Any) -> None:
            _register(self, self.py_types, typ)
            super().register_out_adapter(typ, out_func)

        def register_in_adapter(self, oid: Any, in_func: Any) -> None:
            _register(self, self.pg_types, oid)
            super().register_in_adapter(oid, in_func)

    for name, (in_step, text) in _WAYS.items():
        _followed(Connection, base, name, in_step, text)
    _in_one_request(Connection)
    if hasattr(base, "rollback"):
        _refusing(Connection, base, "rollback")
    if hasattr(base, "cursor"):
        _lending_cursors(Connection, base)
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _followed(cls: Any, base: Any, name: str, in_step: tuple[int, ...], text: int | None) -> None:
    send = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._seen_sent != self._seen_answered:
            # pg8000 would take the answer that is still to come for this one's
            raise trips.out_of_step()
        trips.take_first(self)
        if text is not None:
            trips.note(self, args[text] if text < len(args) else None)
        self._seen_sent += 1
        self._seen_answers = 0
        try:
            result = send(self, *args, **kwargs)
        except BaseException as error:
            if error is self._seen_error and self._seen_answers in in_step:
                self._seen_answered = self._seen_sent
            if name == "execute_simple" and args[:1] == (trips.BEGIN,):
                self._seen_unbegun = self._seen_sent
            raise
        self._seen_answered = self._seen_sent
        return result

    method.__name__, method.__doc__ = name, send.__doc__
    setattr(cls, name, method)


def _in_one_request(cls: Any) -> None:
    """Make pg8000 send each statement in one request.

    pg8000 parses, describes and executes in three requests, each answered in full. It still does so
    if a COPY reads or writes a stream. Outside a transaction a pooler may send the three to three
    sessions, and one of those may have a statement of another client's.
    """
    in_three = cls.execute_unnamed

    def execute_unnamed(
        self: Any, statement: Any, vals: Any = (), oids: Any = (), stream: Any = None
    ) -> Any:
        if stream is None:
            return trips.exchange(self, statement, vals, oids)
        if not self._seen_shared or self._transaction_status != b"I":
            return in_three(self, statement, vals, oids, stream)
        cls.execute_simple(self, "BEGIN")
        try:
            context = in_three(self, statement, vals, oids, stream)
        except Exception:
            if self._usock is not None and self._seen_sent == self._seen_answered:
                cls.execute_simple(self, "ROLLBACK")
            raise
        cls.execute_simple(self, "COMMIT")
        return context

    execute_unnamed.__doc__ = in_three.__doc__
    cls.execute_unnamed = execute_unnamed


def _lending_cursors(cls: Any, base: Any) -> None:
    plain = base.cursor

    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = plain(self, *args, **kwargs)
        kind: Any = type(made)
        made.__class__ = trips.flying(kind)
        return made

    cursor.__doc__ = plain.__doc__
    cls.cursor = cursor


def _refusing(cls: Any, base: Any, name: str) -> None:
    """Make pg8000's ``rollback()`` refuse to run out of step. It sends nothing if its own state
    shows no transaction, and out of step that state is wrong.
    """
    plain = getattr(base, name)

    def method(self: Any) -> None:
        if self._seen_sent != self._seen_answered:
            raise trips.out_of_step()
        plain(self)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


MISSING = object()


def _register(conn: Any, types: Any, key: Any) -> None:
    conn._seen_registered.append((types, key, types.get(key, MISSING)))


def watched(base: Any) -> Any:
    """Return a subclass of *base* that tells the ledger of everything it sends.

    ``unwatched`` is the original class, to restore it.
    """
    return base if hasattr(base, "unwatched") else _watched(exact(base))


@cache
def _watched(base: Any) -> Any:
    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def execute_simple(self, statement: Any) -> Any:
            return _sent(self, statement, lambda: super(Watched, self).execute_simple(statement))

        def execute_unnamed(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
            return _sent(
                self,
                statement,
                lambda: super(Watched, self).execute_unnamed(statement, *args, **kwargs),
            )

        def execute_named(
            self, name: Any, params: Any, columns: Any, input_funcs: Any, statement: Any
        ) -> Any:
            return _sent(
                self,
                statement,
                lambda: super(Watched, self).execute_named(
                    name, params, columns, input_funcs, statement
                ),
            )

        def _seen_fly(self, statement: Any, *args: Any) -> Any:
            return _sent(
                self,
                statement,
                lambda: super(Watched, self)._seen_fly(statement, *args),
                begins=True,
            )

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _sent(conn: Any, statement: Any, send: Callable[[], Any], *, begins: bool = False) -> Any:
    ledger = scope.current(id(conn))
    if ledger is None or conn._usock is None or conn._seen_sent != conn._seen_answered:
        # then nothing is sent
        return send()
    failed, commits_itself = conn._transaction_status == b"E", conn._transaction_status == b"I"
    if begins:
        ledger.statement(trips.BEGIN, commits_itself, conn_id=id(conn))
        commits_itself = False
    ends = _postgresql.about_to_send(ledger, id(conn), str(statement), commits_itself)
    try:
        result = send()
    except Exception as error:
        _tell_refused(ledger, conn, ends, failed, error)
        raise
    _postgresql.answered(ledger, id(conn), ends, "ROLLBACK" if failed else None)
    return result


def _tell_refused(
    ledger: unit.Unit, conn: Any, ends: bool | None, failed: bool, error: Exception
) -> None:
    if conn._seen_sent != conn._seen_answered:
        said = error.__cause__  # from before the end of the connection: see handle_messages
        if ends is None and said is not None and said.args and isinstance(said.args[0], dict):
            code, text = said.args[0].get("C"), str(said.args[0].get("M"))
            if never_executed(text):
                _postgresql.refused(ledger, id(conn), None, code, text)
        return
    if ends and failed and conn._transaction_status == b"I":
        # "in failed transaction block": the server rolled back
        _postgresql.answered(ledger, id(conn), True, "ROLLBACK")
    elif error.args and isinstance(error.args[0], dict):
        _postgresql.refused(ledger, id(conn), ends, error.args[0].get("C"), str(error))
