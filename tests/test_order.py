"""What ``pytest -n 4`` runs beside each other (order.py), played with workers that run nothing."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("xdist", reason="another environment may run its tests one after the other")

from .order import ALONE, AT_ONCE, FEW, Order

FILES = [
    *(f"tests/pool/test_{number}.py" for number in range(12)),
    "tests/pool/test_idle_limit.py", "tests/history/test_history.py",
    "tests/bounds/test_connects.py", "tests/bounds/test_silent_drops.py",
    "tests/strikes/test_signals.py", "tests/perf/test_call_counts.py", "tests/drill/test_drill.py",
]  # fmt: skip


class Worker:
    """Runs a test when it knows the one after it, or that there is none: as xdist's do."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.queue: list[int] = []
        self.runs_until: float | None = None

    def send_runtest_some(self, indices: list[int]) -> None:
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    def is_able(self) -> bool:
        return len(self.queue) > 1 or (self.shutting_down and bool(self.queue))


class Play:
    """A whole run with tests that take random times."""

    def __init__(self, tests: list[str], workers: int, seed: int) -> None:
        self.tests, self.random, self.now = tests, Random(seed), 0.0
        config = SimpleNamespace(
            getvalue=lambda _name: ["popen"] * workers,
            option=SimpleNamespace(loadscopereorder=False),
        )
        log = SimpleNamespace(loadscopesched=lambda *_: None)
        self.order = Order(config, log)  # type: ignore[arg-type] # all that it needs
        self.workers = [Worker(f"gw{number}") for number in range(workers)]
        self.together: list[list[str]] = []  #: what ran at each moment
        self.done: list[str] = []

    def run(self) -> None:
        order: Any = self.order
        for worker in self.workers:
            order.add_node(worker)
            order.add_node_collection(worker, self.tests)
        order.schedule()
        self._end()
        while self._step():
            pass
        assert sorted(self.done) == sorted(self.tests)
        assert all(worker.shutting_down for worker in self.workers)

    def _step(self) -> bool:
        for worker in self.workers:
            if worker.runs_until is None and worker.is_able():
                worker.runs_until = self.now + self.random.choice((0.1, 1.0, 9.0))
        busy = [worker for worker in self.workers if worker.runs_until is not None]
        self.together.append([self.tests[worker.queue[0]] for worker in busy])
        if not busy:
            return False
        first = min(busy, key=lambda worker: worker.runs_until or 0.0)
        self.now, first.runs_until = first.runs_until or 0.0, None
        index = first.queue.pop(0)
        self.done.append(self.tests[index])
        order: Any = self.order
        order.mark_test_complete(first, index)
        self._end()
        return True

    def _end(self) -> None:
        """As xdist does after each event."""
        order: Any = self.order
        for worker in self.workers:
            if order.tests_finished:
                worker.shutdown()
            if worker.shutting_down and not worker.queue and worker in order.nodes:
                assert order.remove_node(worker) is None


def some_of(files: list[str], random: Random) -> list[str]:
    return [
        f"{file}::test_{number}" for file in files for number in range(random.choice((1, 2, 3, 20)))
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("files", [FILES, FILES[-5:], FILES[-2:], FILES[:3]], ids=len)
def test_every_test_is_run_and_none_beside_more_others_than_it_bears(
    files: list[str], workers: int
) -> None:
    most = 0
    for seed in range(50):
        play = Play(some_of(files, Random(seed)), workers, seed)
        play.run()
        for together in play.together:
            most = max(most, len(together))
            if any(each.startswith(ALONE) for each in together):
                assert len(together) == 1, (seed, together)
            elif any(each.startswith(FEW) for each in together):
                assert len(together) <= AT_ONCE, (seed, together)
    assert most == min(workers, len(files)) or not files[0].startswith("tests/pool")


def test_two_workers_are_busy_until_only_what_must_run_alone_is_left() -> None:
    play = Play([f"{file}::test_{number}" for file in FILES for number in range(5)], 4, 1)
    play.run()
    few = [each for each in play.together if any(test.startswith(FEW) for test in each)]
    assert sum(len(each) == AT_ONCE for each in few) > len(few) / 2


def test_what_a_crashed_worker_had_is_run_by_others() -> None:
    play = Play([f"{file}::test_{number}" for file in FILES for number in range(5)], 4, 1)
    order: Any = play.order
    for worker in play.workers:
        order.add_node(worker)
        order.add_node_collection(worker, play.tests)
    order.schedule()
    crashed = play.workers.pop()
    assert order.remove_node(crashed) == play.tests[crashed.queue[0]]
    while play._step():
        pass
    assert sorted([*play.done, play.tests[crashed.queue[0]]]) == sorted(play.tests)
