"""``unbroken.sqlalchemy.install()``: the plugin for engines that are made without a word of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from unbroken.errors import ConfigurationError
from unbroken.integrations.sqlalchemy import install as module
from unbroken.integrations.sqlalchemy.install import Installed, install
from unbroken.sqlalchemy import AsyncUnbrokenQueuePool, UnbrokenQueuePool

URL_TEXT = "postgresql+psycopg://u:p@127.0.0.1/d"


@pytest.fixture
def installed() -> Iterator[Installed]:
    with install(leak_after=7) as made:
        yield made
    assert module._installed is None


def test_engines_get_it_wherever_they_are_made(installed: Installed) -> None:
    engine = sa.create_engine(URL_TEXT)
    assert isinstance(engine.pool, UnbrokenQueuePool)
    assert engine.pool._plan.settings.leak_after == 7
    assert isinstance(create_async_engine(URL_TEXT).pool, AsyncUnbrokenQueuePool)
    assert isinstance(sa.engine_from_config({"url": URL_TEXT}, prefix="").pool, UnbrokenQueuePool)
    assert isinstance(sa.create_pool_from_url(URL_TEXT), UnbrokenQueuePool)


def test_an_engine_that_names_it_by_itself_gets_it_once_and_its_own_settings(
    installed: Installed,
) -> None:
    for engine in (
        sa.create_engine(f"{URL_TEXT}?plugin=unbroken"),
        sa.create_engine(URL_TEXT, plugins=["unbroken"]),
        sa.create_engine(URL_TEXT, unbroken={"leak_after": 60.0}),
        sa.create_engine(f"{URL_TEXT}?leak_after=60"),
    ):
        assert engine.pool._plan.settings.leak_after == 60.0  # type: ignore[attr-defined]


def test_pools_of_the_applications_own_choice_stay(
    installed: Installed, recwarn: pytest.WarningsRecorder
) -> None:
    for kind in (sa.NullPool, sa.StaticPool):
        assert type(sa.create_engine(URL_TEXT, poolclass=kind).pool) is kind
    pool = sa.QueuePool(lambda: None)  # type: ignore[arg-type, return-value]
    assert sa.create_engine(URL_TEXT, pool=pool).pool is pool
    assert not recwarn.list


def test_undone_it_changes_no_more_engines() -> None:
    before = URL.__dict__["_instantiate_plugins"]
    made = install()
    assert install(leak_after=5) is made
    assert made.settings == {"leak_after": 5}
    kept = sa.create_engine(URL_TEXT)
    made.undo()
    made.undo()
    assert URL.__dict__["_instantiate_plugins"] is before
    assert type(sa.create_engine(URL_TEXT).pool) is sa.QueuePool
    assert isinstance(kept.pool, UnbrokenQueuePool)


def test_settings_that_cannot_work_are_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'leak_after'"):
        install(leek_after=1)
    assert module._installed is None


def test_another_way_of_making_engines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(URL, "_instantiate_plugins", lambda self, kwargs, more: None)
    with pytest.raises(
        ConfigurationError,
        match="does not know; name the plugin in the URL",
    ):
        install()


def test_a_url_serves_a_bare_driver_and_the_engine(installed: Installed, unbroken_postgres) -> None:  # type: ignore[no-untyped-def]
    """With a word of ours in it, asyncpg would hand it to the server, which refuses it."""
    import asyncpg

    url = unbroken_postgres.url("asyncpg")

    async def both() -> list[int]:
        conn = await asyncpg.connect(url.replace("+asyncpg", ""))
        engine = create_async_engine(url)
        try:
            async with engine.connect() as wrapped:
                return [
                    await conn.fetchval("SELECT 1"),
                    (await wrapped.execute(sa.text("SELECT 2"))).scalar_one(),
                ]
        finally:
            await conn.close()
            await engine.dispose()

    assert asyncio.run(both()) == [1, 2]
