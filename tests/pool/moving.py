"""Names that lead elsewhere, and secrets that change, under a running load: a name service of the
test's own for every library of a process, and that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORKER = HERE / "moving_worker.py"


def build_names(folder: Path) -> Path:
    """The library that answers lookups: compiled here, by the compiler that mysqlclient needs
    too.
    """
    library = folder / "moving_names.so"
    source = HERE / "moving_names.c"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60
    )
    return library


class Names:
    """What a process's lookups answer: ``names.lead("db.test", "127.0.0.2")``."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._file = library, folder / "names"
        self._answers: dict[str, tuple[str | int, ...]] = {}
        self._file.write_text("")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told."""
        return {"LD_PRELOAD": str(self._library), "UNBROKEN_TEST_NAMES": str(self._file)}

    def lead(self, host: str, *answer: str | int) -> None:
        """From now on *host* has these addresses, or this error of getaddrinfo's, or hangs
        ("hang").
        """
        self._answers[host] = answer
        lines = [f"{name} {' '.join(map(str, found))}\n" for name, found in self._answers.items()]
        fresh = self._file.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self._file)

    def asked(self) -> int:
        """How many lookups of such names there were."""
        path = Path(f"{self._file}.asked")
        return path.stat().st_size if path.exists() else 0


class Load:
    """A pool under load in a process of its own: four clients, each a unit of work after the
    other.

    *secret* is a file that holds the password, where it is not in the URL.
    """

    def __init__(
        self,
        driver: str,
        url: str,
        *,
        environment: dict[str, str] | None = None,
        secret: Path | None = None,
        **settings: Any,
    ) -> None:
        plan = {"driver": driver, "url": url, "secret": secret and str(secret)}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps({**plan, "settings": settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def tell(self, command: str) -> None:
        """Have it begin something."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"failed": self._process.wait(5)}

    def ask(self, command: str) -> Any:
        """Have it do something, and what it says then."""
        self.tell(command)
        return self.answer()

    def during(self, fault: Callable[[], Any]) -> Any:
        """Its clients work while *fault* happens, and a moment longer: what they met."""
        assert self.ask("load") == "going"
        fault()
        return self.ask("stop")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> float:
    """Wait until it is true: how many seconds that took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, f"not true within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started
