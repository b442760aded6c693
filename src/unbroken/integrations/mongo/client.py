"""MongoClient: PyMongo's by name, arguments and behaviour. Each process has its own, and every wait
is bounded.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pymongo
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError
from pymongo.server_selectors import writable_server_selector
from pymongo.synchronous.monitor import Monitor
from pymongo.synchronous.pool import Pool

from unbroken.integrations.mongo import client_options, pymongo_internals
from unbroken.integrations.mongo.body import LookAgainMixin, OneProcessMixin, UnopenedMixin
from unbroken.integrations.mongo.doubt import (
    AGGREGATE,
    Again,
    Checkout,
    Sending,
    after,
    only_reads,
    resumes_stream,
)
from unbroken.integrations.mongo.errors import too_late
from unbroken.integrations.mongo.overload import telling
from unbroken.integrations.mongo.per_process import Current, PerProcess, is_inherited
from unbroken.integrations.mongo.prefork import is_master, rest
from unbroken.integrations.mongo.process_aware import ProcessAware
from unbroken.integrations.mongo.sessions import adopted
from unbroken.integrations.mongo.sockets import recording
from unbroken.integrations.mongo.units import following, report
from unbroken.ledger.scope import current_token
from unbroken.net.ending import FINALIZING, is_finalizing
from unbroken.net.signals import refused, unsignalled

_Plain = pymongo.MongoClient
pymongo_internals.check(_Plain)
# called at each operation, and faster than super()
_plain_retry_internal = _Plain._retry_internal


class LookAgain(LookAgainMixin, Monitor):
    """PyMongo's monitor of one server."""

    def _check_server(self) -> Any:
        return self._paced(super()._check_server())


class ProcessClient(OneProcessMixin, _Plain[Any]):
    """PyMongo's client, belonging to one process."""

    def __init__(self, per_process: PerProcess, arguments: dict[str, Any]) -> None:
        super().__init__(
            per_process,
            arguments,
            telling(
                recording(
                    arguments.get("_pool_class") or Pool,
                    per_process.sockets,
                    keep=not per_process.quiet,
                ),
                per_process.overload,
            ),
            LookAgain,
        )


ProcessClient.__name__ = "MongoClient"  # the name in its warnings and messages


class UnopenedClient(UnopenedMixin, _Plain[Any]):
    """PyMongo's client with its options read, but without connections or threads."""


class Guard:
    """Leaves an inherited cursor open on the server: it is the parent's, under the same number."""

    def _cleanup_cursor_no_lock(
        self, cursor_id: Any, address: Any, conn_mgr: Any, session: Any, *more: Any
    ) -> None:
        if not is_inherited(session):
            super()._cleanup_cursor_no_lock(cursor_id, address, conn_mgr, session, *more)  # type: ignore[misc] # PyMongo's

    def _cleanup_cursor_lock(
        self, cursor_id: Any, address: Any, conn_mgr: Any, session: Any, *more: Any
    ) -> None:
        if not is_inherited(session):
            super()._cleanup_cursor_lock(cursor_id, address, conn_mgr, session, *more)  # type: ignore[misc]


class MongoClient(ProcessAware, _Plain[Any]):
    """PyMongo's MongoClient that survives forks, restarts and failovers. It takes PyMongo's
    arguments, and four more:

    *outage_wait*: seconds for which callers wait for a server in an outage, counted from its
    beginning. After that they get an :class:`~unbroken.errors.OutageError` immediately, until a
    heartbeat finds a server. Default 5.0; ``math.inf``: they always wait. *election_wait*: seconds
    by which they wait longer while a replica set elects. Default 20.0.

    *max_waiting*: how many callers wait for a connection to one server at most; the next one is
    told immediately. Default None: no limit. *shed_target*: seconds that callers may have to wait
    for a connection while more come than are served. Default None: learned, and only for web
    requests; ``math.inf``: no limit but each caller's own time (docs/overload.md).

    Creating a client checks the arguments and opens no thread and no socket. (An explicit
    ``connect=True`` begins to connect immediately.) Unless the URI or the arguments set them,
    ``heartbeatFrequencyMS`` and ``connectTimeoutMS`` are 1000 and ``waitQueueTimeoutMS`` is 10000.

    Raises PyMongo's own errors, and ConfigurationError for a bad value of these
    four. Where too many callers wait for a connection, raises a PoolTimeoutError that is also
    PyMongo's WaitQueueTimeoutError.
    While no server can serve, raises an OutageError that is also PyMongo's
    ServerSelectionTimeoutError. For a write whose answer was lost, raises a WriteUnknownError that
    is also PyMongo's error.
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
        arguments = {**given, **client_options.with_defaults(host, kwargs)}
        given_names = client_options.given_options(host, kwargs)
        limits = client_options.Limits.of(max_waiting, shed_target)
        self._begin(arguments, connect, outage_wait, election_wait, given_names, limits)
        if connect and not is_master():
            self._get_topology()

    @property
    def _topology(self) -> Any:
        now = self._now
        return now.topology if now.here[0] else self._unopened

    @_topology.setter
    def _topology(self, topology: Any) -> None:
        now = self._settle()
        now.topology = now.body._topology = topology

    def _get_topology(self) -> Any:
        now = self._now
        if not now.here[0]:
            now = self._settle()
        if now.opened:
            return now.topology
        why = refused()
        if why is not None:
            raise too_late(self._where(), why)
        with unsignalled():  # it starts the monitors' threads, and these start others
            return self._is_open(now, now.body._get_topology())

    def _select_server(
        self,
        server_selector: Any,
        session: Any,
        operation: Any,
        address: Any = None,
        deprioritized_servers: Any = None,
        operation_id: Any = None,
    ) -> Any:
        now = self._now
        if not now.here[0]:
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
                session._transaction.reset()
            # PyMongo's code here, without some steps that lead to it
            try:
                server = topology.select_server(
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
            server = self._wait_for_server(now, choose, server_selector, address, operation)
        if now.quiet:
            rest(now.body)
        if current_token() is not None:
            report(operation)
        return server

    def _choose(
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
            topology = self._get_topology()
            if session and not session.in_transaction:
                session._transaction.reset()
            address = address or (session and session._pinned_address)
            if address:
                return topology.select_server_by_address(
                    address, operation, 0.0, operation_id=operation_id
                )
            return topology.select_server(
                server_selector,
                operation,
                0.0,
                deprioritized_servers=deprioritized_servers,
                operation_id=operation_id,
            )
        except PyMongoError as error:
            if session and session.in_transaction:
                error._add_error_label("TransientTransactionError")
                session._unpin()
            raise

    def _wait_for_server(
        self, now: Current, choose: Callable[[], Any], selector: Any, address: Any, operation: Any
    ) -> Any:
        """Return the server that PyMongo chooses, as soon as there is one. Raises an error that
        gives the reason why there is none.
        """
        gate, came = now.gate, time.monotonic()
        while True:
            seen = now.topology.description
            try:
                server = choose()
                break
            except ServerSelectionTimeoutError as error:
                pause = self._pause(now, error, seen, selector, address, operation, came)
            _wait_for_news(now.topology, seen, pause)
        if seen is not gate.good:
            gate.found(selector, address)
            gate.look(now.topology.description)
        return server

    def _retryable_write(
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
            return super()._retryable_write(
                retryable, func, session, operation, bulk, *more, **named
            )
        with following(operation) as write:
            send = Sending(func, write)
            again: Again | None = None
            while True:
                try:
                    result = super()._retryable_write(
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

    def _retry_internal(  # type: ignore[override] # by name, as PyMongo calls it
        self, func: Any, session: Any, bulk: Any, operation: Any, **named: Any
    ) -> Any:
        token = (
            client_options.resuming.set(True)
            if operation is AGGREGATE and resumes_stream(func)
            else None
        )
        try:
            return _plain_retry_internal(self, func, session, bulk, operation, **named)
        except PyMongoError as error:
            failed = error
        finally:
            if token is not None:
                client_options.resuming.reset(token)
        arguments = {**named, "session": session, "operation": operation}
        again = Again(self._now)
        while only_reads(arguments) and again.may(failed):
            try:
                return _plain_retry_internal(self, func, session, bulk, operation, **named)
            except PyMongoError as error:
                failed = error
        told = after(failed, arguments)
        raise told from (failed.__cause__ if told is failed else failed)

    def _conn_for_writes(self, session: Any, operation: Any, *more: Any) -> Any:
        checkout: Any = super()._conn_for_writes(session, operation, *more)
        is_in_transaction = session is not None and session.in_transaction
        return checkout if is_in_transaction else Checkout(checkout)

    def start_session(self, *args: Any, **kwargs: Any) -> Any:
        """Start a session, as PyMongo does. Its ``with_transaction`` raises WriteUnknownError if
        the commit is in doubt.
        """
        return adopted(super().start_session(*args, **kwargs))

    def _server_property(self, attr_name: str) -> Any:
        """Return ``address``, ``is_primary`` or ``is_mongos``. PyMongo lets these wait for 30 s,
        independent of timeoutMS.

        A server that was lost just after it had been chosen gives no answer; PyMongo would report
        that it is no primary.
        """
        with pymongo.timeout(self._options.timeout):
            while True:
                server = self._select_server(writable_server_selector, None, "testOperation")
                description = server.description
                if description.is_server_type_known:
                    return getattr(description, attr_name)

    def _close_cursor_now(
        self, cursor_id: Any, address: Any, session: Any = None, conn_mgr: Any = None
    ) -> None:
        if not is_inherited(session):
            super()._close_cursor_now(cursor_id, address, session, conn_mgr)

    def close(self) -> None:
        """Close the client in this process.

        Takes at most half a second, even if the server is down or frozen.
        """
        now = self._now
        self._shut = True
        if not now.here[0]:
            return
        body = now.body
        body._per_process.leaves()
        if now.gate.reads.active:
            body._topology.pop_all_sessions()  # no server is there to be told of their end
            body._kill_cursors_queue.clear()
        with pymongo.timeout(0.5):
            body.close()


@atexit.register
def _look_before_each_operation() -> None:
    """Make each operation, from the program's end on, check whether the interpreter is finalizing.
    PyMongo's threads stand still then, with locks that an operation would wait for. Before that, no
    check is needed.
    """
    select: Any = MongoClient._select_server

    def look_and_select(self: MongoClient, *args: Any, **kwargs: Any) -> Any:
        if is_finalizing():
            raise too_late(self._where(), FINALIZING)
        return select(self, *args, **kwargs)

    MongoClient._select_server = look_and_select  # type: ignore[method-assign]


def _wait_for_news(topology: Any, seen: Any, pause: float) -> None:
    """Wait until *topology* differs from *seen*, for at most *pause* seconds; make its monitors
    check.
    """
    with topology._lock:
        if topology._description is seen:
            topology._ensure_opened()
            topology._request_check_all()
            topology._condition.wait(pause)
