"""The drill's own measurements, independent of the contenders' reports: whether a server accepts,
its sessions, and sockets in CLOSE_WAIT.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

from unbroken_drill.drill.topologies import Site
from unbroken_drill.messages import SERVER_NOT_STARTED
from unbroken_drill.servers import MongoDB, Server, ServerError

_CLOSE_WAIT: Final = "08"  # include/net/tcp_states.h
_PACE: Final = 0.001


class Probe(threading.Thread):
    """Asks *server* in a tight loop, on connections of its own, until it answers. Then
    :attr:`accepted` is the time.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True, name="drill probe")
        self.accepted: float | None = None
        self._server = server
        self._given_up = threading.Event()

    def run(self) -> None:
        """Make one attempt a millisecond: each costs the server next to nothing."""
        while not self._given_up.wait(_PACE):
            with contextlib.suppress(ServerError, OSError):
                self._server.admin("SELECT 1", timeout=1.0)
                self.accepted = time.monotonic()
                return

    def result(self, timeout: float = 5.0) -> float:
        """Return the time of the server's first answer (``time.monotonic()``).

        Raises ServerError if it does not answer within *timeout*.
        """
        self.join(timeout)
        self._given_up.set()
        if self.accepted is None:
            raise ServerError(
                SERVER_NOT_STARTED(
                    f"{self._server!r} was started, but did not answer the drill's probe within"
                    f" {timeout} s"
                )
            )
        return self.accepted


def close_wait(*pids: int, port: int | None = None) -> int | None:
    """Return how many sockets of the processes *pids* are in CLOSE_WAIT: the server hung up, and
    the process has not closed them.

    A socket that several processes share counts once. *port*: count only sockets whose other end is
    that port. None without /proc.
    """
    try:
        mine = set().union(*(_sockets(pid) for pid in pids))
        lines = _connections(pids[0]) if pids else []
        return sum(_inode(line) in mine and _is_stuck(line, port) for line in lines)
    except OSError:
        return None


def _is_stuck(line: str, port: int | None) -> bool:
    _, _, peer, state, *_ = line.split()
    return state == _CLOSE_WAIT and (port is None or int(peer.rpartition(":")[2], 16) == port)


def _connections(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    with contextlib.suppress(OSError):  # without IPv6
        lines += Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:]
    return lines


def _inode(line: str) -> str:
    return line.split()[9]


def _sockets(pid: int) -> set[str]:
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            name = os.readlink(entry.path)
            if name.startswith("socket:["):
                found.add(name[8:-1])
    return found


def journal(server: Server | Site) -> dict[int, int]:
    """Return how often each number is in the journal."""
    return {
        int(n): int(times)
        for n, times in server.admin("SELECT n, count(*) FROM drill_journal GROUP BY n")
    }


def sessions_left(server: Server | Site, timeout: float = 1.0) -> int:
    """Return the sessions that still exist *timeout* seconds after the contender was closed."""
    deadline = time.monotonic() + timeout
    while (left := len(server.sessions())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def version(server: Server | Site) -> str:
    """Return the running server's version, without the words around it. For several servers, their
    roles too.
    """
    if isinstance(server, Site):
        return f"{version(server.writer)}, {server.topology.title}"
    if isinstance(server, MongoDB):
        return str(server.command({"buildInfo": 1})["version"])
    text = server.admin("SELECT version()")[0][0]
    return text.removeprefix("PostgreSQL ").split("-")[0].split()[0]
