"""eventlet: one clear refusal, where a pool or an engine is made, and where the patching came after
it.

eventlet itself is not installed for the tests: what counts is what its patcher says.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import unbroken
from unbroken import ConfigurationError

URL = "postgresql+psycopg://app@127.0.0.1:1/shop"


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """What eventlet's patcher has patched; nothing yet."""
    done: dict[str, bool] = {}
    monkeypatch.setitem(sys.modules, "eventlet.patcher", SimpleNamespace(already_patched=done))
    return done


def engine(url: str) -> Any:
    import sqlalchemy

    return sqlalchemy.create_engine(url, plugins=["unbroken"])


def database(url: str) -> Any:
    import unbroken.peewee

    return unbroken.peewee.connect(url).pool


@pytest.mark.parametrize("make", [unbroken.Pool, unbroken.AsyncPool, engine, database])
@pytest.mark.parametrize("part", ["socket", "select", "thread"])
def test_a_pool_is_refused_where_eventlet_has_patched_what_it_waits_by(
    make: Any, part: str, patched: dict[str, bool]
) -> None:
    patched[part] = True
    url = URL.replace("psycopg", "asyncpg") if make is unbroken.AsyncPool else URL
    with pytest.raises(ConfigurationError, match=r"eventlet.*gevent or asyncio"):
        make(url)


def test_a_pool_that_was_made_before_says_so_at_its_first_connection(
    patched: dict[str, bool],
) -> None:
    pool, made = unbroken.Pool(URL), engine(URL)
    patched["socket"] = True
    for use in (pool.acquire, made.connect):
        with pytest.raises(ConfigurationError, match="eventlet"):
            use()


def test_eventlet_may_be_imported(patched: dict[str, bool]) -> None:
    patched["os"] = True
    unbroken.Pool(URL).close()
    engine(URL).dispose()
