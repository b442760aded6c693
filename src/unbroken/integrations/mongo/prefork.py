"""A client that is used before a fork of which Python is not told: in uWSGI's master.

If a thread waits for the interpreter's lock at such a fork, the child waits for that thread for
ever: the worker never runs. So in the master a client keeps no thread and no connection beyond the
operation. The workers inherit nothing that it does not keep.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from unbroken.messages.processes import MONGO_BEFORE_FORK


def is_master() -> bool:
    """Return whether this is uWSGI's master (or an app that it loads before it has workers)."""
    uwsgi = sys.modules.get("uwsgi")  # part of uWSGI's interpreter, and of no other
    try:
        return uwsgi is not None and uwsgi.worker_id() == 0 and uwsgi.mule_id() == 0
    except AttributeError:
        return False  # another module of that name


class WhileMaster:
    """A mark like that of :func:`unbroken.net.fork_guard.fork_mark`, for the time that this process
    is the master.
    """

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _index: int, /) -> int:
        return 1 if os.getpid() == self._pid and is_master() else 0


def rest(body: Any) -> None:
    """End *body*'s threads, and wait for that: half a second at the first operation, nothing at
    those that follow.

    PyMongo needs none of them while it has found a server, and starts them again when it looks for
    another.
    """
    for executor in executors_of(body):
        executor.close()
    for server in list(body._topology._servers.values()):
        server._monitor.close()
    for executor in executors_of(body):
        executor.join(2)
        if not _is_alive(executor):
            # a proxy of a collected object: gevent fails on it when it patches a worker
            executor._thread = None


def _is_alive(executor: Any) -> bool:
    try:
        return executor._thread is not None and bool(executor._thread.is_alive())
    except ReferenceError:
        return False


def executors_of(body: Any) -> list[Any]:
    """Return PyMongo's threads of *body*: its monitors', and those for housekeeping."""
    topology = body._topology
    owners = [
        topology,
        *(server._monitor for server in list(getattr(topology, "_servers", {}).values())),
    ]
    owners += [getattr(owner, "_rtt_monitor", None) for owner in owners] + [
        getattr(topology, "_srv_monitor", None),
        body,
    ]
    names = ("_executor", "_events_executor", "_kill_cursors_executor")
    found = [getattr(owner, name, None) for owner in owners for name in names]
    return [executor for executor in found if executor is not None]


def forget_threads(body: Any) -> None:
    """In a forked child: keep PyMongo from waiting, at exit, a second for each thread of *body*
    that exists in the parent only.

    Python treats such a thread as alive if it was not told of the fork.
    """
    for executor in executors_of(body):
        executor._thread = None


def warn_in_master() -> None:
    """Warn once, in uWSGI's master, about the effect of a call before the fork, with the remedy."""
    warnings.warn(
        MONGO_BEFORE_FORK(
            "MongoDB was called in uWSGI's master, before the fork of its workers. The call works,"
            " but each call here opens its own connection and uses no thread. Make no call at"
            " import (creating the client is fine), or have uWSGI load the app in each worker"
            " (lazy-apps = true)"
        ),
        RuntimeWarning,
        stacklevel=5,
    )


def warn_of_fork(parent: int) -> None:
    """Warn once, in a forked child, about using a client before a fork, with the remedy."""
    warnings.warn(
        MONGO_BEFORE_FORK(
            f"MongoClient opened before fork: process {parent} used it before process"
            f" {os.getpid()} was forked from it. The client works in both processes, each with its"
            " own connections, but threads that run during a fork are a risk. Make no call to"
            " MongoDB before the fork (creating the client is fine), or have uWSGI load the app in"
            " each worker (lazy-apps = true)"
        ),
        RuntimeWarning,
        stacklevel=5,
    )
