"""Every driver's pool, on every server, plain and with TLS, through every fault: no error that an
application would see.

A server's faults are the same for all: so all drivers' pools, each in a process of its own
(every_driver_worker.py), go through them together, once per server, and each test looks at one
driver's part of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from unbroken_drill.servers import PostgreSQL, Server

from .every_driver import KINDS, Worker, url_of

ROWS = [
    pytest.param((kind, driver, tls), id=f"{kind}-{driver}-{'tls' if tls else 'plain'}")
    for kind, (_, drivers) in KINDS.items()
    for driver in drivers
    for tls in (False, True)
]


class Fleet:
    """All drivers of one server; what each said in each scene."""

    def __init__(self, server: Server, workers: dict[tuple[str, bool], Worker]) -> None:
        self.server, self.workers = server, workers
        self.said: dict[str, dict[tuple[str, bool], Any]] = {}

    def ask(self, command: str, scene: str | None = None) -> dict[tuple[str, bool], Any]:
        for worker in self.workers.values():
            worker.tell(command)
        answers = {who: worker.answer() for who, worker in self.workers.items()}
        if scene:
            self.said[scene] = answers
        return answers

    def during_traffic(self, scene: str, fault: Callable[[], Any]) -> None:
        assert set(self.ask("traffic").values()) == {"going"}
        fault()
        self.ask("", scene)

    def play(self) -> None:
        server = self.server
        self.ask("warm", "warm")
        self.ask("cipher", "cipher")
        limit: dict[str, Any] = (
            {"idle_session_timeout": 700} if isinstance(server, PostgreSQL) else {"wait_timeout": 1}
        )
        self.ask("fork", "fork")
        self.ask("forget", "forget")
        server.kill_sessions()
        self.ask("burst", "kill")
        with server.temporarily(**limit):
            server.kill_sessions()
            self.ask("warm")
            _until(lambda: not server.sessions())
        self.ask("burst", "idle")
        server.kill_sessions()  # those that were opened under the short limit
        self.during_traffic("kill in traffic", server.kill_sessions)
        self.during_traffic("restart", lambda: server.restart(down=0.3))
        self.during_traffic("crash", lambda: server.crash(down=0.3))
        self.ask("warm")
        server.freeze()
        try:
            self.ask("frozen", "freeze")
        finally:
            server.thaw()
        self.ask("burst", "thaw")


def _until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def fleets() -> Iterator[Callable[[str], Fleet]]:
    """The fleet of a kind of server, when all has been played: made for the first test that asks
    for it.
    """
    made: dict[str, Fleet] = {}
    with ExitStack() as stack:

        def fleet(kind: str) -> Fleet:
            if kind not in made:
                cls, drivers = KINDS[kind]
                with ExitStack() as here:
                    server = here.enter_context(cls(tls=True))
                    workers = {
                        (name, tls): Worker(name, url_of(server, name, tls))
                        for name in drivers
                        for tls in (False, True)
                    }
                    for worker in workers.values():
                        here.callback(worker.close)
                    made[kind] = Fleet(server, workers)
                    made[kind].play()
            return made[kind]

        yield fleet
        stack.close()


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest, fleets: Callable[[str], Fleet]) -> Callable[[str], Any]:
    """``row(scene)``: what one driver, on one server, plain or with TLS, said of it."""
    kind, driver, tls = request.param
    fleet = fleets(kind)
    assert not (failed := fleet.said["warm"][driver, tls]) or "failed" not in failed, failed
    return lambda scene: fleet.said[scene][driver, tls]


@pytest.mark.timeout(240)
def test_no_fault_is_an_error_that_an_application_sees(
    row: Callable[[str], Any], request: pytest.FixtureRequest
) -> None:
    tls = request.node.callspec.params["row"][2]
    assert bool(row("cipher")) or not tls
    quiet = ("kill", "idle", "thaw", "fork", "forget")
    assert {scene: row(scene) for scene in quiet} == {scene: [] for scene in quiet}
    for scene in ("kill in traffic", "restart", "crash"):
        assert row(scene)["errors"] == [], scene
        assert row(scene)["asked"] > 0
    frozen = row("freeze")
    assert frozen["said"].startswith("a TimeoutError: "), frozen
    assert frozen["took"] < 15, frozen
