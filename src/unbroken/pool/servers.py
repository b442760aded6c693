"""The process's record of each server, shared by all its pools there: the outage, the idle limit,
the pools to notify.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any
from weakref import WeakSet

from unbroken.abc import Address, BaseDriver
from unbroken.brain.budget import Budget
from unbroken.brain.hosts import Hosts
from unbroken.brain.idle_limit import IdleLimit
from unbroken.brain.outage import Outage
from unbroken.brain.pooler import Pooler
from unbroken.brain.standing import Standing
from unbroken.brain.toll import Toll
from unbroken.net.ending import Guarded
from unbroken.pool.names import Lookout
from unbroken.roles import Wanted, wanted
from unbroken.settings import Settings

#: Seconds after which a server is asked again what a SELECT may do: a view may have been created
#: meanwhile.
REMEMBERED = 60.0


class Hidden:
    """Whether a SELECT in one database may store something, by its server's last answer
    (``Question.HIDDEN_WRITES``).
    """

    __slots__ = ("answer", "asked_at", "wanted")

    def __init__(self) -> None:
        self.answer: str | None = None  #: why it may; "": it does not; None: unknown
        self.asked_at = -math.inf
        self.wanted = True  #: whether a pool needs to know it, again

    def is_due(self, now: float) -> bool:
        """Whether to ask the server at *now*."""
        return self.wanted and now - self.asked_at >= REMEMBERED

    def asking(self, now: float) -> None:
        """The server is asked at *now*."""
        self.asked_at, self.wanted = now, False


class Server(Guarded):
    """One server's record. ``lock`` guards ``outage``, ``toll``, ``limit``, ``pooler`` and
    ``budget``. It may be taken inside a pool's lock, never the other way round.
    """

    def __init__(self) -> None:
        # reentrant: a finalizer that runs inside may end a connection
        self._guard = threading.RLock()
        self.outage = Outage()
        self.toll = Toll()
        self.limit = IdleLimit()
        self.pooler = Pooler()
        self.hosts = Hosts()
        self.lookout = Lookout()
        self.followed = 0  #: the moves of ``hosts`` that the pools were notified of …
        self.place: Address | None = None  #: … and their destination
        self.standing = Standing()
        self.budget = Budget()
        #: Units of work without a pool that succeeded here, and how many of them were counted.
        self.units = self.units_counted = 0
        #: Connections that were opened before this time are drained.
        self.drained_at = -math.inf
        self._hidden: dict[str | None, Hidden] = {}
        self.pools: WeakSet[Any] = WeakSet()

    def hidden(self, database: str | None) -> Hidden:
        """The record of *database*."""
        return self._hidden.setdefault(database, Hidden())


def key_of(driver: BaseDriver, settings: Settings) -> str | None:
    """A key for the server, or for the cluster and the role, that *driver* connects to. None: only
    the caller's own ``connect=`` knows it.
    """
    target = driver.target
    if (
        target.host is None
        and target.unix_socket is None
        and getattr(driver, "_connect", None) is not None
    ):
        return None
    role = wanted(settings.target)
    # MySQL's port is of no interest to a client that looks for PostgreSQL
    make = "postgresql" if target.backend == "postgresql" else "mysql"
    key = f"{make} {target.server}"
    return key if role is Wanted.ANY else f"{key} {role.value}"


def server_of(driver: BaseDriver, settings: Settings) -> Server:
    """This process's record of the server, or of the cluster, that *driver* connects to. Pools that
    want another role of the same cluster have another record: one of them may be down alone.

    The destination of a caller's own ``connect=`` is unknown. Then nothing is shared, because one
    server's outage would close the pools of all others.
    """
    target, role, key = driver.target, wanted(settings.target), key_of(driver, settings)
    if key is None:
        return Server()
    record = server_at(key)
    with record.lock:
        if len(target.hosts) > 1 and not record.hosts.are_several:
            record.hosts = Hosts(target.hosts, prefers_standby=role is Wanted.PREFER_STANDBY)
    return record


_records: dict[tuple[int, str], Server] = {}


def server_at(address: str) -> Server:
    """This process's record of the server at *address*.

    A forked child starts with its own record, because it must not use its parent's locks. It keeps
    the fact that the server has accepted writes: if it is read-only now, it was demoted.
    """
    key = os.getpid(), address
    record = _records.get(key)
    if record is None:
        record = Server()
        inherited = [each for (_, at), each in list(_records.items()) if at == address]
        record.standing.took_writes = any(each.standing.took_writes for each in inherited)
        record = _records.setdefault(key, record)
    return record
