"""``fork(2)`` without Python's knowledge, as a C library calls it: none of Python's fork hooks
run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

_fork = ctypes.PyDLL(None).fork
_fork.restype = ctypes.c_int

#: All other threads of a process: their states, and how often each was switched away.
Others = dict[str, tuple[str, str]]


def raw_fork() -> int:
    """Fork, at a moment in which no other thread waits for the interpreter's lock.

    CPython renews that lock in a child only when it forks itself (PyOS_AfterFork_Child). Forked
    while another thread asks for it, a child inherits a condition variable with a waiter that does
    not exist there, or the request to hand over the lock, and hangs in ``drop_gil`` at its next
    switch of threads, whatever it does. A thread that wakes between the look at the others and the
    fork is seen afterwards: such a child has done nothing yet, and is forked again.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rest = wait_for_rest()
        reader, writer = os.pipe()
        pid = int(_fork())
        if pid == 0:
            os.close(writer)
            if not os.read(reader, 1):
                os._exit(1)  # the parent has ended
            os.close(reader)
            return 0
        rested = _others() == rest
        os.close(reader)
        if not rested:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        else:
            os.write(writer, b"!")
        os.close(writer)
        if rested:
            return pid
    raise TimeoutError("the other threads never rest for long enough to fork")


def wait_for_rest() -> Others:
    """Until no other thread of this process runs or waits for the interpreter's lock.

    Gives how they are then.
    """
    deadline = time.monotonic() + 20
    before = None
    while (now := _others()) != before or any(state not in ("S", "D") for state, _ in now.values()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the other threads do not come to rest: {now}")
        before = now
        time.sleep(0.005)  # who waits for the lock gets it now
    return now


def _others() -> Others:
    found = {}
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != threading.get_native_id():
            try:
                with open(f"/proc/self/task/{thread}/status") as file:
                    lines = dict(line.split(":", 1) for line in file)
            except OSError:
                continue  # it has ended
            found[thread] = (
                lines["State"].split()[0],
                lines["voluntary_ctxt_switches"].strip(),
            )
    return found
