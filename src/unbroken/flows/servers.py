"""What this process knows of each server, shared by all its pools there: the outage, the idle limit, who to tell."""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

from unbroken.abc import BaseDriver
from unbroken.core.idle_limit import IdleLimit
from unbroken.core.outage import Outage


class Server:
    """One server's record. ``lock`` guards ``outage`` and ``limit``; it may be taken inside a pool's lock, never the
    other way round."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: a finalizer that runs inside may end a connection
        self.outage = Outage()
        self.limit = IdleLimit()
        self.pools: WeakSet[Any] = WeakSet()


def server_of(driver: BaseDriver) -> Server:
    """This process's record of the server that *driver* connects to.

    Where the caller's own ``connect=`` leads is not known: then nothing is shared, else one server's outage would close the
    pools of all others.
    """
    target = driver.target
    if target.host is None and target.unix_socket is None and getattr(driver, "_connect", None) is not None:
        return Server()
    return server_at(target.server)


_records: dict[tuple[int, str], Server] = {}


def server_at(address: str) -> Server:
    """This process's record of the server at *address*. A forked child starts with a blank one: locks do not cross."""
    return _records.setdefault((os.getpid(), address), Server())
