"""psycopg's cursors, of subclasses that send BEGIN with their first statement."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import suppress
from functools import cache
from types import CodeType
from typing import Any

from unbroken.drivers._psycopg_look import Shown, showing
from unbroken.drivers._psycopg_texts import is_one
from unbroken.drivers._psycopg_trips import (
    _FATAL,
    _IDLE,
    NotAskedError,
    _server_error,
    begin_again,
    flight_of,
    is_due,
    land,
    may_fly,
    settle,
)


def land_alone(conn: Any) -> Generator[Any, Any, None]:
    """Do the same as :func:`land`, for BEGIN alone."""
    try:
        try:
            yield from land(conn)
        except NotAskedError:
            yield from begin_again(conn)
    except Exception:
        conn._unbroken_unsent = True
        raise


class _NoPipeline:
    """The view of libpq that a cursor gets if it only asks whether the application uses a
    pipeline.
    """

    pipeline_status = transaction_status = _IDLE


_NO_PIPELINE = _NoPipeline()


@cache
def _only_ask() -> frozenset[CodeType]:
    from psycopg import AsyncCursor, AsyncServerCursor, Cursor, ServerCursor

    kinds: tuple[Any, ...] = (Cursor, AsyncCursor, ServerCursor, AsyncServerCursor)
    return frozenset(
        [kind.stream.__code__ for kind in kinds] + [kind.execute.__code__ for kind in kinds[2:]]
    )


_READ_DUE = frozenset({"_execute_gen", "take", "take_and_begin", "_set_autocommit_gen"})


def reads_due(work: Any) -> bool:
    """Return whether *work*, a generator of psycopg's, reads the due answers itself, or needs none
    of them.
    """
    return getattr(work, "__name__", None) in _READ_DUE


@cache
def flying(base: Any) -> Any:
    """Return a subclass of *base*, a class of psycopg's cursors, that sends BEGIN with its first
    statement and tells its connection the text of each. Return *base* itself if it overrides
    something.
    """
    import psycopg
    from psycopg._cursor_base import BaseCursor
    from psycopg.client_cursor import ClientCursorMixin

    if hasattr(base, "_flies") or not issubclass(base, (psycopg.Cursor, psycopg.AsyncCursor)):
        return base
    own = ("_execute_gen", "_maybe_prepare_gen", "_start_query", "_send_prepare")
    if any(getattr(base, name) is not getattr(BaseCursor, name) for name in own):
        return base
    puts_values_in = base._execute_send is ClientCursorMixin._execute_send
    if not puts_values_in and base._execute_send is not BaseCursor._execute_send:
        return base

    pgconn_of = vars(BaseCursor)["_pgconn"].__get__

    class Flying(base):  # type: ignore[misc] # the base is only known here
        __slots__ = ()
        __module__ = base.__module__
        __doc__ = base.__doc__
        _flies = True

        @property
        def _pgconn(self) -> Any:
            if is_due(self._conn):
                caller = sys._getframe(1).f_code
                if caller in _only_ask():
                    return _NO_PIPELINE
                if caller in showing():
                    return Shown(self._conn)
                settle(self._conn)
            return pgconn_of(self)

        def _execute_gen(
            self, query: Any, params: Any = None, **options: Any
        ) -> Generator[Any, Any, None]:
            conn = self._conn
            state = conn.__dict__
            if "_unbroken_texts" not in state:  # not one of ours
                yield from super()._execute_gen(query, params, **options)
                return
            turn = getattr(conn.lock, "turns", None)
            state["_unbroken_said"] = (turn, query, may_fly(conn, query))
            try:
                yield from super()._execute_gen(query, params, **options)
            except Exception:
                flight = flight_of(conn)
                # it has values that cannot be encoded
                if flight is not None and not flight.is_full:
                    with suppress(psycopg.Error):
                        yield from land_alone(conn)  # BEGIN is sent as usual
                raise

        def _maybe_prepare_gen(
            self, pgq: Any, *, prepare: Any = None, binary: Any = None
        ) -> Generator[Any, Any, None]:
            conn = self._conn
            flight = flight_of(conn)
            if flight is None:
                yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
                return
            refused = puts_values_in and (self.format if binary is None else binary)
            if refused or not is_one(pgq):
                yield from land_alone(conn)
                yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
                return
            flight.is_full = True
            # From here on like psycopg's own, with all answers read in one go.
            prep, name = self._get_prepared(pgq, prepare)
            is_new = prep is psycopg._preparing.Prepare.SHOULD
            if prep is psycopg._preparing.Prepare.NO:
                self._execute_send(pgq, force_extended=True, binary=binary)
            else:
                if is_new:
                    self._send_prepare(name, pgq)
                self._send_query_prepared(name, pgq, binary=binary)
            try:
                answers = yield from land(conn, 2 if is_new else 1)
            except NotAskedError:
                yield from begin_again(conn)
                yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
                return
            for result in answers[0] if is_new else ():
                if result.status == _FATAL:
                    raise _server_error(self._pgconn, result)
            key = conn._prepared.maybe_add_to_cache(pgq, prep, name)
            results = answers[-1]
            if key is not None:
                conn._prepared.validate(key, prep, name, results)
            self._check_results(results)
            self._set_results(results)

    Flying.__name__ = Flying.__qualname__ = base.__name__
    return Flying
