"""Blocks of ``atomic`` that an exception breaks off at any line: nothing that was rolled back is
stored, nothing that was acknowledged is lost, and the thread's next request starts clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import django.db.backends.base.base as base
import django.db.transaction as transactions
import pytest
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError

from unbroken.errors import PoolTimeoutError
from unbroken.integrations.django import blocks, held, wrapper
from unbroken.pool import kept, loan

from ..strikes.points import HardStrike as Strike
from ..strikes.points import Striker, Where
from .test_django import BOTH, Site, settings_for

#: A strike within a finalizer is not raised; what it did is looked at.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class AppError(Exception):
    pass


class OfDjango(Where):
    """Django's end of a block, and our part of it."""

    def __init__(self) -> None:
        files = {
            module.__file__ for module in (base, transactions, blocks, held, wrapper, kept, loan)
        }
        # That one returns from within a lock: no interpreter delivers a signal there, a tracer
        # does.
        self.includes = lambda code: (
            code.co_filename in files and code.co_name != "allow_thread_sharing"
        )


class Shop:
    """A table with two kinds of rows: those that may stay and those that must not."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.numbers = count(1)
        site.run("DROP TABLE IF EXISTS broken_off")
        site.run("CREATE TABLE broken_off (id INT)")

    def atomic(self, **how: Any) -> Any:
        return transaction.atomic(using=self.site.alias, **how)

    def insert(self) -> int:
        number = next(self.numbers)
        self.site.run(f"INSERT INTO broken_off VALUES ({number})")
        return number

    def rows(self) -> set[int]:
        with self.site.connection.cursor() as cursor:
            cursor.execute("SELECT id FROM broken_off")
            return {int(row[0]) for row in cursor.fetchall()}

    def end_of_request(self) -> None:
        self.site.connection.close_if_unusable_or_obsolete()


@pytest.fixture(params=BOTH)
def shop(request: Any, mariadb: Any, postgres: Any) -> Iterator[Shop]:
    server = mariadb if request.param == "mysql" else postgres
    connections.settings["shop"] = settings_for(
        server, request.param, OPTIONS={"unbroken": {"max_size": 1, "acquire_timeout": 1.0}}
    )
    site = Site.__new__(Site)
    site.kind, site.server, site.alias = request.param, server, "shop"
    yield Shop(site)
    site.close()


def sweep(shop: Shop, job: Callable[[set[int], set[int]], None], step: int = 7) -> None:
    """Break *job* off at every so many points. It adds to the first set what it was told is stored,
    to the second what must not be."""
    striker = Striker(OfDjango())

    def request(kept: set[int], undone: set[int]) -> None:
        shop.end_of_request()
        try:
            job(kept, undone)
        finally:
            shop.end_of_request()

    request(set(), set())
    # No signal comes at a return, and what a tracer raises there leaves the function's variables
    # referred to once more.
    points = [
        point for point in striker.survey(lambda: request(set(), set())) if point.event != "return"
    ]
    assert len(points) > 100
    for point in points[::step]:
        kept: set[int] = set()
        undone: set[int] = set()
        with suppress(Strike):
            striker.run(lambda kept=kept, undone=undone: request(kept, undone), point, Strike)  # type: ignore[misc]
        shop.end_of_request()
        with shop.atomic():
            kept.add(shop.insert())
        shop.end_of_request()
        rows = shop.rows()
        shop.end_of_request()
        assert kept <= rows, f"{point}: {kept - rows} was acknowledged and is lost"
        assert not undone & rows, f"{point}: {undone & rows} was rolled back and is stored"
        stats = shop.site.pool.stats()
        assert (stats.used, stats.size) == (0, 1), f"{point}: {stats}"


def test_what_is_rolled_back_is_not_stored_wherever_the_end_of_atomic_is_broken_off(
    shop: Shop,
) -> None:
    def job(_kept: set[int], undone: set[int]) -> None:
        with suppress(AppError), shop.atomic():
            undone.add(shop.insert())
            raise AppError

    sweep(shop, job)


def test_an_application_that_catches_the_strike_within_the_outer_block_stores_only_what_it_was_told(
    shop: Shop,
) -> None:
    def job(kept: set[int], undone: set[int]) -> None:
        with suppress(TransactionManagementError):
            with shop.atomic():
                stays = shop.insert()
                with suppress(AppError, Strike), shop.atomic():
                    undone.add(shop.insert())
                    raise AppError
            kept.add(stays)

    sweep(shop, job)


def test_a_block_without_a_savepoint_that_is_broken_off_is_not_stored_by_the_one_around_it(
    shop: Shop,
) -> None:
    def job(_kept: set[int], undone: set[int]) -> None:
        with (
            suppress(TransactionManagementError),
            shop.atomic(),
            suppress(AppError, Strike),
            shop.atomic(savepoint=False),
        ):
            undone.add(shop.insert())
            raise AppError

    sweep(shop, job)


def test_an_application_that_goes_on_after_the_strike_is_told_the_truth(shop: Shop) -> None:
    def job(kept: set[int], undone: set[int]) -> None:
        try:
            with shop.atomic():
                undone.add(shop.insert())
                raise AppError
        except (AppError, Strike):
            # A connection that was just being taken is free when the exception is.
            with suppress(TransactionManagementError, PoolTimeoutError):
                with shop.atomic():
                    stays = shop.insert()
                kept.add(stays)
        with suppress(TransactionManagementError):
            kept.add(shop.insert())

    sweep(shop, job)


def test_a_transaction_by_hand_whose_rollback_is_broken_off_is_not_stored(shop: Shop) -> None:
    def job(kept: set[int], undone: set[int]) -> None:
        connection = shop.site.connection
        try:
            connection.set_autocommit(False)
            kept.add(shop.insert())
            connection.commit()
        except BaseException:
            kept.clear()
            raise
        finally:
            with suppress(TransactionManagementError, connection.Database.Error):
                connection.set_autocommit(True)
        with suppress(Strike):
            connection.set_autocommit(False)
            try:
                undone.add(shop.insert())
            finally:
                connection.rollback()
                connection.set_autocommit(True)

    sweep(shop, job)


def test_autocommit_after_an_exception_does_not_store_half_the_work(shop: Shop) -> None:
    connection = shop.site.connection
    with pytest.raises(TransactionManagementError, match="so it is not stored") as told:
        connection.set_autocommit(False)
        try:
            shop.insert()
            raise AppError
        finally:
            connection.set_autocommit(True)
    assert isinstance(told.value.__context__, AppError)
    assert shop.rows() == set()


def test_a_block_that_a_test_case_keeps_open_is_not_taken_for_one_that_was_broken_off(
    shop: Shop,
) -> None:
    block = shop.atomic()
    block.__enter__()
    kept = shop.insert()
    with shop.atomic():
        shop.insert()
    assert shop.site.connection.in_atomic_block
    block.__exit__(None, None, None)
    assert kept in shop.rows()
