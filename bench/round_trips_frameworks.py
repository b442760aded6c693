"""Round trips of a request that does one SELECT in a transaction, by Django and peewee, counted on
the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from measure import Row

from unbroken_drill import FaultProxy
from unbroken_drill.servers import Server

REQUESTS = 20
SELECT = "SELECT n FROM stock"
#: one way, in seconds: what is sent apart is counted apart
FAR = 0.005


def rows(server: Server, *, mysql: bool) -> list[Row]:
    """Each framework over a pool of ours, and over what it has itself."""
    kind = "mysql" if mysql else "postgresql"
    kept: dict[str, Any] = {"CONN_MAX_AGE": None}
    one: dict[str, Any] = {"OPTIONS": {"unbroken": {"max_size": 1}}}
    theirs = f"django.db.backends.{kind}"
    found = [
        _django("unbroken.django", server, f"unbroken.django.{kind}", one),
        _django("Django, CONN_MAX_AGE=None", server, theirs, kept),
        _django("Django, … and checks", server, theirs, {**kept, "CONN_HEALTH_CHECKS": True}),
    ]
    import playhouse.pool

    import unbroken.peewee

    name = "PooledMySQLDatabase" if mysql else "PooledPostgresqlDatabase"
    for label, module in (("unbroken.peewee", unbroken.peewee), ("peewee", playhouse.pool)):
        found.append(_peewee(label, server, getattr(module, name), mysql=mysql))
    return found


@contextlib.contextmanager
def _before(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy((server.host, server.port)) as proxy:
        yield proxy


def _counted(name: str, proxy: FaultProxy, request: Callable[[], None]) -> Row:
    for _ in range(REQUESTS):
        request()
    proxy.latency(FAR)
    request()
    before = proxy.round_trips
    for _ in range(REQUESTS):
        request()
    return Row(name, (proxy.round_trips - before) / REQUESTS)


def _django(name: str, server: Server, engine: str, more: dict[str, Any]) -> Row:
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={}, SECRET_KEY="of measurements only", USE_TZ=True)
        django.setup()
    from django.db import connections, transaction

    given = {
        "ENGINE": engine, "NAME": server.database, "USER": server.user,
        "PASSWORD": server.password, "HOST": server.host, **more,
    }  # fmt: skip
    with _before(server) as proxy:
        alias = f"trips{proxy.port}"
        given["PORT"] = proxy.port
        connections.settings[alias] = connections.configure_settings({"default": {}, "x": given})[
            "x"
        ]
        connection = connections[alias]

        def request() -> None:
            connection.close_if_unusable_or_obsolete()
            connection.health_check_done = False  # as at the beginning of each request
            with transaction.atomic(using=alias), connection.cursor() as cursor:
                cursor.execute(SELECT)
                cursor.fetchall()
            connection.close_if_unusable_or_obsolete()

        try:
            return _counted(f"{name}, atomic", proxy, request)
        finally:
            connection.close()
            if "unbroken" in engine:
                connection.close_pool()
            connections.settings.pop(alias)


def _peewee(name: str, server: Server, kind: Any, *, mysql: bool) -> Row:
    with _before(server) as proxy:
        extra = {} if mysql else {"prefer_psycopg3": True}
        db = kind(
            server.database, max_connections=1, host=server.host, port=proxy.port,
            user=server.user, password=server.password, **extra,
        )  # fmt: skip

        def request() -> None:
            with db.connection_context(), db.atomic():
                db.execute_sql(SELECT).fetchall()

        try:
            return _counted(f"{name}, atomic()", proxy, request)
        finally:
            db.close_all()
