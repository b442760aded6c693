"""The process that a small app runs in: ``python -m unbroken_drill.drill.worker.main``, led by the
drill over two pipes.

Commands come as JSON lines on standard input, one answer each goes out on what was standard output
when it started: ``{"do": "setup", …}`` is answered by ``{"ok": …}``, or by ``{"failed": "one
line"}``. When standard input ends, so does the process, whatever it is doing: a drill that was
interrupted leaves nothing running.
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
            raise RuntimeError("no app yet: send setup first")
        return self._traffic

    def setup(self, *, key: str, seed: int, where: dict[str, Any], settings: dict[str, Any]) -> int:
        """Make the small app *key* for the server at *where*; gives this process's id."""
        entrant = find(key, where["backend"])
        app = entrant.load()(Where(**where), Settings(**settings))
        self._traffic = Traffic(app, where["backend"], seed)
        return os.getpid()

    def start(self, *, readers: int, writers: int, every: float) -> None:
        """Begin steady traffic."""
        self.traffic.start(readers, writers, every)

    def pause(self) -> None:
        """Stop it and wait for what is under way."""
        self._hung += self.traffic.pause()

    def burst(self, *, threads: int, each: int) -> None:
        """Many requests at once; gives when all have ended."""
        self._hung += self.traffic.burst(threads, each)

    def careless(self, *, requests: int, keep: bool) -> None:
        """Requests that never give their connection back; does not wait for them."""
        self.traffic.careless(requests, self._kept if keep else None)

    def collect(self) -> None:
        """Collect garbage, as a busy application does often and this one would not: a pool that
        relies on it shall have it.
        """
        gc.collect()

    def fork(self, *, children: int, times: int, patience: float = WATCHDOG) -> None:
        """Fork, and let parent and children ask for their own sessions."""
        self._hung += forking.ask_all(self.traffic, children, times, patience)

    def report(self) -> dict[str, Any]:
        """Every record so far, the requests that hang, and a line for each kind of failure."""
        traffic = self.traffic
        return {
            "records": [list(record) for record in traffic.records],
            "hung": self._hung,
            "samples": dict(traffic.samples),
        }

    def close(self) -> None:
        """Close the app; what held connections alive lets go first."""
        self._kept.clear()
        self.collect()
        self.traffic.app.close()


def main() -> None:
    """Obey until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the drill, which then ends us
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
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
    os._exit(0)  # the drill is gone, or done: no finalizer may keep us


def _lines(fd: int) -> Iterator[str]:
    """Lines of a descriptor.

    Not of ``sys.stdin``, whose lock a forked child would inherit taken.
    """
    buffer = b""
    while select.select([fd], [], []) and (more := os.read(fd, 65536)):
        # under gevent only select lets the others work
        *lines, buffer = (buffer + more).split(b"\n")
        for line in lines:
            yield line.decode()


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
