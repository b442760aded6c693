"""A holder's possible changes to a psycopg connection that send nothing to the server, and how they
are undone.

The pool checks at every release whether a connection is as it was opened, so that must be cheap.
The connection gets a subclass of its own class that notes when one of its traits is set. Only then
are the traits compared one by one.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from functools import cache
from inspect import isasyncgenfunction, iscoroutinefunction, unwrap
from typing import Any, NamedTuple

from unbroken.drivers import _psycopg_trips as trips
from unbroken.drivers._psycopg_flying import flying as make_flying
from unbroken.drivers._psycopg_flying import reads_due
from unbroken.drivers._psycopg_look import FRIENDS, get_ready, look
from unbroken.drivers._psycopg_texts import note_command, note_text
from unbroken.drivers._psycopg_waits import close_later, is_waited_for, note_wait
from unbroken.drivers._psycopg_watch import real_pgconn

_OK, _IDLE = 0, 0  # PQstatus, PQtransactionStatus


class Traits(NamedTuple):
    """The attributes of one connection: plain values, and objects that are compared by identity."""

    autocommit: bool
    isolation_level: Any
    read_only: bool | None
    deferrable: bool | None
    row_factory: Any
    cursor_factory: Any
    server_cursor_factory: Any
    prepare_threshold: int | None
    prepared_max: int | None
    notice_handlers: tuple[Any, ...]
    notify_handlers: tuple[Any, ...]
    adapters_changed: bool = False


#: Attributes whose assignment is noted. Those of transactions, pipelines and 2PC must have their
#: initial values.
_NOTED = frozenset(
    "_autocommit _isolation_level _read_only _deferrable row_factory cursor_factory"
    " server_cursor_factory _adapters _num_transactions _tpc _pipeline _prepared lock pgconn"
    " _unbroken_inside _unbroken_wants".split()
)


@cache
def noting(base: Any) -> Any:
    """Return a subclass of *base*, a psycopg connection class, that notes when a trait may have
    changed. Return *base* itself if it already does.
    """
    if hasattr(base, "_unbroken_changed"):
        return base
    get_ready()
    # kept here: at the end of the interpreter, psycopg's __del__ comes after this module's names
    # are gone
    frame_of, friends, seen = sys._getframe, FRIENDS, look

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _unbroken_changed = True  #: until the first comparison
        _unbroken_due: Any = None  #: the answers that are due
        _unbroken_inside = 0  #: the number of entered blocks of pipeline()
        _unbroken_wants: bytes | None = None  #: the command that is sent with the next statement
        _unbroken_unsent = False  #: whether the last statement failed before it was sent
        _unbroken_turn: int | None = (
            None  #: the one hold on the lock that the pipeline is for; None: for any
        )

        def __setattr__(self, name: str, value: Any) -> None:
            if name in _NOTED:
                self.__dict__["_unbroken_changed"] = True
            super().__setattr__(name, value)

        @property
        def pgconn(self) -> Any:
            # like look, inline for the usual case: psycopg asks five times for each statement
            if (
                self._unbroken_due is None
                and self._unbroken_wants is None
                and frame_of(1).f_globals.get("__name__", "")[:8] in friends
            ):
                return self.__dict__["pgconn"]
            return seen(self)

        @pgconn.setter
        def pgconn(self, value: Any) -> None:
            self.__dict__["pgconn"] = value

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            cursor = super().cursor(*args, **kwargs)
            kind: Any = type(cursor)
            cursor.__class__ = flying = make_flying(kind)
            if flying is kind and trips.is_due(self):
                trips.settle(self)  # it looks at libpq by itself
            return cursor

        def _start_query(self) -> Generator[Any, Any, None]:
            said = self.__dict__.pop("_unbroken_said", None)
            if said is None or said[0] != getattr(self.lock, "turns", None):
                said = (None, None, False)
            if self._unbroken_unsent:
                self._unbroken_unsent = False
            if said[2]:
                yield from trips.start(self)
            else:
                try:
                    yield from self._unbroken_ready()
                    yield from trips.begin_now(self)
                    yield from super()._start_query()
                except Exception:
                    self._unbroken_unsent = True
                    raise
            note_text(self, said[1])

        def _exec_command(
            self, command: Any, *args: Any, **kwargs: Any
        ) -> Generator[Any, Any, Any]:
            if trips.flight_of(self) is not None:
                self.__dict__["_unbroken_texts"].clear()  # it is BEGIN
                self.__dict__["pgconn"].send_query_params(command, None)
                return None
            yield from self._unbroken_ready()
            note_command(self, command)
            return (yield from super()._exec_command(command, *args, **kwargs))

        def _check_intrans_gen(self, attribute: str) -> Generator[Any, Any, None]:
            # otherwise nothing will be open, once that was answered
            if not trips.is_due(self):
                yield from super()._check_intrans_gen(attribute)

        def _commit_gen(self) -> Generator[Any, Any, None]:
            yield from self._unbroken_ready()
            yield from super()._commit_gen()

        def _rollback_gen(self) -> Generator[Any, Any, None]:
            yield from self._unbroken_ready()
            yield from super()._rollback_gen()

        def _unbroken_ready(self) -> Generator[Any, Any, None]:
            if self.__dict__.get("_unbroken_due") is not None:
                yield from trips.take(self)
            check_step(self)

    Connection.wait = _waiting(base.wait)
    if iscoroutinefunction(unwrap(base.close)):
        Connection.close = _closing(base.close)
    if isasyncgenfunction(unwrap(base.notifies)):
        Connection.notifies = _notifying(base.notifies)
    for name in ("pipeline", "_pipeline_nolock"):
        if hasattr(base, name):
            setattr(Connection, name, _counted(name, getattr(base, name)))
    for name in (
        "add_notice_handler",
        "remove_notice_handler",
        "add_notify_handler",
        "remove_notify_handler",
    ):
        setattr(Connection, name, _noted(getattr(base, name)))
    for name in ("prepare_threshold", "prepared_max"):
        plain = getattr(base, name)
        setattr(Connection, name, property(plain.fget, _noted(plain.fset), doc=plain.__doc__))
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _waiting(plain: Any) -> Any:
    """Wrap psycopg's ``wait()``, by which its connection and its cursors send everything. It reads
    the due answers asynchronously. Code that looks at libpq later would block the event loop for
    that.
    """

    def wait(self: Any, work: Any, *args: Any, **kwargs: Any) -> Any:
        if trips.is_owed(self.__dict__) and not reads_due(work):
            plain(self, trips.take_and_begin(self))
        return plain(self, work, *args, **kwargs)

    async def wait_async(self: Any, work: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.__dict__
        if trips.is_owed(state) and not reads_due(work):
            note_wait(state, wait := plain(self, trips.take_and_begin(self)))
            await wait
        note_wait(state, wait := plain(self, work, *args, **kwargs))
        return await wait

    method = wait_async if iscoroutinefunction(unwrap(plain)) else wait
    method.__name__, method.__doc__ = "wait", plain.__doc__
    return method


def _closing(plain: Any) -> Any:
    """Wrap psycopg's ``close()`` of an async connection, once no task waits for it any more."""

    async def close(self: Any) -> None:
        state = self.__dict__
        pgconn = state["pgconn"]
        if "_pool" in state or pgconn.status != _OK or not is_waited_for(state):
            await plain(self)
            return
        self._closed = True
        close_later(pgconn.socket, state, pgconn.finish)

    close.__doc__ = plain.__doc__
    return close


def _notifying(plain: Any) -> Any:
    """Wrap psycopg's ``notifies()`` of asyncio, which looks at libpq before it waits for
    anything.
    """

    async def notifies(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        if trips.is_owed(self.__dict__):
            async with self.lock:
                await self.wait(trips.take_and_begin(self))
        async with aclosing(plain(self, *args, **kwargs)) as heard:
            async for each in heard:
                yield each

    notifies.__doc__ = plain.__doc__
    return notifies


def _counted(name: str, plain: Any) -> Any:
    """Wrap psycopg's ``pipeline()`` with a count of the entered blocks.

    The one that ``executemany()`` uses by itself lasts no longer than its hold on the lock.
    """
    is_internal = name == "_pipeline_nolock"

    def entered(self: Any) -> None:
        self._unbroken_turn = getattr(self.lock, "turns", None) if is_internal else None
        self._unbroken_inside += 1

    @contextmanager
    def pipeline(self: Any) -> Iterator[Any]:
        if trips.is_owed(self.__dict__):
            with nullcontext() if is_internal else self.lock:
                self.wait(trips.take_and_begin(self))
        with plain(self) as found:
            entered(self)
            try:
                yield found
            finally:
                self._unbroken_inside -= 1

    @asynccontextmanager
    async def async_pipeline(self: Any) -> AsyncIterator[Any]:
        if trips.is_owed(self.__dict__):
            async with nullcontext() if is_internal else self.lock:
                await self.wait(trips.take_and_begin(self))
        async with plain(self) as found:
            entered(self)
            try:
                yield found
            finally:
                self._unbroken_inside -= 1

    method = async_pipeline if isasyncgenfunction(unwrap(plain)) else pipeline
    method.__name__, method.__doc__ = name, plain.__doc__
    return method


def is_out_of_pipelines(conn: Any) -> bool:
    """Return whether both psycopg and this library treat *conn* as not in pipeline mode."""
    return conn._pipeline is None and not getattr(conn, "_unbroken_inside", 0)


def check_step(conn: Any) -> None:
    """Raise OperationalError if an exception struck psycopg while it entered or left pipeline mode.

    A statement would be sent then, and its answer not be read.
    """
    if conn._pipeline is None:
        is_well = not conn._unbroken_inside and not real_pgconn(conn).pipeline_status
    else:
        is_well = bool(conn._unbroken_inside) and conn._unbroken_turn in (
            None,
            getattr(conn.lock, "turns", None),
        )
    if not is_well:
        raise trips.out_of_step()


def _noted(plain: Any) -> Any:
    def method(self: Any, *args: Any) -> Any:
        self.__dict__["_unbroken_changed"] = True
        return plain(self, *args)

    method.__name__, method.__doc__ = plain.__name__, plain.__doc__
    return method


def traits_of(conn: Any) -> Traits:
    """Return the present traits of *conn*."""
    prepared = conn._prepared
    return Traits(
        conn._autocommit, conn._isolation_level, conn._read_only, conn._deferrable,
        conn.row_factory, conn.cursor_factory, conn.server_cursor_factory,
        prepared.prepare_threshold, prepared.prepared_max, tuple(conn._notice_handlers),
        tuple(conn._notify_handlers),
        conn._adapters is not None and getattr(conn._adapters, "touched", True),
    )  # fmt: skip


def is_as_opened(conn: Any, traits: Any) -> bool:
    """Return whether *conn* still has its *traits*, and is in no block of transaction(), 2PC or
    pipeline.
    """
    if (
        conn._num_transactions
        or conn._tpc is not None
        or not is_out_of_pipelines(conn)
        or conn._unbroken_wants is not None
        or traits_of(conn) != traits
    ):
        return False
    conn.__dict__["_unbroken_changed"] = False
    return True


def put_back(conn: Any, traits: Traits) -> bool:
    """Restore the *traits* of *conn*.

    False: it is in the middle of something and must be closed.
    """
    pgconn = real_pgconn(conn)
    if (
        pgconn.status != _OK
        or (
            (pgconn.transaction_status != _IDLE or pgconn.pipeline_status)
            and not trips.is_due(conn)
        )
        or not is_out_of_pipelines(conn)
    ):
        return False
    if conn.lock.locked() or conn._num_transactions or conn._tpc is not None:
        return False
    conn._unbroken_wants = None
    conn._autocommit = traits.autocommit
    conn._isolation_level, conn._read_only, conn._deferrable = (
        traits.isolation_level,
        traits.read_only,
        traits.deferrable,
    )
    conn._begin_statement = b""  # made of the three, and kept
    conn.row_factory, conn.cursor_factory = traits.row_factory, traits.cursor_factory
    conn.server_cursor_factory = traits.server_cursor_factory
    conn._prepared.prepare_threshold, conn._prepared.prepared_max = (
        traits.prepare_threshold,
        traits.prepared_max,
    )
    conn._notice_handlers[:], conn._notify_handlers[:] = (
        traits.notice_handlers,
        traits.notify_handlers,
    )
    adapters = conn._adapters
    if adapters is not None and getattr(adapters, "touched", True):
        conn._adapters = None
        conn._adapters = _adapters_class()(
            getattr(adapters, "template", None) or conn.adapters, conn
        )
    return is_as_opened(conn, traits)


def keep_adapters(conn: Any) -> None:
    """Note registrations in the adapters that *conn* was opened with.

    Those that psycopg copies at first use come later.
    """
    if conn._adapters is not None and not hasattr(conn._adapters, "touched"):
        conn._adapters = _adapters_class()(conn._adapters, conn)


@cache
def _adapters_class() -> Any:
    """Return a subclass of psycopg's AdaptersMap that notes when something is registered in it."""
    from psycopg._adapters_map import AdaptersMap
    from psycopg._typeinfo import TypesRegistry

    class Types(TypesRegistry):
        __module__ = TypesRegistry.__module__
        note: Any = None  #: called before each change

        def add(self, info: Any) -> None:
            self.note()
            super().add(info)

    class Adapters(AdaptersMap):
        __module__ = AdaptersMap.__module__

        def __init__(self, template: Any, conn: Any) -> None:
            super().__init__(template)
            self.template = AdaptersMap(template)  #: its present state, for the next holder
            self.touched = False
            touch = _toucher(weakref.ref(self), weakref.ref(conn))
            self.note, self.types = touch, Types(template.types)
            self.types.note = touch

        def register_dumper(self, *args: Any, **kwargs: Any) -> None:
            self.note()
            super().register_dumper(*args, **kwargs)

        def register_loader(self, *args: Any, **kwargs: Any) -> None:
            self.note()
            super().register_loader(*args, **kwargs)

    return Adapters


def _toucher(adapters_ref: Any, conn_ref: Any) -> Any:
    def touch() -> None:
        adapters, conn = adapters_ref(), conn_ref()
        if adapters is not None:
            adapters.touched = True
        if conn is not None:
            conn.__dict__["_unbroken_changed"] = True

    return touch
