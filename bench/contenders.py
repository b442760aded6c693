"""What does one request, by the kind of server: unbroken's bodies, and what people use today."""

from __future__ import annotations

from functools import partial
from typing import Any

from requesting import (
    AsyncEngine,
    AsyncPool,
    Django,
    Engine,
    Peewee,
    Pool,
    asyncpg_pool,
    psycopg_pool,
)

#: By name: what opens it, whether it is of asyncio, and beside which others it stands: those of the
#: same driver or framework.
Contenders = dict[str, tuple[Any, bool, str]]

OURS = "unbroken"


def _our_frameworks(**peewee: Any) -> Contenders:
    """unbroken's bodies for Django and peewee, as far as they are the same with each server."""
    return {
        "unbroken.django": (Django(is_ours=True), False, "Django"),
        "unbroken.django, atomic": (Django(is_ours=True, atomic=True), False, "Django"),
        "unbroken.peewee": (Peewee("unbroken.peewee", **peewee), False, "peewee"),
        "unbroken.peewee, atomic": (
            Peewee("unbroken.peewee", atomic=True, **peewee),
            False,
            "peewee",
        ),
    }


def _frameworks(**peewee: Any) -> Contenders:
    """What people use with them today."""
    return {
        "Django, persistent, atomic": (
            Django(is_ours=False, atomic=True, checks=False),
            False,
            "Django",
        ),
        "Django, health checks": (Django(is_ours=False), False, "Django"),
        "Django, health checks, atomic": (Django(is_ours=False, atomic=True), False, "Django"),
        "playhouse.pool": (Peewee("playhouse.pool", **peewee), False, "peewee"),
        "playhouse.pool, atomic": (
            Peewee("playhouse.pool", atomic=True, **peewee),
            False,
            "peewee",
        ),
    }


MYSQL: Contenders = {
    "unbroken, pymysql": (Pool("pymysql"), False, "pymysql"),
    "unbroken, mysqldb": (Pool("mysqldb"), False, "mysqldb"),
    "unbroken, mysqlconnector": (Pool("mysqlconnector"), False, "mysqlconnector"),
    "unbroken, aiomysql": (AsyncPool("aiomysql"), True, "aiomysql"),
    "unbroken, asyncmy": (AsyncPool("asyncmy"), True, "asyncmy"),
    "unbroken's plugin, pymysql": (Engine("pymysql", plugins=[OURS]), False, "pymysql"),
    "unbroken's plugin, aiomysql": (AsyncEngine("aiomysql", plugins=[OURS]), True, "aiomysql"),
    **_our_frameworks(),
    "SQLAlchemy, pymysql": (Engine("pymysql"), False, "pymysql"),
    "SQLAlchemy, pymysql, pre_ping": (Engine("pymysql", pool_pre_ping=True), False, "pymysql"),
    "SQLAlchemy, aiomysql": (AsyncEngine("aiomysql"), True, "aiomysql"),
    **_frameworks(),
}
_PSYCOPG = {"prefer_psycopg3": True}
POSTGRESQL: Contenders = {
    "unbroken, psycopg": (Pool("psycopg"), False, "psycopg"),
    "unbroken, psycopg, async": (AsyncPool("psycopg"), True, "psycopg"),
    "unbroken, asyncpg": (AsyncPool("asyncpg"), True, "asyncpg"),
    "unbroken, pg8000": (Pool("pg8000"), False, "pg8000"),
    "unbroken, psycopg2": (Pool("psycopg2"), False, "psycopg2"),
    "unbroken's plugin, psycopg": (Engine("psycopg", plugins=[OURS]), False, "psycopg"),
    "unbroken's plugin, psycopg, async": (
        AsyncEngine("psycopg", plugins=[OURS]),
        True,
        "psycopg",
    ),
    "unbroken's plugin, asyncpg": (AsyncEngine("asyncpg", plugins=[OURS]), True, "asyncpg"),
    **_our_frameworks(**_PSYCOPG),
    "SQLAlchemy, psycopg": (Engine("psycopg"), False, "psycopg"),
    "SQLAlchemy, psycopg, pre_ping": (Engine("psycopg", pool_pre_ping=True), False, "psycopg"),
    "SQLAlchemy, asyncpg": (AsyncEngine("asyncpg"), True, "asyncpg"),
    "psycopg_pool, check": (psycopg_pool, False, "psycopg"),
    "psycopg_pool": (partial(psycopg_pool, checks=False), False, "psycopg"),
    "asyncpg.Pool": (asyncpg_pool, True, "asyncpg"),
    **_frameworks(**_PSYCOPG),
}
