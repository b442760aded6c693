"""Other pools' words for our settings are known in hints: each is told what it is here."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from unbroken import AsyncPool, ConfigurationError, Pool
from unbroken.hints import nearest, remedy, stray, word_of_others
from unbroken.settings import Settings

NAMES = [each.name for each in fields(Settings)]
URL = "mysql+pymysql://app@db/shop"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "pool_size max_connections maxconnections maximumPoolSize MaxOpenConns maxActive"
            " MAX_CONNS connectionLimit max_pool_size",
            "that is max_size here",
        ),
        ("mincached minimumIdle minPoolSize min_connections", "that is min_size here"),
        ("timeout pool_timeout checkout_timeout waitQueueTimeoutMS", "that is acquire_timeout"),
        ("maxWaitMillis acquireTimeoutMillis acquire_timeout_ms", "in seconds here, not millisec"),
        ("pool_recycle CONN_MAX_AGE stale_timeout", "write math.inf for never, not -1"),
        ("max_lifetime maxLifetime ConnMaxLifetime maxConnectionAge", "that is max_age here"),
        ("max_inactive_connection_lifetime idle_timeout ConnMaxIdleTime", "that is max_idle here"),
        ("max_overflow", "max_size counts all connections (pool_size + max_overflow)"),
        ("maxcached MaxIdleConns REUSE_CONNS", "no limit on the number of idle connections"),
        ("max_queries maxusage", "the pool does not count uses"),
        ("pool_pre_ping testOnBorrow connectionTestQuery CONN_HEALTH_CHECKS", "without a round tr"),
        ("leakDetectionThreshold removeAbandonedTimeout", "that is leak_after here"),
        ("wait_timeout idle_session_timeout", "that is idle_limit here"),
        ("reaping_frequency num_workers", "not needed"),
        ("host database dsn username", "it belongs in the URL"),
        ("sslmode ssl_ca charset read_timeout", "it is an option of the driver"),
        ("maxsize maxSize MAX_SIZE max-size max_sise", "'max_size'?"),
        ("leak_aftr leakAfter lek_after", "did you mean 'leak_after'?"),
        ("max_conections pool_sizes", "that is max_size here"),
        ("frobnicate x", "known: acquire_timeout"),
    ],
)
def test_a_name_that_is_no_setting_is_told_what_it_is_here(words: str, says: str) -> None:
    for name in words.split():
        assert says in remedy(name, NAMES), name


@pytest.mark.parametrize("make", [Pool, AsyncPool])
def test_pools_hint_and_do_not_take_other_words(make: type) -> None:
    url = URL if make is Pool else URL.replace("pymysql", "aiomysql")
    with pytest.raises(ConfigurationError, match="'pool_size'; that is max_size here"):
        make(url, pool_size=5)
    with pytest.raises(ConfigurationError, match=r"'pool_recycle' in the URL .* that is max_age"):
        make(f"{url}?pool_recycle=5")


def test_no_setting_of_ours_is_taken_for_another_pools_word() -> None:
    assert [name for name in NAMES if word_of_others(name)] == []


def words_of(function: object, *left_out: str) -> list[str]:
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in named if name not in {"self", "loop", "echo", *left_out}]


def test_each_word_of_the_pools_that_are_installed_here_is_known() -> None:
    pools = {
        "psycopg_pool": ("ConnectionPool", {"connection_class", "close_returns"}),
        "asyncpg.pool": ("create_pool", {"connection_class", "record_class", "connect"}),
        "aiomysql.pool": ("create_pool", set()),
        "dbutils.pooled_db": ("PooledDB", {"creator"}),
        "playhouse.pool": ("PooledDatabase", set()),
        "sqlalchemy.pool": ("QueuePool", {"creator", "dialect", "events"}),
    }
    unknown = {}
    for module, (name, ours_too) in pools.items():
        found = getattr(pytest.importorskip(module), name)
        for word in words_of(found, *ours_too):
            if word not in NAMES and remedy(word, NAMES).startswith("known:"):
                unknown[module, word] = remedy(word, NAMES)
    assert unknown == {}


def test_a_drivers_option_is_left_to_it_unless_it_is_surely_meant_for_us() -> None:
    takes = {"connect_timeout", "read_timeout", "keepalives_idle", "application_name"}
    for name in (*takes, "frobnicate", "dbname", 5):
        assert stray(name, NAMES, takes) is None
    assert stray("send_timeout", NAMES, takes) == ""
    assert stray("leak_aftr", NAMES, takes) == "did you mean 'leak_after'?"
    assert stray("read_timout", NAMES, takes) is None  # nearer to the driver's
    assert "that is max_size here" in (stray("pool_size", NAMES, takes) or "")
    assert stray("read_timeout", NAMES, set(), others={"read_timeout"}) is None


def test_short_names_are_near_to_less() -> None:
    assert nearest("heel", ["heal"]) == "heal"
    assert nearest("hello", ["heal"]) is None
    assert nearest("nam", ["name"]) == "name"
    assert nearest("b", ["a"]) is None


def test_an_unknown_option_in_the_url_is_not_sent_to_the_url() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown option 'ssl'.*; known: .*ssl_ca"):
        Pool(f"{URL}?ssl=true")
