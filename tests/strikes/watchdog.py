"""Ends what hangs: says where every thread is, then ends the sockets, then wakes the main thread,
then the process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any


class Hang(BaseException):
    """Raised in the main thread when what it does takes too long."""


class Watchdog:
    """Gives each piece of work *seconds*.

    After that ``hung`` is true, and the work is ended by force.
    """

    def __init__(self, seconds: float, ports: set[int]) -> None:
        self.seconds, self._ports = seconds, ports
        self._until = float("inf")
        self._parent = os.getppid()
        self.hung = False
        signal.signal(signal.SIGUSR2, self._wake)
        threading.Thread(target=self._watch, daemon=True).start()

    def begin(self) -> None:
        """A piece of work begins."""
        self.hung = False
        self._until = time.monotonic() + self.seconds

    def end(self) -> None:
        """It is over."""
        self._until = float("inf")

    def _wake(self, *_signal: Any) -> None:
        if self.hung:
            raise Hang

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            if os.getppid() != self._parent:
                os._exit(78)  # nobody listens any more
            if time.monotonic() < self._until:
                continue
            until, self.hung = self._until, True
            print(f"hangs for more than {self.seconds} s:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr)
            for measure in (self._end_sockets, self._interrupt, self._end_sockets, self._interrupt):
                measure()
                end = time.monotonic() + 2.0
                while self._until == until and time.monotonic() < end:
                    time.sleep(0.01)
            if self._until == until:
                os._exit(77)

    def _interrupt(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    def _end_sockets(self) -> None:
        """Shut every socket to the server down: whatever is read from or written to ends."""
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError, ValueError):
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(name))) as copy:
                        if copy.getpeername()[1] in self._ports:
                            copy.shutdown(socket.SHUT_RDWR)
