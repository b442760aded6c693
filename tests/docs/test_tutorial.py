"""The tutorial, step by step as its reader takes it: its files, its commands, a real server that
is really broken, and the answers that the page promises.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest

from unbroken_drill.servers.ports import free_port

from .blocks import ROOT, blocks

PAGE = ROOT / "docs" / "tutorial.md"
PATIENCE = 60.0
SETUP = ("mkdir", "python3 -m venv", "pip install")
PROMPT = "database> "


class Reader:
    """One reader with three terminals: the database, the app, and the one for curl."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.ports = {"5433": str(free_port("127.0.0.1")), "8000": str(free_port("127.0.0.1"))}
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "drill" / "src")])
        self.env = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
        self.app: subprocess.Popen[str] | None = None
        self.database: subprocess.Popen[str] | None = None
        self.asked: subprocess.Popen[str] | None = None

    def here(self, text: str) -> str:
        for written, port in self.ports.items():
            text = text.replace(f":{written}", f":{port}").replace(f"={written}", f"={port}")
            text = text.replace(f"--port {written}", f"--port {port}")
        return text

    def start(self, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        log = (self.folder / f"{command[0]}.log").open("a")
        process = subprocess.Popen(
            [sys.executable, *command], cwd=self.folder, env=self.env, text=True,
            stdin=stdin, stdout=subprocess.PIPE if stdin == subprocess.PIPE else log, stderr=log,
        )  # fmt: skip
        self.stack.callback(end, process)
        return process

    def write(self, code: str) -> None:
        (self.folder / code.partition("\n")[0].removeprefix("# ")).write_text(self.here(code))

    def run(self, line: str) -> None:
        if line.startswith(SETUP):
            return
        if line == "python database.py":
            self.database = self.start("database.py", stdin=subprocess.PIPE)
        elif line.startswith("flask "):
            if self.app is not None:
                end(self.app)
            self.app = self.start("-m", *self.here(line).split())
            until(lambda: listens(int(self.ports["8000"])))
        else:
            assert line.startswith("curl "), line
            self.asked = subprocess.Popen(
                self.here(line).removesuffix("&"), shell=True, cwd=self.folder,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self.stack.callback(end, self.asked)
            if not line.endswith("&"):
                self.asked.wait(PATIENCE)

    def type(self, word: str) -> None:
        assert self.database is not None
        assert self.database.stdin is not None
        if self.asked is not None and self.asked.poll() is None:
            until(self.is_slow_one_under_way)
        self.database.stdin.write(f"{word}\n")
        self.database.stdin.flush()
        assert self.line() == "done"
        if word == "start":  # a reader is slower than the prober; a program is not
            until(self.is_ready)

    def is_ready(self) -> bool:
        try:
            with urlopen(self.here("http://127.0.0.1:8000/readyz"), timeout=5.0) as answer:
                return bool(answer.status == 200)
        except HTTPError as error:
            error.close()
            return False

    def line(self) -> str:
        assert self.database is not None
        assert self.database.stdout is not None
        return self.database.stdout.readline().replace(PROMPT, "").strip()

    def is_slow_one_under_way(self) -> bool:
        url = self.here("postgresql://app:secret@127.0.0.1:5433/shop")
        with psycopg.connect(url) as conn:
            row = conn.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE query LIKE '%pg_sleep%' AND wait_event = 'PgSleep'"
            ).fetchone()
        return row == (1,)

    def expect(self, text: str) -> None:
        if self.asked is None:
            said = self.line()
        else:
            said = self.asked.communicate(timeout=PATIENCE)[0]
            self.asked = None
        pattern = ".*".join(re.escape(part) for part in text.strip().split("…"))
        assert re.fullmatch(pattern, said.strip(), re.DOTALL), (text, said, self.log())

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with ExitStack() as stack:
        yield Reader(tmp_path, stack)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial's reader has curl")
def test_the_tutorial_does_what_it_says(reader: Reader) -> None:
    told = 0
    for language, text in blocks(PAGE):
        if language == "python":
            reader.write(text)
        elif language == "sh":
            for line in text.strip().splitlines():
                reader.run(line)
        elif text.startswith(PROMPT):
            reader.type(text.strip().removeprefix(PROMPT))
        else:
            reader.expect(text)
            told += 1
    assert told > 10
