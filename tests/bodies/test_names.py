"""A setting that stands in the wrong place, misspelled, or in another pool's word is told by every
body when it is made, and no option of a driver is taken for one. No server is needed.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from unbroken import ConfigurationError

pytest.importorskip("sqlalchemy")
import pymongo.errors
from sqlalchemy import create_engine
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.ext.asyncio import create_async_engine

from unbroken.integrations.django import pools as django_pools
from unbroken.integrations.django.where import hosts_of as django_hosts
from unbroken.integrations.web.settings import HttpSettings
from unbroken.mongo import AsyncMongoClient, MongoClient
from unbroken.peewee import PooledMySQLDatabase, PooledPostgresqlDatabase, connect

MYSQL = "mysql+pymysql://app:geheim@127.0.0.1:1/shop?plugin=unbroken"
PSYCOPG = "postgresql+psycopg://app:geheim@127.0.0.1:1/shop?plugin=unbroken"


def refused(says: str, make: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(*args, **kwargs)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("leak_aftr=3", "pymysql has no option 'leak_aftr': did you mean 'leak_after'?"),
        ("pool_size=3", "that is max_size here"),
        ("max_conections=3", "that is max_size here"),
        ("pool_recycle=3", "that is max_age here"),
        ("timeout=3", "that is acquire_timeout here"),
    ],
)
def test_a_stray_in_the_url_of_an_engine(query: str, says: str) -> None:
    refused(says, create_engine, f"{MYSQL}&{query}")
    url = f"{MYSQL}&{query}".replace("pymysql", "aiomysql")
    refused(says.replace("pymysql", "aiomysql"), create_async_engine, url)


def test_a_stray_among_the_arguments_of_an_engine() -> None:
    refused("create_engine() has no argument 'leak_after'", create_engine, MYSQL, leak_after=3)
    refused("that is max_size here", create_engine, MYSQL, max_connections=3)
    refused("connect_args: pymysql", create_engine, MYSQL, connect_args={"leak_after": 3})
    refused("that is max_size here", create_engine, MYSQL, unbroken={"pool_size": 3})
    refused("the name of a setting must be a string", create_engine, MYSQL, unbroken={1: 3})


@pytest.mark.parametrize(
    ("make", "url"),
    [
        (create_engine, f"{MYSQL}&leak_after=3&read_timeout=3&connect_timeout=2&charset=utf8mb4"),
        (create_engine, f"{MYSQL}&frobnicate=3"),  # the driver's to refuse
        (
            create_engine,
            f"{PSYCOPG}&application_name=x&keepalives_idle=3&connect_timeout=2&options=-c%20a%3Db",
        ),
        (create_engine, f"{PSYCOPG}&target_session_attrs=read-write&sslmode=prefer"),
        (
            create_async_engine,
            "postgresql+asyncpg://a@h/d?plugin=unbroken&timeout=2&command_timeout=3"
            "&prepared_statement_cache_size=0",
        ),
        (create_engine, "mysql+mysqlconnector://a@h/d?plugin=unbroken&connection_timeout=3"),
    ],
)
def test_a_drivers_own_options_pass(make: Any, url: str) -> None:
    make(url, pool_size=3, max_overflow=2, pool_recycle=60, pool_pre_ping=True, echo=False)


def test_the_options_of_another_plugin_are_left_to_it() -> None:
    class Another(CreateEnginePlugin):
        def update_url(self, url: Any) -> Any:
            return url.difference_update_query(["timeout"])

    plugins.impls["another"] = lambda: Another
    try:
        engine = create_engine(f"{MYSQL}&plugin=another&timeout=5")
    finally:
        del plugins.impls["another"]
    assert "timeout" not in engine.url.query
    assert "unbroken" in type(engine.pool).__module__


def test_settings_in_the_url_of_sqlite_go_no_further(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = create_engine(f"sqlite:///{tmp_path}/x.db?plugin=unbroken&leak_after=3")
    assert dict(engine.url.query) == {}


def alias(engine: str = "unbroken.django.mysql", **given: Any) -> dict[str, Any]:
    named = {"ENGINE": engine, "NAME": "shop", "HOST": "", "PORT": ""}
    return {**named, "OPTIONS": {}, **given}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"OPTIONS": {"max_size": 5}}, 'settings into OPTIONS["unbroken"]'),
        ({"OPTIONS": {"leak_aftr": 5}}, "did you mean 'leak_after'?"),
        ({"OPTIONS": {"MAX_CONNS": 5}}, "that is max_size here"),
        ({"OPTIONS": {"unbroken": {"pool_size": 5}}}, "that is max_size here"),
        ({"OPTIONS": {"unbroken": {"CONN_MAX_AGE": 5}}}, "that is max_age here"),
        ({"OPTIONS": {"unbroken": {5: 5}}}, "the name of a setting must be a string"),
        ({"OPTIONS": {"unbroken": [5]}}, "must be a dictionary"),
        ({"OPTIONS": "max_size=5"}, "must be a dictionary"),
        ({"UNBROKEN": {"max_size": 5}}, "is outside of OPTIONS"),
        ({"CONN_MAX_AGE": "soon"}, "CONN_MAX_AGE='soon'"),
    ],
)
def test_a_stray_in_djangos_databases(given: dict[str, Any], says: str) -> None:
    for engine in ("unbroken.django.mysql", "unbroken.django.postgresql"):
        refused(says, django_pools.settings_of, alias(engine, **given))


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("mysql", {"charset": "utf8mb4", "init_command": "SET x=1", "read_timeout": 5,
                   "connect_timeout": 3, "isolation_level": "read committed", "ssl": {}}),
        ("postgresql", {"application_name": "x", "keepalives_idle": 5, "connect_timeout": 3,
                        "sslmode": "prefer", "server_side_binding": True, "assume_role": "r",
                        "target_session_attrs": "read-write", "pool": False, "service": "s"}),
    ],
)  # fmt: skip
def test_djangos_own_options_pass(engine: str, options: dict[str, Any]) -> None:
    django_pools.settings_of(alias(f"unbroken.django.{engine}", OPTIONS=options))


def test_a_stray_among_peewees_keywords() -> None:
    refused("did you mean 'leak_after'?", PooledMySQLDatabase, "shop", leak_aftr=3)
    refused("that is max_size here", PooledPostgresqlDatabase, "shop", pool_size=3)
    refused("did you mean 'leak_after'?", connect, "mysql://u:geheim@h/shop?leak_aftr=3")
    refused("max_connections='many'", PooledMySQLDatabase, "shop", max_connections="many")
    refused("timeout=-1", PooledMySQLDatabase, "shop", timeout=-1)


def test_a_port_that_cannot_be_is_told_by_each_framework() -> None:
    refused("the port 99999 is", create_engine, MYSQL.replace(":1/", ":99999/"))
    refused("the port is not", django_hosts, alias(PORT="many"), "mysql")
    refused("the port 0 is", django_hosts, alias(HOST="db", PORT="0"), "mysql")
    refused("the port 99999 is", django_hosts, alias(HOST="db:99999"), "mysql")
    refused("the port 99999 is", PooledMySQLDatabase, "shop", host="db", port=99999)
    refused("the port is not", PooledMySQLDatabase, "shop", port="many")


def test_peewees_own_keywords_pass() -> None:
    PooledMySQLDatabase("shop", charset="utf8", read_timeout=5, connect_timeout=2, sql_mode="ANSI")
    PooledPostgresqlDatabase(
        "shop", application_name="x", keepalives_idle=3, isolation_level=2, prefer_psycopg3=True
    )


@pytest.mark.parametrize("make", [MongoClient, AsyncMongoClient])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max_size", "that is maxPoolSize with MongoDB"),
        ("pool_size", "that is maxPoolSize with MongoDB"),
        ("timeout", "that is waitQueueTimeoutMS with MongoDB (milliseconds)"),
        ("maxPoolSiz", "did you mean 'maxPoolSize'?"),
        ("outage_wiat", "did you mean 'outage_wait'?"),
        ("max_wating", "did you mean 'max_waiting'?"),
        ("leak_after", "have no such setting"),
        ("frobnicate", "docs/mongodb.md"),
    ],
)
def test_a_stray_of_mongodbs_client(make: Any, name: str, says: str) -> None:
    refused(says, make, "mongodb://h/", **{name: 5})
    with pytest.raises(pymongo.errors.ConfigurationError):
        make("mongodb://h/", **{name: 5})


def test_a_stray_in_a_uri_of_mongodb() -> None:
    refused("cannot be set in a URI", MongoClient, "mongodb://h/?outage_wait=3")
    refused("cannot be set in a URI", MongoClient, "mongodb://h/?shed_target=3")
    refused("that is maxPoolSize", MongoClient, "mongodb://h/?max_size=3")
    MongoClient(
        "mongodb://h/?maxPoolSize=3&retryWrites=true&maxIdleTimeMS=4", appname="x", ssl=True
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"outage_wiat": 5}, "did you mean 'outage_wait'?"),
        ({"pool_size": 5}, "that is maxPoolSize"),
        ({"host": "mongodb://h/x?max_size=5"}, "that is maxPoolSize"),
        ({"host": 5}, "host=5 must be a URI"),
    ],
)
def test_a_stray_of_mongoengines(given: dict[str, Any], says: str) -> None:
    pytest.importorskip("mongoengine")
    from unbroken.mongo import connect as connect_engine

    refused(says, connect_engine, "x", alias="a stray", **{"host": "mongodb://h/x", **given})


def test_strays_in_flasks_configuration() -> None:
    flask, extension = pytest.importorskip("flask"), pytest.importorskip("flask_sqlalchemy")
    from unbroken.flask import Unbroken

    for options, says in (
        ({"leak_after": 10}, "create_engine() has no argument 'leak_after'"),
        ({"unbroken": {"pool_size": 10}}, "that is max_size here"),
    ):
        app = flask.Flask("x")
        uri = MYSQL.partition("?")[0]
        app.config.update(SQLALCHEMY_DATABASE_URI=uri, SQLALCHEMY_ENGINE_OPTIONS=options)
        Unbroken(app)
        refused(says, extension.SQLAlchemy, app)


def test_a_pools_setting_given_to_an_application() -> None:
    refused("is a setting of a pool", HttpSettings.of, leak_after=3)
    refused("that is max_size here", HttpSettings.of, pool_size=3)
    refused("did you mean 'methods'?", HttpSettings.of, metods=["GET"])
