"""What does one request, by the kind of server: unbroken's bodies, and what people use today."""

from __future__ import annotations

from typing import Any

from requesting import (
    AsyncEngine,
    AsyncPool,
    Django,
    Engine,
    Peewee,
    Pool,
    asyncpg_pool,
    bare_psycopg_pool,
    psycopg_pool,
)

#: By name: what opens it, whether it is of asyncio, and beside which others it stands: those of the
#: same driver or framework.
Contenders = dict[str, tuple[Any, bool, str]]

OURS = "unbroken"
MYSQL: Contenders = {
    "unbroken, pymysql": (Pool("pymysql"), False, "pymysql"),
    "unbroken, mysqldb": (Pool("mysqldb"), False, "mysqldb"),
    "unbroken, mysqlconnector": (Pool("mysqlconnector"), False, "mysqlconnector"),
    "unbroken, aiomysql": (AsyncPool("aiomysql"), True, "aiomysql"),
    "unbroken, asyncmy": (AsyncPool("asyncmy"), True, "asyncmy"),
    "unbroken's plugin, pymysql": (Engine("pymysql", plugins=[OURS]), False, "pymysql"),
    "unbroken's plugin, aiomysql": (AsyncEngine("aiomysql", plugins=[OURS]), True, "aiomysql"),
    "unbroken.django": (Django(is_ours=True), False, "Django"),
    "unbroken.django, atomic": (Django(is_ours=True, atomic=True), False, "Django"),
    "unbroken.peewee": (Peewee("unbroken.peewee"), False, "peewee"),
    "unbroken.peewee, atomic": (Peewee("unbroken.peewee", atomic=True), False, "peewee"),
    "SQLAlchemy, pymysql": (Engine("pymysql"), False, "pymysql"),
    "SQLAlchemy, pymysql, pre_ping": (Engine("pymysql", pool_pre_ping=True), False, "pymysql"),
    "SQLAlchemy, aiomysql": (AsyncEngine("aiomysql"), True, "aiomysql"),
    "Django, persistent, atomic": (
        Django(is_ours=False, atomic=True, checks=False),
        False,
        "Django",
    ),
    "Django, health checks": (Django(is_ours=False), False, "Django"),
    "Django, health checks, atomic": (Django(is_ours=False, atomic=True), False, "Django"),
    "playhouse.pool": (Peewee("playhouse.pool"), False, "peewee"),
    "playhouse.pool, atomic": (Peewee("playhouse.pool", atomic=True), False, "peewee"),
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
    "unbroken.django": (Django(is_ours=True), False, "Django"),
    "unbroken.django, atomic": (Django(is_ours=True, atomic=True), False, "Django"),
    "unbroken.peewee": (Peewee("unbroken.peewee", **_PSYCOPG), False, "peewee"),
    "unbroken.peewee, atomic": (
        Peewee("unbroken.peewee", atomic=True, **_PSYCOPG),
        False,
        "peewee",
    ),
    "SQLAlchemy, psycopg": (Engine("psycopg"), False, "psycopg"),
    "SQLAlchemy, psycopg, pre_ping": (Engine("psycopg", pool_pre_ping=True), False, "psycopg"),
    "SQLAlchemy, asyncpg": (AsyncEngine("asyncpg"), True, "asyncpg"),
    "psycopg_pool, check": (psycopg_pool, False, "psycopg"),
    "psycopg_pool": (bare_psycopg_pool, False, "psycopg"),
    "asyncpg.Pool": (asyncpg_pool, True, "asyncpg"),
    "Django, persistent, atomic": (
        Django(is_ours=False, atomic=True, checks=False),
        False,
        "Django",
    ),
    "Django, health checks": (Django(is_ours=False), False, "Django"),
    "Django, health checks, atomic": (Django(is_ours=False, atomic=True), False, "Django"),
    "playhouse.pool": (Peewee("playhouse.pool", **_PSYCOPG), False, "peewee"),
    "playhouse.pool, atomic": (
        Peewee("playhouse.pool", atomic=True, **_PSYCOPG),
        False,
        "peewee",
    ),
}
