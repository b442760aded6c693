"""The process of a small app: ``python -m unbroken_drill.drill.worker.main``, controlled by the
drill over two pipes.

Commands come as JSON lines on standard input. Each gets one answer on the descriptor that was
standard output at the start: ``{"do": "setup", …}`` is answered by ``{"ok": …}``, or by
``{"failed": "one line"}``. When standard input ends, the process ends immediately. So a drill that
was interrupted leaves nothing running.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

from unbroken_drill.drill.contenders import find
from unbroken_drill.drill.contenders.base import Settings
from unbroken_drill.drill.results import one_line
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker import forking
from unbroken_drill.drill.worker.load import WATCHDOG, Traffic


class Worker:
    """Carries out the drill's commands; each public method but :meth:`obey` is one."""

    def __init__(self) -> None:
        self._traffic: Traffic | None = None
        self._kept: list[Any] = []
        self._hung = 0

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Run one command; an exception becomes an answer."""
        name = command.pop("do")
        try:
            return {"ok": getattr(self, name)(**command)}
        except Exception as error:
            return {"failed": one_line(error)}

    @property
    def traffic(self) -> Traffic:
        """The traffic that :meth:`setup` made."""
        if self._traffic is None:
            raise RuntimeError("no app was set up; send setup first")
        return self._traffic

    def setup(self, *, key: str, seed: int, where: dict[str, Any], settings: dict[str, Any]) -> int:
        """Make the small app *key* for the server at *where*. Returns this process's id."""
        entrant = find(key, where["backend"])
        app = entrant.load()(Where(**where), Settings(**settings))
        self._traffic = Traffic(app, where["backend"], seed)
        return os.getpid()

    def start(self, *, readers: int, writers: int, every: float) -> None:
        """Begin steady traffic."""
        self.traffic.start(readers, writers, every)

    def pause(self) -> None:
        """Stop it and wait for the requests in progress."""
        self._hung += self.traffic.pause()

    def burst(self, *, threads: int, each: int) -> None:
        """Send many requests at once, and return when all have ended."""
        self._hung += self.traffic.burst(threads, each)

    def careless(self, *, requests: int, keep: bool) -> None:
        """Send requests that never return their connection; do not wait for them."""
        self.traffic.careless(requests, self._kept if keep else None)

    def collect(self) -> None:
        """Collect garbage. A busy application does so often, this one would not, and some pools
        rely on it.
        """
        gc.collect()

    def fork(self, *, children: int, times: int, patience: float = WATCHDOG) -> None:
        """Fork, and let parent and children ask which session answers them."""
        self._hung += forking.ask_all(self.traffic, children, times, patience)

    def report(self) -> dict[str, Any]:
        """Return every record so far, the hanging requests, and a line for each kind of failure."""
        traffic = self.traffic
        return {
            "records": [list(record) for record in traffic.records],
            "hung": self._hung,
            "samples": dict(traffic.samples),
        }

    def close(self) -> None:
        """Close the app, after the release of the objects that kept connections alive."""
        self._kept.clear()
        self.collect()
        self.traffic.app.close()


def main() -> None:
    """Obey until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C goes to the drill, which then ends us
    answers = os.dup(1)
    os.dup2(2, 1)  # the output of a library is not an answer
    os.set_inheritable(answers, False)
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    worker = Worker()
    while True:
        answer = json.dumps(worker.obey(json.loads(commands.get())))
        _write(answers, answer.encode() + b"\n")


def _listen(commands: queue.SimpleQueue[str]) -> None:
    for line in _lines(0):
        commands.put(line)
    os._exit(0)  # the drill has ended: no finalizer may delay this process's end


def _lines(fd: int) -> Iterator[str]:
    """Yield lines of a descriptor.

    It does not use ``sys.stdin``, whose lock a forked child would inherit in a locked state.
    """
    buffer = b""
    while select.select([fd], [], []) and (more := os.read(fd, 65536)):
        # under gevent only select lets the other greenlets work
        *lines, buffer = (buffer + more).split(b"\n")
        for line in lines:
            yield line.decode()


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
