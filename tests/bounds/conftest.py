"""Servers with certificates, proxies before them, and crowds of bodies that all do the same at
once.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from unbroken.pool import servers as records
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from .bodies import HANGS, KINDS, Kind


@pytest.fixture(autouse=True)
def _nothing_is_known_of_any_server() -> None:
    records._records.clear()


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[bool], Server]]:
    """``servers(is_mysql)``: servers that take TLS and plain connections, made when asked for."""
    made: dict[bool, Server] = {}
    with ExitStack() as stack:

        def server(is_mysql: bool) -> Server:
            if is_mysql not in made:
                made[is_mysql] = stack.enter_context(
                    (MariaDB if is_mysql else PostgreSQL)(tls=True)
                )
            return made[is_mysql]

        yield server


@dataclass
class Outcome:
    """What became of one body's work."""

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    ended_at: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.seconds:.2f} s: {self.value if self.error is None else repr(self.error)[:160]}"
        )


def timed(work: Callable[[], Any]) -> Outcome:
    """What *work* gave or raised, and how long it took."""
    began = time.monotonic()
    outcome = Outcome()
    try:
        outcome.value = work()
    except BaseException as error:
        outcome.error = error
    outcome.ended_at = time.monotonic()
    outcome.seconds = outcome.ended_at - began
    return outcome


@dataclass
class Crowd:
    """Bodies by name, each with a proxy of its own."""

    bodies: dict[str, Any] = field(default_factory=dict)
    proxies: dict[str, FaultProxy] = field(default_factory=dict)

    def all(self, work: Callable[[str, Any], Any]) -> dict[str, Outcome]:
        """``work(name, body)`` in a thread for each body, all at once: what became of it."""
        outcomes: dict[str, Outcome] = {}

        def one(name: str, body: Any) -> None:
            outcomes[name] = timed(lambda: work(name, body))

        threads = {
            name: threading.Thread(target=one, args=(name, body), daemon=True)
            for name, body in self.bodies.items()
        }
        for thread in threads.values():
            thread.start()
        end = time.monotonic() + HANGS
        for thread in threads.values():
            thread.join(max(0.0, end - time.monotonic()))
        hung = [name for name, thread in threads.items() if thread.is_alive()]
        assert not hung, f"still busy after {HANGS} s: {', '.join(hung)}"
        return outcomes

    def come_to_rest(self) -> None:
        """Wait until no body connects: beside a login that took long, another has begun.

        The socket of an attempt belongs to no pool yet. Of one that was given up, a library may
        keep it until the collector runs.
        """
        end = time.monotonic() + HANGS
        while busy := [name for name, body in self.bodies.items() if body.stats().opening]:
            assert time.monotonic() < end, f"still connecting after {HANGS} s: {', '.join(busy)}"
            time.sleep(0.01)
        gc.collect()


@pytest.fixture
def crowd(servers: Callable[[bool], Server]) -> Iterator[Callable[..., Crowd]]:
    """``crowd(names, tls=False, **settings)``: those bodies, connected once and warm."""
    with ExitStack() as stack:

        def make(
            names: list[str], *, tls: bool = False, warm: bool = True, **settings: Any
        ) -> Crowd:
            made = Crowd()
            for name in names:
                kind: Kind = KINDS[name]
                server = servers(kind.is_mysql)
                proxy = stack.enter_context(FaultProxy((server.host, server.port)))
                made.proxies[name] = proxy
                body = kind.make(proxy.url(kind.url(server, tls=tls)), **settings)
                stack.callback(_close, body)
                made.bodies[name] = body
            if warm:
                outcomes = made.all(lambda _name, body: body.work("SELECT 1"))
                bad = {
                    name: str(outcome) for name, outcome in outcomes.items() if outcome.value != 1
                }
                assert not bad, bad
            return made

        yield make


def _close(body: Any) -> None:
    with suppress(Exception):
        body.close()
