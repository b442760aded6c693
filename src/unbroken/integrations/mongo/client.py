"""MongoClient: PyMongo's by name, arguments and behaviour; made anew in each process, with every
wait bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pymongo
from pymongo.errors import ServerSelectionTimeoutError
from pymongo.server_selectors import writable_server_selector
from pymongo.synchronous.pool import Pool

from unbroken.integrations.mongo import client_options, pymongo_internals
from unbroken.integrations.mongo.body import OneProcessMixin, UnopenedMixin
from unbroken.integrations.mongo.per_process import PerProcess, is_inherited
from unbroken.integrations.mongo.prefork import is_master, rest
from unbroken.integrations.mongo.process_aware import ProcessAware
from unbroken.integrations.mongo.sockets import recording
from unbroken.integrations.mongo.units import following, report
from unbroken.ledger.scope import current_token
from unbroken.net.signals import unsignalled

_Plain = pymongo.MongoClient
pymongo_internals.check(_Plain)
# called at each operation: so it is quicker than by super()
_plain_select_server = _Plain._select_server


class ProcessClient(OneProcessMixin, _Plain[Any]):
    """PyMongo's client, belonging to one process."""

    def __init__(self, per_process: PerProcess, arguments: dict[str, Any]) -> None:
        super().__init__(
            per_process,
            arguments,
            recording(
                arguments.get("_pool_class") or Pool,
                per_process.sockets,
                keep=not per_process.quiet,
            ),
        )


ProcessClient.__name__ = "MongoClient"  # what its warnings and messages call it


class UnopenedClient(UnopenedMixin, _Plain[Any]):
    """PyMongo's client as far as it can be made without making anything."""


class Guard:
    """A cursor that was inherited is not ended here: it is the parent's, and the server knows it by
    the same number.
    """

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
    """PyMongo's MongoClient that survives forks, restarts and failovers. Takes what PyMongo's
    takes, and:

    *outage_wait*: for how many seconds of an outage callers still wait for a server; after that
    they get an :class:`~unbroken.errors.OutageError` at once, until a heartbeat finds a server.
    1.0; ``math.inf``: they always wait.

    Making one reads and checks the arguments and makes nothing: no thread, no socket.
    (``connect=True``, said explicitly, begins to connect at once.) Unless the URI or the arguments
    say otherwise, ``timeoutMS`` is 2000, ``heartbeatFrequencyMS`` 1000 and ``connectTimeoutMS``
    1000. Raises PyMongo's own errors, ConfigurationError for a bad *outage_wait*, and while no
    server can serve an OutageError that is PyMongo's ServerSelectionTimeoutError too.
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
        **kwargs: Any,
    ) -> None:
        # which a subclass may have set, or an app on this one
        host = self.HOST if host is None else host
        port = self.PORT if port is None else port
        given = {
            "host": host,
            "port": port,
            "document_class": document_class,
            "tz_aware": tz_aware,
            "type_registry": type_registry,
        }
        self._begin({**given, **client_options.with_defaults(host, kwargs)}, connect, outage_wait)
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
        gate = now.gate
        if (
            now.opened
            and now.topology._description is not gate.good
            and operation != "commitTransaction"
        ):
            self._pass(now, server_selector, address)
        try:
            server = _plain_select_server(
                self,
                server_selector,
                session,
                operation,
                address,
                deprioritized_servers,
                operation_id,
            )
        except ServerSelectionTimeoutError as error:
            told = self._told(now, error, server_selector)
            if told is error:
                raise
            raise told from error
        if gate.good is None:  # an outage that has ended in between has ended, whatever comes next
            gate.look(now.topology.description)
        if now.quiet:
            rest(now.body)
        if current_token() is not None:
            report(operation)
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
        if current_token() is None:
            return super()._retryable_write(
                retryable, func, session, operation, bulk, *more, **named
            )
        with following(operation, session) as write:
            if write is None:
                return super()._retryable_write(
                    retryable, func, session, operation, bulk, *more, **named
                )

            def send(*arguments: Any) -> Any:
                write.sent()
                return func(*arguments)

            try:
                result = super()._retryable_write(
                    retryable, send, session, operation, bulk, *more, **named
                )
            except Exception as error:
                write.failed(error, is_single=retryable and bulk is None)
                raise
            write.returned(result, is_acknowledged=retryable or bulk is not None)
            return result

    def _server_property(self, attr_name: str) -> Any:
        """``address``, ``is_primary``, ``is_mongos``: PyMongo lets these wait for 30 s, whatever
        timeoutMS is.

        A server that was lost just after it had been chosen says nothing: PyMongo would say that it
        is no primary.
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
        """Close what this process has open.

        Takes at most half a second, also with a server that is away or frozen.
        """
        now = self._now
        self._shut = True
        if not now.here[0]:
            return
        body = now.body
        body._per_process.leaves()
        if now.gate.reads.active:
            body._topology.pop_all_sessions()  # nobody is there who could be told of their end
            body._kill_cursors_queue.clear()
        with pymongo.timeout(0.5):
            body.close()
