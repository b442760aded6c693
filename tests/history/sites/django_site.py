"""A Django site whose views write one row each, in several manners.

``app`` is for WSGI, ``asgi`` for ASGI.
"""

from __future__ import annotations

import os
from typing import Any

import django
from django.conf import settings

from unbroken.drivers.url import parse

target = parse(os.environ["DATABASE_URL"])
ALIAS: dict[str, Any] = {
    "ENGINE": f"unbroken.django.{'postgresql' if target.backend == 'postgresql' else 'mysql'}",
    "NAME": target.database, "USER": target.user, "PASSWORD": target.password, "HOST": target.host,
    "PORT": target.port, "ATOMIC_REQUESTS": True,
    "OPTIONS": {"unbroken": {"max_size": 4, "acquire_timeout": 1.0, "outage_wait": 0.05}},
}  # fmt: skip
settings.configure(
    DATABASES={"default": ALIAS},
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["unbroken.django.middleware.UnbrokenMiddleware"],
    INSTALLED_APPS=["unbroken.django"],
    SECRET_KEY="only of tests",
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
)
django.setup()

from django.core.handlers.asgi import ASGIHandler  # noqa: E402 - Django had to be set up first
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.db import models, transaction  # noqa: E402
from django.http import HttpRequest, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from unbroken.django import replayable  # noqa: E402


class Order(models.Model):  # type: ignore[misc] # Django has no types
    """A row. Nothing in the database stops a number from being stored twice."""

    key = models.BigAutoField(primary_key=True)
    n = models.BigIntegerField()

    class Meta:
        """Where it is stored: this file is no app."""

        app_label = "shop"
        db_table = "orders"


def atomic(request: HttpRequest, n: int) -> JsonResponse:
    """ATOMIC_REQUESTS commits when the view is done."""
    order = Order.objects.create(n=n)
    return JsonResponse({"key": order.pk, "stored": Order.objects.filter(n=n).count()})


@transaction.non_atomic_requests
def reads(request: HttpRequest, n: int) -> JsonResponse:
    """Commit a block, then read."""
    with transaction.atomic():
        order = Order.objects.create(n=n)
    order.refresh_from_db()
    return JsonResponse({"key": order.pk})


@transaction.non_atomic_requests
def autocommit(request: HttpRequest, n: int) -> JsonResponse:
    """A statement that is a transaction by itself, then another one."""
    Order.objects.create(n=n)
    return JsonResponse({"stored": Order.objects.filter(n=n).count()})


@transaction.non_atomic_requests
def deadline(request: HttpRequest, n: int) -> JsonResponse:
    """A unit of work that may run out of time after it committed."""

    @replayable(deadline=0.3)
    def work() -> int:
        with transaction.atomic():
            Order.objects.create(n=n)
        return int(Order.objects.filter(n=n).count())

    return JsonResponse({"stored": work()})


VIEWS = (atomic, reads, autocommit, deadline)
urlpatterns = [
    path("healthz", lambda _request: HttpResponse("ok")),
    *(path(f"{view.__name__}/<int:n>", view) for view in VIEWS),
    *(path(f"replayed-{view.__name__}/<int:n>", replayable(view)) for view in VIEWS),
]

app = WSGIHandler()
asgi = ASGIHandler()
