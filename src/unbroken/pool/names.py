"""Host names that move: look up the name of a server every few seconds, and close connections to an
address that it has left.

There is one lookout per server and process. It never runs on a caller's thread or on an event loop.
A lookup that hangs blocks one thread, and no other begins meanwhile.
"""

from __future__ import annotations

import re
import socket
import threading
import weakref
from functools import partial
from random import uniform
from time import monotonic
from typing import Any

from unbroken.abc import Cause, Target
from unbroken.brain.names import Name
from unbroken.logs import Part
from unbroken.messages.server import NAME_MOVED
from unbroken.net.borrow import borrowed
from unbroken.net.forks import Connecting
from unbroken.net.signals import start_thread
from unbroken.net.watcher import ThreadWatcher
from unbroken.pool.registry import every
from unbroken.pool.wording import counted

log = Part("cluster")

#: Seconds between two lookups, from and to.
EVERY = (2.0, 3.0)
#: Seconds that the new address has to accept a connection before the old one is left.
ACCEPTS_WITHIN = 1.0

_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_IPV4 = re.compile(r"[\d.]+")


def names_of(target: Target) -> tuple[str, ...]:
    """The hosts of *target* that need a name service: no addresses, no sockets, not this machine's
    own name.
    """
    if target.backend not in _PORTS:
        return ()
    return tuple(
        dict.fromkeys(
            host
            for host, _ in target.hosts
            if not (
                host.startswith("/")
                or ":" in host
                or _IPV4.fullmatch(host)
                or host.rstrip(".").rpartition(".")[2].lower() == "localhost"
            )
        )
    )


def peer_of(fd: int) -> str | None:
    """The remote address of the socket *fd*. None if there is none."""
    try:
        with borrowed(fd) as sock:
            name = sock.getpeername()
    except OSError:
        return None
    return _plain(name[0]) if isinstance(name, tuple) else None


def _plain(address: str) -> str:
    """*address* in comparable form: without its zone, and a mapped IPv4 address as IPv4."""
    return address.partition("%")[0].removeprefix("::ffff:")


class Lookout:
    """Looks up the names of one server's hosts for as long as a pool has connections there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_at_work = False  #: a lookup is due or in progress
        self._names: dict[str, Name] = {}
        self._server: weakref.ref[Any] | None = None

    def begin(self, server: Any) -> None:
        """A pool of *server* has a new connection to one of its names."""
        if self._is_at_work:
            return
        with self._lock:
            if self._is_at_work:
                return
            self._is_at_work = True
            self._server = weakref.ref(server)
        self._look_at(monotonic())

    def _look_at(self, when: float) -> None:
        ThreadWatcher.get().at(when, self._send)

    def _send(self) -> None:
        """On the watcher: start a lookup, if a pool needs it."""
        with self._lock:
            pools = self._pools()
            if not pools:
                self._is_at_work = False
                return
        try:
            start_thread(self._look, pools, name="unbroken-names")
        except RuntimeError:  # no thread available now
            self._look_at(monotonic() + uniform(*EVERY))

    def _pools(self) -> list[Any]:
        server = None if self._server is None else self._server()
        pools = [] if server is None else every(server.pools)
        # a connection that is being opened counts: it may be the pool's only one
        return [each for each in pools if each.names and each.kernel.size and each.here[0]]

    def _look(self, pools: list[Any]) -> None:
        """The lookup, on its own thread."""
        try:
            for host in {host: None for pool in pools for host in pool.names}:
                answers = _addresses(host)
                if answers:
                    self._names.setdefault(host, Name()).look(monotonic(), answers)
            for pool in pools:
                if self._leads_elsewhere(pool):
                    pool.runtime.call(partial(retire_moved, pool))
        finally:
            del pools
            self._look_at(monotonic() + uniform(*EVERY))

    def _leads_elsewhere(self, pool: Any) -> bool:
        """Whether connections of *pool* must be replaced, and can be."""
        left = {_host_of(pool, entry) for entry in self.moved(pool)}
        return any(self._is_served(host, port) for host, port in left)

    def _is_served(self, host: str, port: int) -> bool:
        """Whether a host accepts connections at the current addresses of *host*."""
        for address in sorted(self._names[host].answers):
            try:
                socket.create_connection((address, port), ACCEPTS_WITHIN).close()
            except OSError:
                continue
            return True
        return False

    def moved(self, pool: Any) -> list[Any]:
        """The entries of *pool* whose address their name has left, except those that end anyway."""
        now = monotonic()
        found = []
        for entry in list(pool.kernel.entries.values()):
            if entry.peer is None or entry.cause is not None:
                continue
            name = self._names.get(_host_of(pool, entry)[0])
            if name is not None and name.has_left(entry.peer, now):
                found.append(entry)
        return found


def _host_of(pool: Any, entry: Any) -> tuple[str, int]:
    target = pool.driver.target
    host, port = entry.address or (target.host, target.port)
    return host, port or _PORTS[target.backend]


def _addresses(host: str) -> set[str]:
    """The addresses of *host*. Empty if the lookup fails."""
    try:
        with Connecting():  # a fork meanwhile would leave its child with the name service's locks
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {_plain(str(each[4][0])) for each in found}


def retire_moved(state: Any) -> None:
    """Close idle connections to an address that its name has left, and those in use when they are
    returned.
    """
    moved = state.server.lookout.moved(state)
    with state.lock:
        for entry in moved:
            entry.condemn(Cause.MOVED)
        stale = state.kernel.take_stale()
    if moved:
        host, peer = _host_of(state, moved[0])[0], moved[0].peer
        connections = counted(len(moved), "connection")
        log.warning(
            "name moved",
            NAME_MOVED(
                f"{state.name}: {host} no longer resolves to {peer}; the pool replaces"
                f" {connections}"
            ),
            pool=state.name,
            server=host,
        )
        state.emit("moved", {"pool": state.name, "host": host})
    for entry in stale:
        state.close_entry(entry)
    state.ensure_connecting()
