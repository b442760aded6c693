"""The common part of the clients for threads and for asyncio: they outlive the processes and loops
in which PyMongo's own client lives.

A client *is* PyMongo's (a subclass), and databases, collections, cursors and sessions refer to it.
The parts that must not cross a fork (topology, pools, monitors, locks, server sessions) are kept in
a *body*. That is PyMongo's own client, one for each process (and loop), created at its first use
there. So any object kept in a variable before a fork works after it: a collection asks its client
at each operation, and the client checks the process.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import InvalidOperation

from unbroken.integrations.mongo import client_options
from unbroken.integrations.mongo.errors import not_yours
from unbroken.integrations.mongo.per_process import Current, PerProcess, UnopenedTopology, origin_of
from unbroken.integrations.mongo.prefork import forget_threads, warn_in_master, warn_of_fork
from unbroken.messages.integrations import MONGO_OTHER_PROCESS
from unbroken.messages.processes import NOT_FOR_ANOTHER_PROCESS

if TYPE_CHECKING:
    from pymongo.driver_info import DriverInfo

#: The attributes that live in the body: inherited methods that read them get the body's.
_LIVE = frozenset(
    {
        "_kill_cursors_executor",
        "_kill_cursors_queue",
        "_lock",
        "_loop",
        "_opened",
        "_closed",
        "_encrypter",
    }
)
_NOT_ADOPTED = _LIVE | {"_topology", "_per_process"}

#: Every client, for the end of a child that has inherited some and not used them. It is registered
#: after PyMongo's own, so it runs first.
_clients: weakref.WeakValueDictionary[int, ProcessAware] = weakref.WeakValueDictionary()


@atexit.register
def _forget_inherited() -> None:
    for client in list(_clients.values()):
        now = client._now
        if now.body is not None and not now.here[0]:
            forget_threads(now.body)


class ProcessAware:
    """The common half of both clients. Its methods take no lock that another process may hold."""

    _body: ClassVar[type[Any]]  #: PyMongo's client, belonging to one process
    #: PyMongo's client with its options read, but without connections or threads
    _unopened_client: ClassVar[type[Any]]
    _guard: ClassVar[type[Any]]  #: its additional work in a process that has inherited cursors

    def _begin(
        self,
        arguments: dict[str, Any],
        connect: bool | None,
        outage_wait: float,
        election: float,
        given: set[str],
        limits: client_options.Limits,
    ) -> None:
        """Read and check the arguments; create nothing. *given*: the names of the caller's own
        options.
        """
        self._doors: dict[int, Any] = {}
        self._metadata: list[DriverInfo] = []
        self._shut = False
        self._arguments = arguments
        unopened = self._unopened_client(connect=connect, **arguments)
        self._adopt(unopened)
        self._waits = client_options.waits_of(given, self._options, outage_wait, election)
        self._unopened = UnopenedTopology(unopened._topology_settings, self._settle)
        self._limits = limits
        self._now = Current(None, None, self._unopened)
        _clients[id(self)] = self
        self._by_name_service = "+srv:" in str(arguments["host"])
        if self._options.auto_encryption_opts is None:
            setattr(self, "_encrypter", None)  # noqa: B010 - asked for at each operation: worth a place of its own

    if TYPE_CHECKING:
        _options: Any
        _topology_settings: Any

    def _adopt(self, made: Any) -> None:
        """Copy the values of *made* that do not change any more.

        They are copied one by one: an object whose ``__dict__`` was never read keeps its attributes
        in a row, and is read faster (CPython 3.11).
        """
        for name, value in vars(made).items():
            if name not in _NOT_ADOPTED:
                setattr(self, name, value)

    # -- which process is this?

    def _door(self) -> Any:
        """Return this process's own lock. An inherited one may be held by a thread that does not
        exist here.
        """
        return self._doors.setdefault(os.getpid(), threading.RLock())

    def _settle(self) -> Current:
        """Create PyMongo's client of this process, if there is none."""
        with self._door():
            before = self._now
            if before.here[0]:
                return before
            now = self._now = self._opened_here(None)
        if before.body is not None:
            self._leave(before)
        return now

    def _opened_here(self, loop: Any) -> Current:
        if self._shut:
            raise InvalidOperation(f"Cannot use {type(self).__name__} after close")
        fresh = client_options.fresh_for(self._topology_settings)
        per_process = PerProcess(self._where(), self._waits, fresh, self._limits)
        is_watched = not per_process.quiet and not self._options.load_balanced
        arguments = self._arguments if is_watched else client_options.bounded(self._arguments)
        body = self._body(per_process, arguments)
        per_process.receives(body)
        for info in self._metadata:
            body.append_metadata(info)
        self._topology_settings = body._topology_settings  # the name of this client in log lines
        return Current(body, per_process, body._topology, loop)

    def _leave(self, inherited: Current) -> None:
        """Drop the inherited parts: their sockets are cut off here, none of them is closed or
        locked, and the parent keeps them.
        """
        per_process: PerProcess = inherited.body._per_process
        per_process.sockets.sever()
        forget_threads(inherited.body)
        if inherited.opened and per_process.pid != os.getpid() and not per_process.quiet:
            kind: Any = type(self)
            self.__class__ = _guarding(kind)
            warn_of_fork(per_process.pid)

    def _is_open(self, now: Current, topology: Any) -> Any:
        """Note that *now*'s body has opened its *topology*."""
        now.topology = topology
        if self._by_name_service:
            self._adopt(now.body)  # the name service's options are known only now
        now.opened = True
        if now.quiet:
            warn_in_master()
        return topology

    def _present(self) -> Current | None:
        """Return the part that already exists in this process (and on this loop). Creates
        nothing.
        """
        return self._now if self._now.here[0] else None

    # -- attributes for inherited methods

    def __getattr__(self, name: str) -> Any:
        if name in _LIVE:
            return getattr(self._settle().body, name)
        return super().__getattr__(name)  # type: ignore[misc] # PyMongo's: a database of that name

    @property
    def _topology_id(self) -> Any:
        return self._topology_settings._topology_id

    # -- the gate

    def _pause(
        self,
        now: Current,
        error: Any,
        seen: Any,
        selector: Any,
        address: Any,
        operation: Any,
        came: float,
    ) -> float:
        """Return how long a caller waits for news if its choice among the *seen* servers ended with
        *error*.

        Raises the error for a caller whose wait is over. The monitors check again soon.
        """
        gate = now.gate
        least = gate.waits.least(operation)
        try:
            pause: float = gate.pause(seen, selector, address, came, least)
            if not pause:
                raise gate.own_time_is_up(error, seen, selector, address, came)
        except BaseException as told:
            for server in list(now.topology._servers.values()):
                server.request_check()
            raise told from error
        return pause

    def _where(self) -> str:
        """Return the servers' addresses, for messages."""
        seeds = self._topology_settings.seeds
        return ",".join(sorted(f"{host}:{port}" if port else str(host) for host, port in seeds))

    # -- sessions and cursors belong to the process that began them

    def _refuse(self, session: Any) -> None:
        """Raise if the server knows *session* by another process's (or loop's) number."""
        if session._client is not self:
            return  # PyMongo raises that it is another client's
        origin = origin_of(session._server_session.generation)
        where = (
            f"process {origin}, before process {os.getpid()} was forked from it"
            if origin != os.getpid()
            else "another event loop"
        )
        raise not_yours(
            MONGO_OTHER_PROCESS(
                "this session (or the cursor, transaction or change stream that uses it) was"
                f" started in {where}, and works only there; start a new one here"
            )
        )

    def _close_cursor_soon(self, *args: Any, **kwargs: Any) -> None:
        now = self._now
        if now.here[0]:  # otherwise it is the parent's
            now.body._close_cursor_soon(*args, **kwargs)

    # -- the rest of the public API

    def append_metadata(self, driver_info: DriverInfo) -> None:
        """Do the same as PyMongo (4.14 and newer), for the connections of this process and of those
        that are forked from it.
        """
        super().append_metadata(driver_info)  # type: ignore[misc]
        self._metadata.append(driver_info)
        if self._now.here[0]:
            self._now.body.append_metadata(driver_info)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (MongoClient, AsyncMongoClient)):
            return _identity(self) == _identity(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(_identity(self))

    def __del__(self) -> None:
        """Do nothing: its body itself warns if it was left open."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            NOT_FOR_ANOTHER_PROCESS(
                f"{type(self).__name__} cannot be pickled or copied; pass its URI, and create a"
                " client in each process"
            )
        )


if not hasattr(MongoClient, "append_metadata"):
    del ProcessAware.append_metadata  # PyMongo before 4.14


@functools.cache
def _guarding(kind: type[Any]) -> type[Any]:
    """Return *kind*, in a process that may have inherited cursors from its parent.

    Other processes need not check the owner of each cursor.
    """
    if issubclass(kind, kind._guard):
        return kind
    return type(
        kind.__name__,
        (kind._guard, kind),
        {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__},
    )


def _identity(client: Any) -> tuple[Any, ...]:
    """Return the values by which PyMongo compares two clients."""
    known = client._topology_settings
    return tuple(sorted(known.seeds)), known.replica_set_name, known.fqdn, known.srv_service_name
