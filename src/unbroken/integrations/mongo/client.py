"""MongoClient: PyMongo's by name, arguments and behaviour; made anew in each process, with every wait bounded.

It *is* a ``pymongo.MongoClient`` (a subclass), and the one that databases, collections, cursors and sessions refer to. What must
not cross a fork (topology, pools, monitors, locks, server sessions) is kept in a :class:`~unbroken.integrations.mongo.body.Body`, one
for each process, made at its first use. So whatever was kept in a variable before a fork is right after it: a collection asks
its client at each operation, and the client asks which process this is.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NoReturn

import pymongo
from pymongo.errors import InvalidOperation, ServerSelectionTimeoutError

from unbroken.integrations.mongo import plan, seams
from unbroken.integrations.mongo.body import Body, Shared, Sketch, Unborn, warn_of_fork
from unbroken.integrations.mongo.errors import not_yours

#: What lives in the body: inherited methods that ask for it are given the body's.
_LIVE = frozenset({"_kill_cursors_executor", "_kill_cursors_queue", "_lock", "_loop", "_opened", "_closed", "_encrypter"})

seams.check(pymongo.MongoClient)


class MongoClient(pymongo.MongoClient[Any]):
    """PyMongo's MongoClient that survives forks, restarts and failovers. Takes what PyMongo's takes, and:

    *outage_wait*: for how many seconds of an outage callers still wait for a server; after that they get an
    :class:`~unbroken.errors.OutageError` at once, until a heartbeat finds a server. 1.0; ``math.inf``: they always wait.

    Making one reads and checks the arguments and makes nothing: no thread, no socket. (``connect=True``, said explicitly, begins to
    connect at once.) Unless the URI or the arguments say otherwise, ``timeoutMS`` is 2000, ``heartbeatFrequencyMS`` 1000 and
    ``connectTimeoutMS`` 1000. Raises PyMongo's own errors, ConfigurationError for a bad *outage_wait*, and while no server can
    serve an OutageError that is PyMongo's ServerSelectionTimeoutError too.
    """

    _body: Body | None
    _shut: bool
    _doors: dict[int, Any]
    _metadata: list[Any]
    _outage_wait: float

    def __init__(
        self,
        host: str | Sequence[str] | None = None,
        port: int | None = None,
        document_class: type[Any] | None = None,
        tz_aware: bool | None = None,
        connect: bool | None = None,
        type_registry: Any = None,
        *,
        outage_wait: float = plan.OUTAGE_WAIT,
        **kwargs: Any,
    ) -> None:
        vars(self).update(_body=None, _shut=False, _doors={}, _metadata=[], _outage_wait=plan.checked_wait(outage_wait))
        names = ("host", "port", "document_class", "tz_aware", "type_registry")
        given = dict(zip(names, (host, port, document_class, tz_aware, type_registry), strict=True))
        self._arguments: dict[str, Any] = {**given, **plan.with_defaults(host, kwargs)}
        sketch = Sketch(connect=False, **self._arguments)
        self._adopt(sketch)
        self._unborn = Unborn(sketch._topology_settings, self._here)
        if self._options.auto_encryption_opts is None:
            self._encrypter = None  # asked for at each operation: worth a place of its own
        if connect:
            self._get_topology()

    def _adopt(self, made: Any) -> None:
        """Take over what *made* knows and what does not change any more."""
        mine = {name: value for name, value in vars(made).items() if name not in _LIVE and name not in ("_topology", "_shared")}
        self.__dict__.update(mine)

    # -- which process is this?

    def _here(self) -> Body:
        """PyMongo's client of this process: made if there is none."""
        body = self._body
        if body is not None and body._shared.mark[0]:
            return body
        return self._settle()

    def _settle(self) -> Body:
        # The lock is this process's own: one that was inherited may be held by a thread that does not exist here.
        with self._doors.setdefault(os.getpid(), threading.RLock()):
            inherited = self._body
            if inherited is not None and inherited._shared.mark[0]:
                return inherited
            if self._shut:
                raise InvalidOperation("Cannot use MongoClient after close")
            self._body = body = self._born()
        if inherited is not None:
            self._leave(inherited)
        return body

    def _born(self) -> Body:
        shared = Shared(self._outage_wait)
        body = Body(shared, self._arguments)
        shared.heartbeats.body = weakref.ref(body)
        for info in self._metadata:
            body.append_metadata(info)
        self._topology_settings = body._topology_settings  # what log lines name this client by
        return body

    def _leave(self, inherited: Body) -> None:
        """Drop what was inherited: its sockets are cut off here, nothing of it is closed or locked, and the parent keeps it."""
        inherited._shared.sockets.sever()
        if inherited._opened:
            warn_of_fork(inherited._shared.pid, stacklevel=5)

    def _alive(self) -> Body | None:
        """PyMongo's client of this process, if there is one already. Takes no lock and makes nothing: for finalizers."""
        body: Body | None = self.__dict__.get("_body")
        return body if body is not None and body._shared.mark[0] else None

    # -- what inherited methods ask for

    @property
    def _topology(self) -> Any:
        body = self._body
        return body._topology if body is not None and body._shared.mark[0] else self._unborn

    @_topology.setter
    def _topology(self, topology: Any) -> None:
        self._here()._topology = topology

    def __getattr__(self, name: str) -> Any:
        if name in _LIVE:
            return getattr(self._here(), name)
        return super().__getattr__(name)

    @property
    def _topology_id(self) -> Any:
        return self._topology_settings._topology_id

    def _get_topology(self) -> Any:
        body = self._here()
        if body._opened:
            return body._topology
        topology = body._get_topology()
        if body._options is not self._options and str(self._arguments["host"]).find("+srv:") >= 0:
            self._adopt(body)  # only now is it known what the name service says of options
        return topology

    def _select_server(self, server_selector: Any, session: Any, operation: Any, address: Any = None, *args: Any, **kwargs: Any) -> Any:
        body = self._here()
        if session is not None:
            self._claim(session, body)
        gate = body._shared.gate
        if body._opened:
            description = body._topology.description
            if description is not gate.good and operation != "commitTransaction":
                self._pass(body, server_selector, address)
        try:
            return super()._select_server(server_selector, session, operation, address, *args, **kwargs)
        except ServerSelectionTimeoutError as error:
            told = gate.translated(error, body._topology.description, server_selector, self._where())
            if told is error:
                raise
            raise told from error

    def _pass(self, body: Body, server_selector: Any, address: Any) -> None:
        """Go through the gate, or OutageError; who is turned away has the monitors look again soon."""
        try:
            body._shared.gate.admit(body._topology.description, server_selector, address, self._where())
        except BaseException:
            for server in list(body._topology._servers.values()):
                server.request_check()
            raise

    def _where(self) -> str:
        """The servers' addresses, for messages."""
        seeds = self._topology_settings.seeds
        return ",".join(sorted(f"{host}:{port}" if port else str(host) for host, port in seeds))

    # -- sessions and cursors belong to the process that made them

    def _start_session(self, implicit: bool, **kwargs: Any) -> Any:
        session: Any = super()._start_session(implicit, **kwargs)
        session._home = self._alive() if implicit else self._here()
        return session

    def _claim(self, session: Any, body: Body) -> None:
        home = getattr(session, "_home", None)
        if home is None:
            session._home = body
        elif home is not body:
            raise not_yours(
                f"this session (or the cursor, transaction or change stream that uses it) was started in process {home._shared.pid}, "
                f"before process {os.getpid()} was forked from it; it is the parent's: start another here"
            )

    def _is_foreign(self, session: Any) -> bool:
        home = getattr(session, "_home", None)
        return home is not None and not home._shared.mark[0]

    def _cleanup_cursor_no_lock(self, cursor_id: Any, address: Any, conn_mgr: Any, session: Any, *args: Any) -> None:
        if not self._is_foreign(session):
            super()._cleanup_cursor_no_lock(cursor_id, address, conn_mgr, session, *args)

    def _cleanup_cursor_lock(self, cursor_id: Any, address: Any, conn_mgr: Any, session: Any, *args: Any) -> None:
        if not self._is_foreign(session):
            super()._cleanup_cursor_lock(cursor_id, address, conn_mgr, session, *args)

    def _close_cursor_soon(self, *args: Any, **kwargs: Any) -> None:
        body = self._alive()
        if body is not None:  # else it is the parent's
            body._close_cursor_soon(*args, **kwargs)

    # -- the rest of the public face

    def append_metadata(self, driver_info: Any) -> None:
        """As PyMongo's (4.14 and newer): for the connections of this process and of those that are forked from it."""
        super().append_metadata(driver_info)
        self._metadata.append(driver_info)
        body = self._alive()
        if body is not None:
            body.append_metadata(driver_info)

    def close(self) -> None:
        """Close what this process has open. Takes at most half a second, also with a server that is away or frozen."""
        body = self._alive()
        self._shut = True
        if body is None:
            return
        if not body.topology_description.known_servers:
            body._topology.pop_all_sessions()  # nobody there who could be told of their end
            body._kill_cursors_queue.clear()
        with pymongo.timeout(0.5):
            body.close()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, pymongo.MongoClient):
            return _identity_of(self) == _identity_of(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(_identity_of(self))

    def __del__(self) -> None:
        """Its body says for itself when it was left open."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("a MongoClient cannot be pickled or copied: each process makes its own; pass its URI instead")


def _identity_of(client: Any) -> tuple[Any, ...]:
    """What makes two clients equal to PyMongo."""
    known = client._topology_settings
    return tuple(sorted(known.seeds)), known.replica_set_name, known.fqdn, known.srv_service_name
