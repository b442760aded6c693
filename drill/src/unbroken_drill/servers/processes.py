"""Server processes: started without privileges, signalled with all their children, and ended even
if this process is killed.

Linux reads ``/proc``; other systems use ``ps``. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from unbroken_drill.messages import FOLDER, SERVER_LATE, SERVER_NOT_HERE, SERVER_NOT_STARTED
from unbroken_drill.servers.errors import ServerError, ServerUnavailable

#: Users that exist on most systems and own nothing of value.
_UNPRIVILEGED = ("nobody", "daemon")


@cache
def server_user() -> pwd.struct_passwd | None:
    """Return the user of servers when this process is root (servers refuse to be root); None: run
    as the current user.
    """
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerUnavailable(
        FOLDER(
            "servers cannot run as root, and this machine has no user nobody; run as another user"
        )
    )


def identity() -> dict[str, Any]:
    """Return arguments for :class:`subprocess.Popen` that drop root's privileges; empty if there
    are none to drop.
    """
    user = server_user()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Return the environment for a server: without variables that would change its language or its
    settings.
    """
    kept = {
        name: os.environ[name] for name in ("PATH", "TZ", "LD_LIBRARY_PATH") if name in os.environ
    }
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def spawn(command: Sequence[str | Path], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a server: unprivileged, in a session of its own (so Ctrl-C does not reach it), its
    output appended to *log*.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(),
            start_new_session=True,
            **identity(),
        )


def run(command: Sequence[str | Path], cwd: Path, timeout: float = 120.0) -> str:
    """Run a tool of the server's, unprivileged, and return its output. Raises ServerUnavailable if
    it fails.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(),
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
            **identity(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerUnavailable(SERVER_NOT_HERE(f"{command[0]} does not run: {error}")) from error
    if done.returncode != 0:
        said = " / ".join(done.stdout.strip().splitlines()[-3:])
        raise ServerUnavailable(
            SERVER_NOT_STARTED(f"{command[0]} failed with status {done.returncode}: {said}")
        )
    return str(done.stdout)


def can_run(program: Path, cwd: Path) -> bool:
    """Return whether the server's user can run *program* in its place."""
    try:
        subprocess.run(
            [program, "--version"],
            capture_output=True,
            cwd=cwd,
            env=environment(),
            check=True,
            **identity(),
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _table() -> dict[int, tuple[int, str]]:
    """Return every process: its parent and its state's letter."""
    if sys.platform != "linux":
        return _table_of_ps()
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # a process can end meanwhile
            with contextlib.suppress(OSError, ValueError):
                # the name, in parentheses, can contain any character, so the fields are counted
                # from its end
                state, parent = (
                    Path(entry.path, "stat")
                    .read_text(errors="replace")
                    .rpartition(")")[2]
                    .split()[:2]
                )
                found[int(entry.name)] = (int(parent), state)
    return found


def _table_of_ps() -> dict[int, tuple[int, str]]:
    text = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in text.splitlines())
    return {int(row[0]): (int(row[1]), row[2][0]) for row in rows if len(row) >= 3}


def family(pid: int) -> list[int]:
    """Return *pid* and all its living descendants (without zombies)."""
    return list(_family(pid, _table()))


def _family(pid: int, table: dict[int, tuple[int, str]]) -> dict[int, str]:
    """Return the living family of *pid* with their states, elders first.

    PostgreSQL's backends lead sessions of their own, so neither a process group nor a session
    contains them. Only the parent's number does.
    """
    children: dict[int, list[int]] = {}
    for child, (parent, state) in table.items():
        if state not in "ZX":
            children.setdefault(parent, []).append(child)
    members = [pid] if table.get(pid, (0, "X"))[1] not in "ZX" else []
    for member in members:
        members.extend(children.get(member, ()))
    return {member: table[member][1] for member in members}


def send(pids: Iterable[int], number: int) -> None:
    """Signal each of *pids* that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(pid: int, timeout: float = 5.0) -> list[int]:
    """Stop *pid* and all its descendants, wait until they stand still, and return their ids."""
    deadline = time.monotonic() + timeout
    while True:
        members = _family(pid, _table())
        moving = [member for member, state in members.items() if state not in "Tt"]
        if not moving:  # a stopped parent makes no more children, so the list is complete
            return list(members)
        if time.monotonic() > deadline:
            raise ServerError(SERVER_LATE(f"processes {moving} did not stop within {timeout} s"))
        send(moving, signal.SIGSTOP)
        time.sleep(0.0005)


def thaw(pid: int) -> None:
    """Let *pid* and all its descendants continue."""
    send(reversed(family(pid)), signal.SIGCONT)


def kill(process: subprocess.Popen[bytes], timeout: float = 10.0) -> None:
    """SIGKILL *process* and all its descendants, and wait until every one of them is gone."""
    if process.poll() is not None:
        return
    members = freeze(process.pid)  # so that none of them sees another one die, nor forks
    send(members, signal.SIGKILL)
    process.wait(timeout)
    deadline = time.monotonic() + timeout
    while left := [
        pid for pid, (_, state) in _table().items() if pid in members and state not in "ZX"
    ]:
        if time.monotonic() > deadline:
            raise ServerError(SERVER_LATE(f"processes {left} did not end within {timeout} s"))
        time.sleep(0.0005)
