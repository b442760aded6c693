"""Transactions that an exception breaks off at any point: nothing that was rolled back is stored,
nothing that was acknowledged is lost, and the thread's next job starts clean."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import peewee
import pytest

import unbroken.integrations.peewee
from unbroken.errors import PoolTimeoutError
from unbroken.pool import kept

from ...strikes.points import HardStrike as Strike
from ...strikes.points import Striker, Where

_OURS = os.path.dirname(unbroken.integrations.peewee.__file__)

#: A strike within a finalizer is not raised; what it did is looked at.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class AppError(Exception):
    pass


class OfPeewee(Where):
    """peewee's end of a transaction, and our part of it."""

    def __init__(self) -> None:
        end = {
            "__exit__",
            "__enter__",
            "pop_transaction",
            "push_transaction",
            "rollback",
            "commit",
            "_begin",
            "close",
        }
        self.includes = lambda code: (
            (code.co_filename == peewee.__file__ and code.co_name in end)
            or code.co_filename.startswith(_OURS)
            or code.co_filename == kept.__file__
        )


class Jobs:
    def __init__(self, shop: Any) -> None:
        self.db = shop.database(max_connections=1, timeout=1.0)
        self.task = shop.tasks(self.db, 0)
        self.numbers = count(1)

    def insert(self) -> str:
        name = f"row {next(self.numbers)}"
        self.task.insert(name=name).execute()
        return name

    def end(self) -> None:
        if not self.db.is_closed():
            self.db.close()

    def sweep(self, job: Callable[[set[str], set[str]], None], step: int = 11) -> None:
        striker = Striker(OfPeewee())

        def request(kept: set[str], undone: set[str]) -> None:
            self.end()
            try:
                job(kept, undone)
            finally:
                self.end()

        request(set(), set())
        points = [
            point
            for point in striker.survey(lambda: request(set(), set()))
            if point.event != "return"
        ]
        assert len(points) > 100
        for point in points[::step]:
            kept: set[str] = set()
            undone: set[str] = set()
            with suppress(Strike):
                striker.run(lambda kept=kept, undone=undone: request(kept, undone), point, Strike)  # type: ignore[misc]
            self.end()
            with self.db:
                kept.add(self.insert())
            with self.db.connection_context():
                rows = {task.name for task in self.task.select()}
            assert kept <= rows, f"{point}: {kept - rows} was acknowledged and is lost"
            assert not undone & rows, f"{point}: {undone & rows} was rolled back and is stored"
            stats = self.db.pool.stats()
            assert (stats.used, stats.size) == (0, 1), f"{point}: {stats}"


@pytest.fixture
def jobs(shop: Any) -> Jobs:
    return Jobs(shop)


@pytest.mark.parametrize("way", ["with db", "atomic", "unit"])
def test_what_is_rolled_back_is_not_stored_and_costs_no_place_wherever_it_is_broken_off(
    jobs: Jobs, way: str
) -> None:
    def fail(undone: set[str]) -> None:
        undone.add(jobs.insert())
        raise AppError

    def job(_kept: set[str], undone: set[str]) -> None:
        with suppress(AppError):
            if way == "with db":
                with jobs.db:
                    fail(undone)
            elif way == "atomic":
                with jobs.db.connection_context(), jobs.db.atomic():
                    fail(undone)
            else:
                jobs.db.unit(lambda: fail(undone), atomic=True)()

    jobs.sweep(job)


def test_an_application_that_goes_on_after_the_strike_is_told_the_truth(jobs: Jobs) -> None:
    def job(kept: set[str], undone: set[str]) -> None:
        with jobs.db.connection_context():
            try:
                with jobs.db.atomic():
                    undone.add(jobs.insert())
                    raise AppError
            except (AppError, Strike):
                with suppress(PoolTimeoutError, peewee.OperationalError, peewee.InterfaceError):
                    with jobs.db.atomic():
                        stays = jobs.insert()
                    kept.add(stays)

    jobs.sweep(job)


def test_a_transaction_begun_by_hand_is_not_taken_for_one_that_was_broken_off(jobs: Jobs) -> None:
    jobs.db.connect()
    jobs.db.session_start()
    name = jobs.insert()
    with pytest.raises(peewee.OperationalError, match="transaction is open"):
        jobs.db.close()
    assert jobs.db.session_commit()
    jobs.db.close()
    with jobs.db.connection_context():
        assert [task.name for task in jobs.task.select()] == [name]
