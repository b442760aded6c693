"""A Django site in one file that does not notice when its database goes away for a moment.

    export DATABASE_URL=mysql://app:secret@127.0.0.1/shop
    gunicorn -w 2 -k gthread --threads 4 django_app:app

It is the same site under gunicorn's gthread and gevent workers, with ``--preload``, under Tornado
(django_tornado.py) and under uvicorn (django_asgi.py). ``engine=`` in the URL's query takes
unbroken out, for comparison: ``default``, ``persistent``, ``checked`` (persistent, with health
checks) or ``pool`` (Django's own, for PostgreSQL).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import django
from django.conf import settings


def database(url: str) -> dict[str, Any]:
    """What DATABASES should hold for a URL."""
    parts = urlsplit(url)
    engine = dict(parse_qsl(parts.query)).get("engine", "unbroken")
    kind = "postgresql" if parts.scheme.startswith("postgres") else "mysql"
    given: dict[str, Any] = {
        "ENGINE": f"{'unbroken.django' if engine == 'unbroken' else 'django.db.backends'}.{kind}",
        "NAME": parts.path.lstrip("/"), "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""), "HOST": parts.hostname, "PORT": parts.port,
        "OPTIONS": {},
    }  # fmt: skip
    if engine == "unbroken":
        given["OPTIONS"]["unbroken"] = {"max_size": 5}
    if engine in ("persistent", "checked"):
        given["CONN_MAX_AGE"] = None
        given["CONN_HEALTH_CHECKS"] = engine == "checked"
    if engine == "pool":
        given["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 5}
    return given


DATABASE = database(os.environ["DATABASE_URL"])
UNBROKEN = DATABASE["ENGINE"].startswith("unbroken.")

if (
    DATABASE["ENGINE"].endswith(".mysql")
    and "pymysql" in urlsplit(os.environ["DATABASE_URL"]).scheme
):
    import pymysql

    pymysql.install_as_MySQLdb()  # under gevent: mysqlclient would block the hub

settings.configure(
    DATABASES={"default": DATABASE},
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["unbroken.django.middleware.UnbrokenMiddleware"] if UNBROKEN else [],
    INSTALLED_APPS=["unbroken.django"],
    SECRET_KEY="only of an example",  # noqa: S106 - and known to everybody
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
)
django.setup()

from django.core.handlers.wsgi import WSGIHandler  # noqa: E402 - Django had to be set up first
from django.db import connection, models, transaction  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from unbroken.django import replayable  # noqa: E402


class Item(models.Model):  # type: ignore[misc] # Django has no types
    """One row of the shop.

    The number is the caller's, and nothing stops it from being stored twice.
    """

    id = models.BigAutoField(primary_key=True)
    number = models.IntegerField()

    class Meta:
        """Where it is stored: this file is no app."""

        app_label = "shop"
        db_table = "item"


def make_table() -> None:
    """Under ``--preload`` this warms the pool before the fork, and no harm is done."""
    key = (
        "bigint AUTO_INCREMENT PRIMARY KEY"
        if connection.vendor == "mysql"
        else "bigserial PRIMARY KEY"
    )
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # its IF NOT EXISTS does not keep two workers apart
            cursor.execute("SELECT pg_advisory_lock(1)")
        cursor.execute(f"CREATE TABLE IF NOT EXISTS item (id {key}, number integer NOT NULL)")
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_advisory_unlock(1)")
    connection.close()


with ThreadPoolExecutor(
    1
) as aside:  # uvicorn imports this on its loop's thread, where Django refuses to query
    aside.submit(make_table).result()


@replayable  # what a lost attempt wrote, the database has undone
@transaction.atomic
def add(request: HttpRequest) -> JsonResponse:
    """Store one item."""
    number = int(request.POST["number"])
    Item.objects.create(number=number)
    return JsonResponse({"stored": number})


@replayable
def items(request: HttpRequest) -> JsonResponse:
    """How many items there are; a POST stores one."""
    if request.method == "POST":
        return add(request)
    return JsonResponse({"items": Item.objects.count()})


urlpatterns = [path("items", items)]

app = WSGIHandler()
