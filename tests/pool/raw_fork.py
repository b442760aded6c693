"""``fork(2)`` without Python's knowledge, as a C library calls it: none of Python's fork hooks run."""

from __future__ import annotations

import ctypes
import os
import threading
import time

_fork = ctypes.PyDLL(None).fork
_fork.restype = ctypes.c_int


def raw_fork() -> int:
    """Fork, at a moment in which no other thread waits for the interpreter's lock.

    CPython renews that lock in a child only when it forks itself (PyOS_AfterFork_Child). Forked while another thread is
    in the middle of asking for it, a child inherits a condition variable with a waiter that does not exist there, and hangs
    at its own next switch of threads, whatever it does: seen in ``drop_gil``, once in some hundred forks under load.
    """
    wait_for_rest()
    return int(_fork())


def wait_for_rest() -> None:
    """Until no other thread of this process runs or waits for the interpreter's lock."""
    deadline = time.monotonic() + 20
    before = None
    while (now := _others()) != before or any(state not in ("S", "D") for state, _ in now.values()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the other threads do not come to rest: {now}")
        before = now
        time.sleep(0.005)  # who waits for the lock gets it now


def _others() -> dict[str, tuple[str, str]]:
    """All other threads: their state, and how often each was switched away."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != threading.get_native_id():
            try:
                with open(f"/proc/self/task/{thread}/status") as file:
                    lines = dict(line.split(":", 1) for line in file)
            except OSError:
                continue  # it has ended
            found[thread] = (lines["State"].split()[0], lines["voluntary_ctxt_switches"].strip())
    return found
