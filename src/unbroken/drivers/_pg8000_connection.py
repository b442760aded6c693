"""pg8000's connections, of subclasses that know whether an answer is outstanding, and that
can report."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from unbroken.backends.pgbouncer import never_executed
from unbroken.drivers import _postgresql
from unbroken.drivers._shared import (
    lost,
)
from unbroken.ledger import scope, unit


def leave_unsent(file: Any) -> None:
    """What pg8000 could not send stays in its file's buffer: from Python 3.13 on the collector
    says, on stderr, that it cannot either.
    """
    for half in gc.get_referents(file):  # a BufferedRWPair has no attribute for its two halves
        with suppress(Exception):
            half.raw.close()


def plain(conn: Any) -> Any:
    """The class of *conn* when it is not watched."""
    return getattr(type(conn), "unwatched", type(conn))


#: The ways to send, and after how many answers an error of the server's leaves the protocol in
#: step.
_WAYS = {
    "execute_simple": (1,),
    "execute_unnamed": (1, 3),
    "execute_named": (1,),
    "prepare_statement": (1,),
    "close_prepared_statement": (1,),
}


@cache
def exact(base: Any) -> Any:
    """*base*, a pg8000 connection class, that knows whether it has read all that it asked for;
    *base* itself if it does.
    """
    if getattr(base, "_knows", False):
        return base

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _knows = True
        _transaction_status: bytes | None
        _seen_sent = _seen_answered = 0
        _seen_closed = False
        _seen_shared = False  #: whether a pooler may change the session after each transaction

        def _seen_new(self) -> None:
            #: Statements sent, and statements answered. Equal: nothing is under way, nothing is
            #: half read.
            self._seen_sent = self._seen_answered = 0
            self._seen_error, self._seen_answers = None, 0
            self.notices.clear()
            self.notifications.clear()
            self._seen_registered: list[tuple[Any, Any, Any]] = []  # what to undo
            if self._transaction_status is None:  # pg8000 forgets what the login ended with
                self._transaction_status = b"I"

        def handle_messages(self, context: Any) -> None:
            self._seen_error = None
            try:
                super().handle_messages(context)
            except Exception as broken:
                if context.error is None or broken is context.error:
                    raise
                raise broken from context.error  # what the server said before it hung up
            finally:
                self._seen_answers += 1
                self._seen_error = context.error

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

    for name, in_step in _WAYS.items():
        _followed(Connection, base, name, in_step)
    _in_one_session(Connection)
    if hasattr(base, "rollback"):
        _refusing(Connection, base, "rollback")
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _followed(cls: Any, base: Any, name: str, in_step: tuple[int, ...]) -> None:
    send = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._seen_sent != self._seen_answered:
            # pg8000 would take the answer that is still to come for this one's
            raise lost(_error()(OUT_OF_STEP))
        self._seen_sent += 1
        self._seen_answers = 0
        try:
            result = send(self, *args, **kwargs)
        except BaseException as error:
            if error is self._seen_error and self._seen_answers in in_step:
                self._seen_answered = self._seen_sent
            raise
        self._seen_answered = self._seen_sent
        return result

    method.__name__, method.__doc__ = name, send.__doc__
    setattr(cls, name, method)


def _in_one_session(cls: Any) -> None:
    """Parse, describe and execute are three requests, each answered in full. Outside a transaction
    a pooler may lead them to three sessions, and one of those may know somebody else's statement.
    """
    send = cls.execute_unnamed

    def execute_unnamed(
        self: Any, statement: Any, vals: Any = (), oids: Any = (), stream: Any = None
    ) -> Any:
        if not self._seen_shared or self._transaction_status != b"I":
            return send(self, statement, vals, oids, stream)
        if not vals and stream is None:
            return cls.execute_simple(
                self, statement
            )  # one request; it may not be in a transaction
        cls.execute_simple(self, "BEGIN")
        try:
            context = send(self, statement, vals, oids, stream)
        except Exception:
            if self._usock is not None and self._seen_sent == self._seen_answered:
                cls.execute_simple(self, "ROLLBACK")
            raise
        cls.execute_simple(self, "COMMIT")
        return context

    execute_unnamed.__doc__ = send.__doc__
    cls.execute_unnamed = execute_unnamed


def _refusing(cls: Any, base: Any, name: str) -> None:
    """pg8000's ``rollback()`` sends nothing where it believes that nothing is open; out of step it
    does not know.
    """
    plain = getattr(base, name)

    def method(self: Any) -> None:
        if self._seen_sent != self._seen_answered:
            raise lost(_error()(OUT_OF_STEP))
        plain(self)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


MISSING = object()


def _register(conn: Any, types: Any, key: Any) -> None:
    conn._seen_registered.append((types, key, types.get(key, MISSING)))


@cache
def _error() -> Any:
    from pg8000.exceptions import InterfaceError

    return InterfaceError


OUT_OF_STEP = (
    "connection is closed, or out of step: an answer of the server was not read to its end"
)


def watched(base: Any) -> Any:
    """*base* that tells the ledger of everything it sends.

    ``unwatched`` is the class to go back to.
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

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _sent(conn: Any, statement: Any, send: Callable[[], Any]) -> Any:
    ledger = scope.current(id(conn))
    if ledger is None or conn._usock is None or conn._seen_sent != conn._seen_answered:
        # then nothing is sent
        return send()
    failed = conn._transaction_status == b"E"
    ends = _postgresql.about_to_send(
        ledger, id(conn), str(statement), conn._transaction_status == b"I"
    )
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
        said = error.__cause__  # before the hang-up: see handle_messages
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
