"""The retry budget, in every body: what is lost once it is spent is its caller's error, and says
so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from unbroken.brain import budget
from unbroken.pool import servers
from unbroken_drill import FaultProxy
from unbroken_drill.servers import PostgreSQL

from .every import BODIES, opened
from .spending import spend

SIZE = 2
#: The proxy loses a connection at this statement.
LOST = "SELECT 41 + 1"
#: Bodies that run a lost statement again without a unit of work.
HEAL = [name for name in BODIES if name not in ("pool", "async pool", "mongodb")]
UNITS = [name for name in BODIES if name != "mongodb"]


@pytest.fixture
def proxy(postgres: PostgreSQL) -> Iterator[FaultProxy]:
    servers._records.clear()  # what was spent by the test before
    with FaultProxy((postgres.host, postgres.port), protocol="postgresql") as proxy:
        yield proxy


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time brings nothing, however long a test takes."""
    monkeypatch.setattr(budget, "EVENT_EVERY", 1e12)


def told(work: Callable[[str], Any]) -> str:
    """The notes of the error that *work* raises."""
    with pytest.raises(Exception) as caught:
        work(LOST)
    return " ".join(getattr(caught.value, "__notes__", []))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "outage" not in record.name
    ]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_of_work_is_not_run_again_once_the_budget_is_spent(
    name: str, postgres: PostgreSQL, proxy: FaultProxy, slow: None, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    with opened(name, lambda driver: proxy.url(postgres.url(driver)), SIZE) as body:
        body.ask()
        spend()
        cuts = []
        for _ in range(3):
            cuts.append(proxy.cut_at(LOST, before=True))
            notes = told(body.replay)
            assert "no replay: budget" in notes
            assert "UB507" in notes
            assert "30 replays in reserve" in notes
        assert [cut.hits for cut in cuts] == [1, 1, 1]
        assert body.stats().not_replayed == 3
        assert body.stats().replays_left < 1
        (line,) = lines(caplog)
        assert "no replay: budget" in line


@pytest.mark.parametrize("name", HEAL)
def test_a_lost_statement_is_not_sent_again_once_the_budget_is_spent(
    name: str, postgres: PostgreSQL, proxy: FaultProxy, slow: None, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    with opened(name, lambda driver: proxy.url(postgres.url(driver)), SIZE) as body:
        body.ask()
        cut = proxy.cut_at(LOST, before=True)
        assert body.change(LOST) == 42
        assert cut.hits == 1
        healed = body.stats().healed
        spend()
        for _ in range(3):
            proxy.cut_at(LOST, before=True)
            notes = told(body.change)
            assert "no replay: budget" in notes
            assert "UB507" in notes
        assert body.stats().healed == healed == 1
        assert body.stats().not_replayed == 3
        (line,) = lines(caplog)
        assert "no replay: budget" in line


@pytest.mark.parametrize("name", UNITS)
def test_without_a_budget_everything_is_run_again(
    name: str, postgres: PostgreSQL, proxy: FaultProxy, slow: None
) -> None:
    url = lambda driver: proxy.url(postgres.url(driver))  # noqa: E731
    with opened(name, url, SIZE, retry_budget="off") as body:
        body.ask()
        spend()
        proxy.cut_at(LOST, before=True)
        assert body.replay(LOST) == 42
        assert body.stats().not_replayed == 0
        assert body.stats().replays_left == float("inf")


def test_a_forked_child_begins_with_a_budget_of_its_own(
    postgres: PostgreSQL, proxy: FaultProxy, slow: None
) -> None:
    with opened("pool", lambda driver: proxy.url(postgres.url(driver)), SIZE) as body:
        body.ask()
        spend()
        assert body.stats().replays_left < 1
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(write, str(body.stats().replays_left).encode())
            finally:
                os._exit(0)
        os.close(write)
        assert os.read(read, 100) == b"30.0"
        os.close(read)
        assert os.waitpid(child, 0) == (child, 0)
