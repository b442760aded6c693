"""The parent process of an app: ``python -P -m unbroken_drill.drill.apps.keeper COMMAND…``,
controlled by a pipe.

Its standard input ends when the drill is done with the app, or has ended in any way. Then the
keeper asks the app to end by SIGTERM. After :data:`GRACE` seconds it kills the app and everything
that the app ever started. ``kill`` and a line's end on the pipe do so immediately. The keeper is a
subreaper: on Linux even processes that made themselves daemons stay its descendants. It ends with
the app, and with the app's status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from typing import Final

from unbroken_drill.servers import processes

GRACE: Final = 2.0
_PR_SET_CHILD_SUBREAPER: Final = 36  # include/uapi/linux/prctl.h
_PACE: Final = 0.005


def main() -> None:
    """Run the command, and wait for its end or for the end of the pipe."""
    _adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bell, ring = os.pipe()
    os.set_blocking(ring, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    try:
        app = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{sys.argv[1]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    grace = _watch(app, bell)
    if app.poll() is None and grace:
        app.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            app.wait(grace)
    _end_all()
    os._exit(app.poll() or 0)


def _adopt_orphans() -> None:
    with contextlib.suppress(OSError, AttributeError):  # not Linux: daemons of the app stay behind
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _watch(app: subprocess.Popen[bytes], bell: int) -> float:
    """Wait until the app ends or must end. Returns the time that it has for its end."""
    while True:
        ready, _, _ = select.select([0, bell], [], [])
        if bell in ready:
            os.read(bell, 4096)
            if app.poll() is not None:
                return 0.0
        if 0 in ready:
            return 0.0 if os.read(0, 4096).startswith(b"kill") else GRACE


def _end_all() -> None:
    """Kill all descendants until none is left, and reap them."""
    while left := processes.family(os.getpid())[1:]:
        processes.send(left, signal.SIGKILL)
        _reap()
        time.sleep(_PACE)
    _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
