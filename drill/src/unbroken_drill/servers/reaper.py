"""Servers end with this process, even if it is killed: a small process waits for its death and ends
its servers.

PR_SET_PDEATHSIG would not work: it fires when the *thread* that started the server ends, and such
threads do end. The reaper reads a pipe whose only writer is this process. End of file means that
this process has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

# Lines "folder TAB pid TAB started TAB signal": the process that serves that folder now (pid 0:
# none; empty: the folder is gone too). After the parent's death the reaper continues each process
# (it may be frozen) and sends it its polite signal. Two seconds later it sends SIGKILL to it and
# its descendants, and removes the folder. `started` guards against a pid that was used again.
_PROGRAM: Final = r"""
import os, select, shutil, signal, sys, time
parent, jobs, text = int(sys.argv[1]), {}, b""
def stat(pid):
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as f:
            return f.read().rpartition(")")[2].split()
    except OSError: return []
def started(pid):
    fields = stat(pid)
    if fields and fields[0] != "Z": return fields[19]
    if os.path.isdir("/proc/self"): return ""
    return "?" if alive(pid) else ""
def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    except PermissionError: return True
    return True
def family(pid):
    found = [pid]
    if os.path.isdir("/proc/self"):
        pids = [int(n) for n in os.listdir("/proc") if n.isdigit()]
        parents = {n: int((stat(n) or ["", 0])[1]) for n in pids}
        for member in found: found += [p for p, q in parents.items() if q == member]
    return found
def send(pids, number):
    for pid in pids:
        try: os.kill(pid, number)
        except OSError: pass
while os.getppid() == parent:
    if not select.select([0], [], [], 1.0)[0]: continue
    more = os.read(0, 65536)
    if not more: break
    *lines, text = (text + more).split(b"\n")
    for line in lines:
        folder, pid, since, number = line.decode().split("\t")
        if pid: jobs[folder] = (int(pid), since, int(number))
        else: jobs.pop(folder, None)
known = [job for job in jobs.values() if job[0]]
mine = {pid: (since, number) for pid, since, number in known if started(pid) == since}
for pid, (since, number) in mine.items():
    send(family(pid), signal.SIGCONT)
    send([pid], number)
deadline = time.monotonic() + 2
while time.monotonic() < deadline:
    if not any(started(pid) == job[0] for pid, job in mine.items()): break
    time.sleep(0.01)
for pid, job in mine.items():
    if started(pid) == job[0]: send(family(pid), signal.SIGKILL)
for folder in jobs:
    for attempt in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder): break
        time.sleep(0.05)
"""


def started(pid: int) -> str:
    """Return when *pid* was started, in the kernel's ticks; ``?`` if the system hides it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return "?"


class _Reaper:
    """The reaper of this process. It starts with the first server, gets a line for each, and no
    fork inherits it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: dict[Path, str] = {}

    def watch(self, folder: Path, pid: int = 0, number: int = 0) -> None:
        """When this process has ended: end *pid* (if any) with signal *number*, and remove
        *folder*.
        """
        self._tell(folder, f"{folder}\t{pid}\t{started(pid)}\t{number}\n")

    def forget(self, folder: Path) -> None:
        """Note that *folder* and its server are gone."""
        self._tell(folder, None)

    def _tell(self, folder: Path, line: str | None) -> None:
        with self._lock:
            if line is None:
                self._jobs.pop(folder, None)
            else:
                self._jobs[folder] = line
            if self._process is None or self._process.poll() is not None:
                # the first line, or the reaper was killed
                self._process = self._start()
                self._write("".join(self._jobs.values()))
            else:
                self._write(line or f"{folder}\t\t\t\n")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # neither a Ctrl-C nor a kill of this process's group ends it
        )

    def _write(self, text: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                # it was killed just now: the next line starts another
                os.write(self._process.stdin.fileno(), text.encode())

    def dismiss(self) -> None:
        """Close the pipe and wait for the reaper's end (immediately if no server is left)."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)

    def after_fork_in_child(self) -> None:
        """Close a child's copy of the pipe, which would hide this process's death. The child has no
        server of its own yet.
        """
        process, self._process = self._process, None
        self._lock, self._jobs = threading.Lock(), {}
        if process is not None and process.stdin is not None:
            process.stdin.close()
            process.returncode = 0  # not this process's child: no wait, no warning


reaper = _Reaper()
os.register_at_fork(after_in_child=reaper.after_fork_in_child)
atexit.register(reaper.dismiss)
