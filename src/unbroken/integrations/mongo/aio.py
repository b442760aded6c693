"""AsyncMongoClient: PyMongo's by name, arguments and behaviour. Each process and each event loop
has its own.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import _get_running_loop  # get_running_loop, without an exception if there is none
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pymongo
from pymongo.asynchronous.monitor import Monitor
from pymongo.asynchronous.pool import Pool
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError
from pymongo.server_selectors import writable_server_selector

from unbroken.integrations.mongo import client_options, pymongo_internals
from unbroken.integrations.mongo.body import LookAgainMixin, OneProcessMixin, UnopenedMixin
from unbroken.integrations.mongo.doubt import (
    AGGREGATE,
    Again,
    AwaitedSending,
    Checkout,
    after,
    only_reads,
    resumes_stream,
)
from unbroken.integrations.mongo.errors import too_late
from unbroken.integrations.mongo.overload import telling_async
from unbroken.integrations.mongo.per_process import Current, PerProcess, is_inherited
from unbroken.integrations.mongo.process_aware import ProcessAware
from unbroken.integrations.mongo.sessions import adopted
from unbroken.integrations.mongo.sockets import recording_async
from unbroken.integrations.mongo.units import following, report
from unbroken.ledger.scope import apart, current_token
from unbroken.net.ending import no_executor

_Plain = pymongo.AsyncMongoClient
pymongo_internals.check(_Plain)
# called at each operation, and faster than super()
_plain_retry_internal = _Plain._retry_internal


class LookAgain(LookAgainMixin, Monitor):
    """PyMongo's monitor of one server."""

    async def _check_server(self) -> Any:
        return self._paced(await super()._check_server())


class ProcessClient(OneProcessMixin, _Plain[Any]):
    """PyMongo's client, belonging to one process and one event loop."""

    def __init__(self, per_process: PerProcess, arguments: dict[str, Any]) -> None:
        super().__init__(
            per_process,
            arguments,
            telling_async(
                recording_async(arguments.get("_pool_class") or Pool, per_process.sockets),
                per_process.overload,
            ),
            LookAgain,
        )


ProcessClient.__name__ = "AsyncMongoClient"  # the name in its warnings and messages


class UnopenedClient(UnopenedMixin, _Plain[Any]):
    """PyMongo's client with its options read, but without connections or threads."""


class Guard:
    """Leaves an inherited cursor open on the server: it is the parent's, under the same number."""

    def _cleanup_cursor_no_lock(
        self, cursor_id: Any, address: Any, conn_mgr: Any, session: Any, *more: Any
    ) -> None:
        if not is_inherited(session):
            super()._cleanup_cursor_no_lock(cursor_id, address, conn_mgr, session, *more)  # type: ignore[misc] # PyMongo's

    async def _cleanup_cursor_lock(
        self, cursor_id: Any, address: Any, conn_mgr: Any, session: Any, *more: Any
    ) -> None:
        if not is_inherited(session):
            await super()._cleanup_cursor_lock(cursor_id, address, conn_mgr, session, *more)  # type: ignore[misc]


class AsyncMongoClient(ProcessAware, _Plain[Any]):
    """PyMongo's AsyncMongoClient that survives forks, restarts, failovers and the end of its event
    loop.

    Arguments, defaults and errors are those of
    :class:`~unbroken.integrations.mongo.client.MongoClient`. It can be created anywhere, even where
    no loop runs yet. Each event loop that uses it has its own connections.
    """

    _body = ProcessClient
    _unopened_client = UnopenedClient
    _guard = Guard

    def __init__(
        self,
        host: str | Sequence[str] | None = None,
        port: int | None = None,
        document_class: type[Any] | None = None,
        tz_aware: bool | None = None,
        connect: bool | None = None,
        type_registry: Any = None,
        *,
        outage_wait: float = client_options.OUTAGE_WAIT,
        election_wait: float = client_options.ELECTION_WAIT,
        max_waiting: int | None = None,
        shed_target: float | None = None,
        **kwargs: Any,
    ) -> None:
        # a subclass, or the application on this class, may have set it
        host = self.HOST if host is None else host
        port = self.PORT if port is None else port
        given = {
            "host": host,
            "port": port,
            "document_class": document_class,
            "tz_aware": tz_aware,
            "type_registry": type_registry,
        }
        self._elsewhere: list[Current] = []
        arguments = {**given, **client_options.with_defaults(host, kwargs)}
        given_names = client_options.given_options(host, kwargs)
        limits = client_options.Limits.of(max_waiting, shed_target)
        self._begin(arguments, connect, outage_wait, election_wait, given_names, limits)

    # -- which process and which loop is this?

    def _settle(self) -> Current:
        loop = _get_running_loop()
        with self._door():
            before = self._now
            found = self._found(loop)
            if found is not None:
                self._now = found
                return found
            now = self._now = self._opened_here(loop)
            self._elsewhere = [*self._still_alive(), now]
        if before.body is not None and not before.here[0]:
            self._leave(before)
        return now

    def _present(self) -> Current | None:
        return self._found(_get_running_loop())

    def _found(self, loop: Any) -> Current | None:
        """Return this process's client for *loop*; without a loop, the last one used."""
        if self._now.here[0] and (loop is None or self._now.loop is loop):
            return self._now
        return next((one for one in self._elsewhere if one.here[0] and one.loop is loop), None)

    def _still_alive(self) -> list[Current]:
        """Return the others of this process.

        Those whose loop is closed are dropped: their end cannot be awaited, so their sockets are
        aborted.
        """
        alive = []
        for one in self._elsewhere:
            if one.here[0] and one.loop is not None and one.loop.is_closed():
                one.body._per_process.sockets.abort()
                one.body._closed = True
            elif one.here[0]:
                alive.append(one)
        return alive

    @property
    def _topology(self) -> Any:
        now = self._now
        if now.here[0] and now.loop is _get_running_loop():
            return now.topology
        found = self._found(_get_running_loop())
        return self._unopened if found is None else found.topology

    @_topology.setter
    def _topology(self, topology: Any) -> None:
        now = self._settle()
        now.topology = now.body._topology = topology

    async def _get_topology(self) -> Any:
        now = self._now
        if not now.here[0] or now.loop is not _get_running_loop():
            now = self._settle()
        return now.topology if now.opened else self._is_open(now, await self._opened_topology(now))

    async def _opened_topology(self, now: Current) -> Any:
        # In a context of its own. Otherwise the monitors' tasks, which live on, would inherit this
        # operation's deadline (PyMongo before 4.15).
        why = no_executor()
        if why is not None:
            raise too_late(self._where(), why)
        opening: Any = now.loop.create_task(now.body._get_topology(), context=apart())
        return await opening

    async def _select_server(
        self,
        server_selector: Any,
        session: Any,
        operation: Any,
        address: Any = None,
        deprioritized_servers: Any = None,
        operation_id: Any = None,
    ) -> Any:
        now = self._now
        if not now.here[0] or now.loop is not _get_running_loop():
            now = self._settle()
        now.uses += 1
        if (
            session is not None
            and getattr(session._server_session, "generation", now.generation) != now.generation
        ):
            self._refuse(session)
        server = None
        topology = now.topology
        if (
            now.opened
            and topology._description is now.gate.good
            and not address
            and (session is None or not session.in_transaction)
        ):
            if session is not None:
                await session._transaction.reset()
            # PyMongo's code here, without some steps that lead to it
            try:
                server = await topology.select_server(
                    server_selector,
                    operation,
                    0.0,
                    deprioritized_servers=deprioritized_servers,
                    operation_id=operation_id,
                )
            except ServerSelectionTimeoutError:
                server = None
        if server is None:
            choose = partial(
                self._choose,
                server_selector,
                session,
                operation,
                address,
                deprioritized_servers,
                operation_id,
            )
            server = await self._wait_for_server(now, choose, server_selector, address, operation)
        if current_token() is not None:
            report(operation)
        return server

    async def _choose(
        self,
        server_selector: Any,
        session: Any,
        operation: Any,
        address: Any,
        deprioritized_servers: Any,
        operation_id: Any,
    ) -> Any:
        """Do the same as PyMongo's ``_select_server``, but without waiting."""
        try:
            topology = await self._get_topology()
            if session and not session.in_transaction:
                await session._transaction.reset()
            address = address or (session and session._pinned_address)
            if address:
                return await topology.select_server_by_address(
                    address, operation, 0.0, operation_id=operation_id
                )
            return await topology.select_server(
                server_selector,
                operation,
                0.0,
                deprioritized_servers=deprioritized_servers,
                operation_id=operation_id,
            )
        except PyMongoError as error:
            if session and session.in_transaction:
                error._add_error_label("TransientTransactionError")
                await session._unpin()
            raise

    async def _wait_for_server(
        self, now: Current, choose: Callable[[], Any], selector: Any, address: Any, operation: Any
    ) -> Any:
        """Return the server that PyMongo chooses, as soon as there is one. Raises an error that
        gives the reason why there is none.
        """
        gate, came = now.gate, time.monotonic()
        while True:
            seen = now.topology.description
            try:
                server = await choose()
                break
            except ServerSelectionTimeoutError as error:
                pause = self._pause(now, error, seen, selector, address, operation, came)
            await _wait_for_news(now.topology, seen, pause)
        if seen is not gate.good:
            gate.found(selector, address)
            gate.look(now.topology.description)
        return server

    async def _retryable_write(
        self,
        retryable: Any,
        func: Any,
        session: Any,
        operation: Any,
        bulk: Any = None,
        *more: Any,
        **named: Any,
    ) -> Any:
        if session is not None and session.in_transaction:
            return await super()._retryable_write(
                retryable, func, session, operation, bulk, *more, **named
            )
        with following(operation) as write:
            send = AwaitedSending(func, write)
            again: Again | None = None
            while True:
                try:
                    result = await super()._retryable_write(
                        retryable, send, session, operation, bulk, *more, **named
                    )
                    break
                except PyMongoError as error:
                    again = again or Again(self._now)
                    # of many documents some may be stored before one is refused
                    is_stored = send.doubtful or (bulk is not None and send.sent)
                    if is_stored or not again.may(error):
                        if write is not None:
                            write.failed(error, is_single=retryable and bulk is None)
                        told = send.failed(error)
                        if told is error:
                            raise
                        raise told from error
            if write is not None:
                write.returned(result, is_acknowledged=retryable or bulk is not None)
            return result

    async def _retry_internal(  # type: ignore[override] # by name, as PyMongo calls it
        self, func: Any, session: Any, bulk: Any, operation: Any, **named: Any
    ) -> Any:
        token = (
            client_options.resuming.set(True)
            if operation is AGGREGATE and resumes_stream(func)
            else None
        )
        try:
            return await _plain_retry_internal(self, func, session, bulk, operation, **named)
        except PyMongoError as error:
            failed = error
        finally:
            if token is not None:
                client_options.resuming.reset(token)
        arguments = {**named, "session": session, "operation": operation}
        again = Again(self._now)
        while only_reads(arguments) and again.may(failed):
            try:
                return await _plain_retry_internal(self, func, session, bulk, operation, **named)
            except PyMongoError as error:
                failed = error
        told = after(failed, arguments)
        raise told from (failed.__cause__ if told is failed else failed)

    async def _conn_for_writes(self, session: Any, operation: Any, *more: Any) -> Any:
        checkout: Any = await super()._conn_for_writes(session, operation, *more)
        is_in_transaction = session is not None and session.in_transaction
        return checkout if is_in_transaction else Checkout(checkout)

    def start_session(self, *args: Any, **kwargs: Any) -> Any:
        """Start a session, as PyMongo does. Its ``with_transaction`` raises WriteUnknownError if
        the commit is in doubt.
        """
        return adopted(super().start_session(*args, **kwargs))

    async def _server_property(self, attr_name: str) -> Any:
        """Return ``address``, ``is_primary`` or ``is_mongos``. PyMongo lets these wait for 30 s,
        independent of timeoutMS.

        A server that was lost just after it had been chosen gives no answer; PyMongo would report
        that it is no primary.
        """
        with pymongo.timeout(self._options.timeout):
            while True:
                server = await self._select_server(writable_server_selector, None, "testOperation")
                description = server.description
                if description.is_server_type_known:
                    return getattr(description, attr_name)

    async def _close_cursor_now(
        self, cursor_id: Any, address: Any, session: Any = None, conn_mgr: Any = None
    ) -> None:
        if not is_inherited(session):
            await super()._close_cursor_now(cursor_id, address, session, conn_mgr)

    async def close(self) -> None:
        """Close the client in this process. Takes at most half a second, even if the server is down
        or frozen.

        Connections of other running loops are closed there, soon.
        """
        self._shut = True
        loop = _get_running_loop()
        others, self._elsewhere = [one for one in self._still_alive() if one.loop is not loop], []
        for one in others:
            asyncio.run_coroutine_threadsafe(_closed(one), one.loop)
        now = self._now
        if now.here[0] and now.loop is loop:
            await _closed(now)
        else:
            self._now = Current(None, None, self._unopened)

    aclose = close


async def _closed(now: Current) -> None:
    body = now.body
    body._per_process.leaves()
    if now.gate.reads.active:
        body._topology.pop_all_sessions()  # no server is there to be told of their end
        body._kill_cursors_queue.clear()
    with pymongo.timeout(0.5):
        await body.close()


async def _wait_for_news(topology: Any, seen: Any, pause: float) -> None:
    """Wait until *topology* differs from *seen*, for at most *pause* seconds; make its monitors
    check.
    """
    async with topology._lock:
        if topology._description is seen:
            await topology._ensure_opened()
            topology._request_check_all()
            await _wait(topology._condition, pause)


async def _wait(condition: Any, seconds: float) -> None:
    wait: Any = getattr(pymongo.lock, "_async_cond_wait", None)
    if wait is None:  # PyMongo before 4.12
        await condition.wait(seconds)
    else:
        await wait(condition, seconds)
