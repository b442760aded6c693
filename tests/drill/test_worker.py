"""The process that a contender runs in, and the drill's end of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from unbroken_drill.drill.contenders import find
from unbroken_drill.drill.contenders.base import Settings
from unbroken_drill.drill.measure import close_wait, journal
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker import workload
from unbroken_drill.drill.worker.process import WorkerError, WorkerProcess
from unbroken_drill.servers import PostgreSQL


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        yield process


@pytest.fixture
def server(postgres: PostgreSQL) -> Iterator[PostgreSQL]:
    postgres.admin(workload.tables("postgresql", postgres.user))
    yield postgres
    postgres.admin("DROP TABLE IF EXISTS drill_items, drill_journal")


def at(server: PostgreSQL) -> Where:
    return Where.of(server.url("psycopg"), "postgresql")


def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_worker_carries_traffic_and_reports_each_request(
    worker: WorkerProcess, server: PostgreSQL
) -> None:
    worker.setup(find("one", "postgresql"), at(server), Settings(), seed=1)
    worker.ask("start", readers=2, writers=1, every=0.01)
    until(lambda: len(worker.ask("report")["records"]) > 20)
    worker.ask("pause")
    report = worker.ask("report")
    assert {outcome for _, _, outcome, _, _ in report["records"]} == {"ok"}
    assert report["hung"] == 0
    written = {number for _, _, _, writes, number in report["records"] if writes}
    assert written
    assert journal(server) == dict.fromkeys(written, 1)


def test_what_a_user_would_see_is_an_error_with_a_sample(
    worker: WorkerProcess, server: PostgreSQL
) -> None:
    worker.setup(find("one", "postgresql"), at(server), Settings(), seed=1)
    server.kill_sessions()
    worker.ask("burst", threads=2, each=1)
    report = worker.ask("report")
    assert [outcome for _, _, outcome, _, _ in report["records"]] == ["error", "error"]
    assert sum(report["samples"].values()) == 2


def test_a_dead_socket_that_nobody_closed_is_counted(
    worker: WorkerProcess, server: PostgreSQL
) -> None:
    worker.setup(find("one", "postgresql"), at(server), Settings(), seed=1)
    assert close_wait(worker.pid) == 0
    server.kill_sessions()
    until(lambda: close_wait(worker.pid) == 1)


def test_processes_that_share_a_session_are_found_out(
    worker: WorkerProcess, server: PostgreSQL
) -> None:
    worker.setup(find("one", "postgresql"), at(server), Settings(), seed=1)
    worker.ask("burst", threads=1, each=1)
    try:
        worker.ask("fork", 30.0, children=2, times=20, patience=3.0)
    except WorkerError as failure:
        if "hangs in 'fork'" not in str(failure):
            raise
        return  # found out as well: the parent itself waits for an answer that a child has read
    report = worker.ask("report")
    assert any(outcome == "wrong" for _, _, outcome, _, _ in report["records"]) or report["hung"]


def test_processes_with_sessions_of_their_own_are_well(
    worker: WorkerProcess, server: PostgreSQL
) -> None:
    worker.setup(find("sqlalchemy", "postgresql"), at(server), Settings(), seed=1)
    worker.ask("burst", threads=2, each=1)
    worker.ask("fork", 60.0, children=2, times=20)
    report = worker.ask("report")
    assert report["samples"] == {}
    assert len(report["records"]) == 2 + 3 * 20
    assert {outcome for _, _, outcome, _, _ in report["records"]} == {"ok"}


def test_a_contender_that_cannot_start_says_why_in_one_line(
    worker: WorkerProcess, server: PostgreSQL
) -> None:
    where = {
        "backend": "postgresql",
        "host": "127.0.0.1",
        "port": 1,
        "user": "a",
        "password": "hidden",
        "database": "d",
        "url": "",
    }
    with pytest.raises(WorkerError) as caught:
        worker.ask("setup", key="one", seed=1, where=where, settings=dataclasses.asdict(Settings()))
    assert "OperationalError" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_an_unknown_command_is_answered(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerError, match="no_such_thing"):
        worker.ask("no_such_thing")
    with pytest.raises(WorkerError, match="send setup first"):
        worker.ask("pause")


def test_a_worker_that_was_killed_is_noticed_at_once(worker: WorkerProcess) -> None:
    worker.kill()
    with pytest.raises(WorkerError, match="ended"):
        worker.ask("report", timeout=30.0)


def test_a_worker_ends_with_its_input_whatever_it_is_doing(server: PostgreSQL) -> None:
    with WorkerProcess() as process:
        process.setup(find("one", "postgresql"), at(server), Settings(), seed=1)
        process.ask("start", readers=4, writers=0, every=0.01)
        pid = process.pid
    assert is_gone(pid)


def test_a_worker_ends_when_its_drill_is_killed(server: PostgreSQL) -> None:
    code = (
        "from unbroken_drill.drill.worker.process import WorkerProcess; import time;"
        " print(WorkerProcess().pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    with contextlib.suppress(ChildProcessError):
        until(lambda: is_gone(pid))
    assert is_gone(pid)
