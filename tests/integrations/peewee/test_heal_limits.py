"""Where a statement of a peewee database looks like one that may be run again, and must not be."""

from __future__ import annotations

from typing import Any

import pytest

from . import test_heal
from .test_heal import BEFORE, LOST, Site

site = test_heal.site  # the fixture


def lost_write(site: Site, n: int, *, before: bool, raw: bool = False) -> None:
    site.proxy.cut_at("INSERT", before=before)
    if raw:
        site.db.execute_sql(f"INSERT INTO {site.name} (n) VALUES ({n})")
    else:
        site.model.create(n=n)


@BEFORE
@pytest.mark.parametrize("raw", [True, False])
def test_a_write_in_manual_commit_without_a_begin_is_not_sent_again(
    site: Site, before: bool, raw: bool
) -> None:
    if site.is_async:
        pytest.skip("pwasyncio has no such block")

    def work() -> None:
        with site.db.manual_commit():
            lost_write(site, 1, before=before, raw=raw)

    with pytest.raises(LOST):
        site.run(work)
    assert (site.healed, site.rows()) == (0, [] if before else [1])


@BEFORE
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("how", ["commit", "rollback", "a text"])
def test_a_write_after_the_end_of_its_transaction_is_not_sent_again(
    site: Site, before: bool, first: bool, how: str
) -> None:
    def work() -> None:
        with site.db.atomic() as txn:
            if not first:
                site.model.create(n=1)
            if how == "a text":
                site.db.execute_sql("COMMIT")
            else:
                getattr(txn, how)(begin=False)
            lost_write(site, 2, before=before)

    with pytest.raises(LOST):
        site.run(work)
    stored = [] if first or how == "rollback" else [1]
    assert (site.healed, site.rows()) == (0, stored if before else [*stored, 2])


def test_a_lost_commit_of_what_locked_rows_is_an_error(site: Site) -> None:
    def work() -> None:
        with site.db.atomic():
            list(site.model.select().for_update())
            site.proxy.cut_at("COMMIT")

    with pytest.raises(LOST):
        site.run(work)
    assert site.healed == 0


@BEFORE
def test_a_lost_commit_on_a_session_that_was_made_serializable_is_an_error(
    site: Site, before: bool
) -> None:
    if site.is_mysql:
        pytest.skip("there the reads are valid when they are answered")

    def work() -> None:
        site.db.connect()
        site.db.execute_sql(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"
        )
        with site.db.atomic():
            list(site.model.select())
            site.proxy.cut_at("COMMIT", before=before)

    with pytest.raises(LOST):
        site.run(work)
    assert site.healed == 0


def test_a_transaction_that_a_text_of_two_statements_began_is_not_left(site: Site) -> None:
    if site.driver not in ("psycopg", "psycopg2"):
        pytest.skip("this driver sends one statement at a time")

    def work() -> Any:
        with site.db.connection_context():
            site.db.execute_sql(f"BEGIN; INSERT INTO {site.name} (n) VALUES (1)")
            site.cut_select()
            list(site.model.select())
            site.model.create(n=2)
            site.db.execute_sql("COMMIT")

    with pytest.raises(LOST):
        site.run(work)
    assert (site.healed, site.rows()) == (0, [])
