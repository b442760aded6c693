"""The drill's end of a worker: it starts the worker, sends commands, and ends it in any state."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Self

from unbroken.errors import UnbrokenError
from unbroken_drill.drill.contenders import Entrant
from unbroken_drill.drill.contenders.base import Settings
from unbroken_drill.drill.where import Where
from unbroken_drill.messages import WORKER_ENDED


class WorkerError(UnbrokenError):
    """A worker failed, hangs or has ended; the message is one line with the reason."""


#: Runs before any other import, so that every thread and socket of the worker is gevent's.
_GREEN = (
    "from gevent import monkey; monkey.patch_all();"
    " from unbroken_drill.drill.worker import main; main.main()"
)


class WorkerProcess:
    """One ``unbroken_drill.drill.worker.main`` in a session of its own. A context manager that ends
    it with all its children.

    *green*: greenlets instead of threads.
    """

    def __init__(self, *, green: bool = False) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self._process = subprocess.Popen(
            [
                sys.executable,
                *(["-c", _GREEN] if green else ["-m", "unbroken_drill.drill.worker.main"]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def setup(self, entrant: Entrant, where: Where, settings: Settings, seed: int) -> None:
        """Let it make its pool for the server at *where*."""
        address, wanted = dataclasses.asdict(where), dataclasses.asdict(settings)
        self.ask("setup", key=entrant.key, seed=seed, where=address, settings=wanted)

    def ask(self, do: str, timeout: float = 30.0, **arguments: Any) -> Any:
        """Send one command and return its answer.

        Raises WorkerError if it fails, dies, or takes longer than *timeout*.
        """
        line = json.dumps({"do": do, **arguments}).encode() + b"\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(
                WORKER_ENDED(f"the worker process ended: {self._last_words()}")
            ) from None
        answer = json.loads(self._line(do, time.monotonic() + timeout))
        if "failed" in answer:
            raise WorkerError(WORKER_ENDED(answer["failed"]))
        return answer["ok"]

    def _line(self, do: str, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise WorkerError(WORKER_ENDED(f"the worker process hangs in {do!r}"))
            more = os.read(fd, 1 << 20)
            if not more:
                raise WorkerError(
                    WORKER_ENDED(f"the worker process ended in {do!r}: {self._last_words()}")
                )
            self._buffer += more
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].strip()
        return f"status {self._process.poll()}"

    def kill(self) -> None:
        """End it immediately, with all processes that it forked, from any thread.

        A caller that waits for its answer gets a WorkerError.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session has no other process

    def end(self) -> None:
        """Close its input, which ends it. If that takes longer than a second, kill it with all
        processes that it forked.
        """
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self.kill()
        self._process.wait()
        self._errors.close()
