"""A SELECT of peewee's that may have written is not asked again by itself when its connection was
lost.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import peewee
import pytest

from unbroken_drill import FaultProxy


def hide(server: Any, is_mysql: bool) -> None:
    """A view ``writing``; each SELECT from it puts a row into ``written``."""
    server.admin("CREATE TABLE written (n INT)")
    if is_mysql:
        server.admin(
            "CREATE FUNCTION put() RETURNS INT BEGIN INSERT INTO written VALUES (1); RETURN 1; END"
        )
    else:
        server.admin(
            "CREATE FUNCTION put() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO"
            " written VALUES (1) RETURNING 1'"
        )
    server.admin("CREATE VIEW writing AS SELECT put() AS n")
    server.admin("CREATE VIEW reading AS SELECT max(n) AS n FROM written")
    if not is_mysql:
        server.admin("GRANT ALL ON writing, reading TO PUBLIC")


def models(db: Any) -> tuple[Any, Any]:
    class Writing(peewee.Model):  # type: ignore[misc] # peewee has no types
        n = peewee.IntegerField()

        class Meta:
            database, primary_key = db, False

    class Reading(Writing):
        pass

    return Writing, Reading


def written(server: Any) -> int:
    return int(server.admin("SELECT count(*) FROM written")[0][0])


@pytest.mark.parametrize("name", ["pymysql", "psycopg2", "psycopg"])
def test_a_lost_select_is_asked_again_unless_it_may_have_written(shops: Any, name: str) -> None:
    shop = shops(name, own=True)
    hide(shop.server, shop.is_mysql)
    with FaultProxy(
        (shop.server.host, shop.server.port), protocol="mysql" if shop.is_mysql else "postgresql"
    ) as proxy:
        db = shop.database()
        db.connect_params["port"] = proxy.port
        writing, reading = models(db)
        proxy.cut_at(re.compile("writing"), before=False)
        with pytest.raises(peewee.OperationalError) as caught:
            list(writing.select(writing.n))
        assert written(shop.server) == 1
        assert any("may write" in note for note in caught.value.__notes__)
        shop.server.admin("DROP VIEW writing")
        cut = proxy.cut_at(re.compile("reading"), before=False)
        assert [row.n for row in reading.select(reading.n)] == [1]
        assert cut.hits == 1


@pytest.mark.parametrize("name", ["pymysql", "psycopg"])
def test_a_select_that_ends_its_session_is_asked_twice(shops: Any, name: str) -> None:
    shop = shops(name, own=True)
    hide(shop.server, shop.is_mysql)
    shop.server.admin("DROP VIEW writing")
    with FaultProxy(
        (shop.server.host, shop.server.port), protocol="mysql" if shop.is_mysql else "postgresql"
    ) as proxy:
        db = shop.database()
        db.connect_params["port"] = proxy.port
        _, reading = models(db)
        cut = proxy.cut_at(re.compile("reading"), times=100)
        with pytest.raises(peewee.OperationalError):
            list(reading.select(reading.n))
        assert cut.hits == 2


def test_a_lost_select_is_asked_again_unless_it_may_have_written_on_asyncio(
    own_async_shop: Any,
) -> None:
    shop = own_async_shop
    hide(shop.server, shop.is_mysql)

    async def main() -> None:
        with shop.proxy() as proxy:
            db = shop.database()
            writing, reading = models(db)
            proxy.cut_at(re.compile("writing"), before=False)
            with pytest.raises(peewee.OperationalError):
                await db.list(writing.select(writing.n))
            assert written(shop.server) == 1
            shop.server.admin("DROP VIEW writing")
            cut = proxy.cut_at(re.compile("reading"), before=False)
            assert [row.n for row in await db.list(reading.select(reading.n))] == [1]
            assert cut.hits == 1
            await db.close_pool()

    asyncio.run(main())
