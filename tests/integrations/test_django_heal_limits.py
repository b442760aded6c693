"""Where a statement of a site's looks like one that may be run again, and must not be."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import Error

from . import test_django_heal
from .test_django_heal import Site

site = test_django_heal.site  # the fixture


def test_a_transaction_that_a_text_of_two_statements_began_is_not_left(site: Site) -> None:
    if site.kind == "mysql":
        pytest.skip("mysqlclient's answers to two statements come one by one")

    def work() -> None:
        with site.connection.cursor() as cursor:
            cursor.execute("BEGIN; INSERT INTO stock (n) VALUES (1)")
            site.proxy.cut_at("SELECT n")
            cursor.execute("SELECT n FROM stock")
            cursor.execute("INSERT INTO stock (n) VALUES (2)")
            cursor.execute("COMMIT")

    with pytest.raises(Error):
        work()
    assert (site.healed, site.rows()) == (0, [])


def test_a_lost_commit_of_what_locked_rows_is_an_error(site: Site) -> None:
    def work() -> None:
        with site.atomic():
            list(site.stock.select_for_update())
            site.proxy.cut_at("COMMIT")

    with pytest.raises(Error):
        work()
    assert site.healed == 0


def test_a_lost_commit_of_a_session_that_a_receiver_made_serializable_is_an_error(
    site: Site,
) -> None:
    if site.kind == "mysql":
        pytest.skip("there the reads are valid when they are answered")
    from django.db.backends.signals import connection_created

    def made(connection: Any, **_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"
            )

    connection_created.connect(made)
    try:
        site.connection.close()
        with pytest.raises(Error), site.atomic():
            list(site.stock.all())
            site.proxy.cut_at("COMMIT")
        assert site.healed == 0
    finally:
        connection_created.disconnect(made)


@pytest.mark.parametrize("before", [True, False])
def test_an_execute_wrapper_that_counts_is_called_once(site: Site, before: bool) -> None:
    seen: list[str] = []

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    site.run("SELECT 1")
    site.proxy.cut_at("INSERT", before=before)
    with site.connection.execute_wrapper(count), site.atomic():
        site.run("INSERT INTO stock (n) VALUES (1)")
    assert (site.healed, site.rows(), len(seen)) == (1, [1], 1)
