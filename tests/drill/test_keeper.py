"""Nothing of an app outlives the drill, whatever the app did to get away and however the drill
ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from unbroken_drill.drill.apps.launch import App, AppError

#: An app that ignores SIGTERM, and has a child that made itself a daemon: a session of its own, an
#: orphan.
STUBBORN = "trap '' TERM; (setsid sleep 1000 &) ; echo up; while :; do sleep 0.1; done"


def app(tmp_path: Path, *command: str, **environment: str) -> App:
    return App(command, environment, tmp_path / "log", tmp_path)


def wait_until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pids: list[int]) -> list[int]:
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("quickly", [True, False])
def test_a_stubborn_app_and_its_daemons_are_ended(tmp_path: Path, quickly: bool) -> None:
    with app(tmp_path, "bash", "-c", STUBBORN) as one:
        one.start()
        wait_until(lambda: len(one.pids) >= 3)
        pids = one.pids
        one.stop(quickly=quickly)
        assert alive(pids) == []
        assert not one.is_running


def test_an_app_is_asked_first(tmp_path: Path) -> None:
    with app(
        tmp_path,
        "bash",
        "-c",
        "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.05; done",
    ) as one:
        one.start()
        wait_until(lambda: "up" in one.said())
        one.stop()
    assert (tmp_path / "log").read_text().split() == ["up", "asked"]


def test_the_keeper_ends_with_its_app_and_has_its_status(tmp_path: Path) -> None:
    with app(tmp_path, "bash", "-c", "(sleep 1000 &); echo no database; exit 3") as one:
        one.start()
        wait_until(lambda: not one.is_running)
        assert (one.status, one.said()) == (3, "no database")


def test_a_killed_drill_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from unbroken_drill.drill.apps.launch import"
        f" App\none = App(['bash', '-c', {STUBBORN!r}], {{}}, Path('log'), Path('.'));"
        " one.start()\nwhile len(one.pids) < 3: time.sleep(0.01)\nprint(*one.pids, flush=True);"
        " time.sleep(1000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as holder:
        try:
            assert holder.stdout is not None
            pids = [int(word) for word in holder.stdout.readline().split()]
            assert len(alive(pids)) >= 2  # the shell and its daemon; its short sleeps come and go
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: not alive(pids))


def test_a_setup_that_fails_or_hangs_says_what_it_printed(tmp_path: Path) -> None:
    one = app(tmp_path, "true", WHO="me")
    with pytest.raises(AppError, match="ended with status 4: no table for me"):
        one.run_once(["bash", "-c", "echo no table for $WHO; exit 4"], 10.0, time.sleep)
    with pytest.raises(AppError, match="did not end within 2 s: busy"):
        one.run_once(["bash", "-c", "echo busy; sleep 1000"], 2.0, time.sleep)
    one.run_once(["true"], 10.0, time.sleep)
