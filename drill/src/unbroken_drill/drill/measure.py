"""What the drill measures by itself, whatever the contenders say: who accepts, who is connected,
what is stuck.
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
    """Asks *server* in a tight loop, on connections of its own, until it answers; then
    :attr:`accepted` is the time.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True, name="drill probe")
        self.accepted: float | None = None
        self._server = server
        self._given_up = threading.Event()

    def run(self) -> None:
        """One attempt a millisecond: each costs the server next to nothing."""
        while not self._given_up.wait(_PACE):
            with contextlib.suppress(ServerError, OSError):
                self._server.admin("SELECT 1", timeout=1.0)
                self.accepted = time.monotonic()
                return

    def result(self, timeout: float = 5.0) -> float:
        """When the server first answered (``time.monotonic()``).

        Raises ServerError when it does not within *timeout*.
        """
        self.join(timeout)
        self._given_up.set()
        if self.accepted is None:
            raise ServerError(
                SERVER_NOT_STARTED(
                    f"{self._server!r} was started and does not answer the drill's probe within"
                    f" {timeout} s"
                )
            )
        return self.accepted


def close_wait(*pids: int, port: int | None = None) -> int | None:
    """How many sockets of the processes *pids* are in CLOSE_WAIT: the server hung up and nobody
    noticed.

    A socket that several of them share counts once; *port*: only those whose other end is that
    port. None without /proc.
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
    with contextlib.suppress(OSError):  # no IPv6 here
        lines += Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:]
    return lines


def _inode(line: str) -> str:
    return line.split()[9]


def _sockets(pid: int) -> set[str]:
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed while we look
            name = os.readlink(entry.path)
            if name.startswith("socket:["):
                found.add(name[8:-1])
    return found


def journal(server: Server | Site) -> dict[int, int]:
    """How often each number stands in the journal."""
    return {
        int(n): int(times)
        for n, times in server.admin("SELECT n, count(*) FROM drill_journal GROUP BY n")
    }


def sessions_left(server: Server | Site, timeout: float = 1.0) -> int:
    """Sessions that are still there *timeout* seconds after the contender was closed."""
    deadline = time.monotonic() + timeout
    while (left := len(server.sessions())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def version(server: Server | Site) -> str:
    """The running server's version, without the words around it; of several what they are, too."""
    if isinstance(server, Site):
        return f"{version(server.writer)}, {server.topology.title}"
    if isinstance(server, MongoDB):
        return str(server.command({"buildInfo": 1})["version"])
    text = server.admin("SELECT version()")[0][0]
    return text.removeprefix("PostgreSQL ").split("-")[0].split()[0]
