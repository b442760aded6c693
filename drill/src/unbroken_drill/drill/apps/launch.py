"""The user's app: started in a session of its own. Its output can be read, and it is ended with
everything that it started.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from unbroken.errors import UnbrokenError
from unbroken_drill.drill.apps.keeper import GRACE
from unbroken_drill.messages import APP_FAILED
from unbroken_drill.servers import processes

_PACE: Final = 0.02


class AppError(UnbrokenError):
    """The app does not start, ends, or does not serve. The message contains its output in one
    line.
    """


class App:
    """One command below a keeper (:mod:`unbroken_drill.drill.apps.keeper`). A context manager that
    ends it.

    *environment* is added to this process's. Its output is appended to *log*. *folder* is its
    working directory.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
    ) -> None:
        self.command, self.log, self.folder = list(command), log, folder
        self.environment = dict(environment)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._said_before = 0  #: the length of the log before this start

    def __enter__(self) -> App:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(quickly=True)

    def start(self) -> None:
        """Start it, without a check whether it serves. Do nothing if it runs already."""
        if self.is_running:
            return
        self.stop(quickly=True)
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", "unbroken_drill.drill.apps.keeper", *self.command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
                start_new_session=True,  # a Ctrl-C goes to the drill, which then ends the app
            )

    def stop(self, *, quickly: bool = False) -> None:
        """End it with everything that it started: by SIGTERM within
        :data:`~unbroken_drill.drill.apps.keeper.GRACE`, or immediately.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is None or keeper.stdin is None:
            return
        with contextlib.suppress(OSError):
            if quickly:
                keeper.stdin.write(b"kill\n")
            keeper.stdin.close()
        try:
            keeper.wait(GRACE + 10.0)
        except subprocess.TimeoutExpired:  # the keeper was stopped, or hangs
            processes.kill(keeper)

    @property
    def is_running(self) -> bool:
        """Whether its main process lives."""
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return None if self._keeper is None else self._keeper.poll()

    @property
    def pids(self) -> list[int]:
        """Its processes, without the keeper."""
        return processes.family(self._keeper.pid)[1:] if self._keeper is not None else []

    def said(self, lines: int = 3) -> str:
        """Return the last *lines* of its output since this start, as one."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(self._said_before)
            text = log.read()[-8192:].decode(errors="replace").strip()
            if text:
                return " / ".join(" ".join(line.split()) for line in text.splitlines()[-lines:])[
                    -600:
                ]
        return "it printed nothing"

    def run_once(
        self, command: Sequence[str], timeout: float, wait: Callable[[float], None]
    ) -> None:
        """Run *command* (a migration) in the app's environment. Raises AppError if it fails or
        takes longer.

        *wait* sleeps, and raises if further waiting is useless.
        """
        deadline = time.monotonic() + timeout
        with App(command, self.environment, self.log, self.folder) as one:
            one.start()
            while one.is_running:
                wait(_PACE)
                if time.monotonic() > deadline:
                    raise AppError(
                        APP_FAILED(
                            f"--setup {shlex.join(command)} did not end within {timeout:g} s:"
                            f" {one.said()}"
                        )
                    )
            if one.status:
                raise AppError(
                    APP_FAILED(
                        f"--setup {shlex.join(command)} ended with status {one.status}:"
                        f" {one.said()}"
                    )
                )
