"""A client's numbers in this process, the same ones as for every pool."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from unbroken.brain.stats import Stats
from unbroken.errors import ConfigurationError
from unbroken.integrations.mongo.per_process import Current, PerProcess
from unbroken.integrations.mongo.process_aware import ProcessAware
from unbroken.integrations.mongo.pymongo_internals import waiting_on
from unbroken.messages.integrations import MONGO_CLIENT_NOT_OURS


def stats(client: Any) -> Stats:
    """Return *client*'s numbers in this process (and on this event loop): connections, causes of
    their ends, outages, callers turned away.

    Takes no round trip and never blocks. ``pings`` are the monitors' heartbeats. ``size``, ``idle``
    and ``used`` do not count the monitors' own connections; ``opened`` and ``closed`` do.
    ``acquired``, the operations, is exact with one thread.

    Raises ConfigurationError for anything but a client of ours.
    """
    if not isinstance(client, ProcessAware):
        raise ConfigurationError(
            MONGO_CLIENT_NOT_OURS(
                f"{type(client).__name__} is not an unbroken.mongo.MongoClient or AsyncMongoClient;"
                " only these have stats"
            )
        )
    now = client._present()
    options = client._options.pool_options
    most = options.max_pool_size or sys.maxsize  # 0 and None: no limit
    if now is None:
        where = client._where()
        return Stats(
            where, where, os.getpid(), most, options.min_pool_size, 0, 0, 0, 0, 0, 0, 0, 0.0, 0
        )
    return _counted(now, most, options.min_pool_size)


def _counted(now: Current, most: int, least: int) -> Stats:
    per_process: PerProcess = now.body._per_process
    gate, sockets = per_process.gate, per_process.sockets
    pools = [server.pool for server in list(now.topology._servers.values())] if now.opened else []
    idle, used = sum(len(pool.conns) for pool in pools), sum(pool.active_sockets for pool in pools)
    pending = sum(pool._pending for pool in pools)
    beats = per_process.heartbeats
    at = time.monotonic()
    return Stats(
        name=gate.name,
        server=gate.name,
        pid=per_process.pid,
        max_size=most,
        min_size=least,
        size=idle + used,
        idle=idle,
        used=used - pending,
        opening=pending,
        waiting=sum(waiting_on(pool.size_cond) for pool in pools),
        acquired=now.uses,
        opened=sockets.opened,
        connect_seconds=sockets.connect_seconds,
        connect_failures=sockets.connect_failures,
        closed=dict(sockets.closed),
        turned_away=gate.turned_away,
        shed=per_process.overload.shed,
        outages=gate.outages,
        outage_seconds=gate.outage_seconds,
        away_for=gate.writes.age(at),
        away_because=gate.writes.fault.text if gate.writes.fault else "",
        pings=beats.successes + beats.failures,
    )
