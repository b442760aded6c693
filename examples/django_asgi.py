"""The site of django_app.py under ASGI, with an async view.

DATABASE_URL=postgresql://app:secret@127.0.0.1/shop uvicorn --workers 2 django_asgi:app
"""

from __future__ import annotations

import django_app
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import path

from unbroken.django import replayable


@replayable
async def items(request: HttpRequest) -> JsonResponse:
    """How many items there are; a POST stores one."""
    if request.method == "POST":
        return await sync_to_async(django_app.add)(request)
    return JsonResponse({"items": await django_app.Item.objects.acount()})


urlpatterns = [path("items", items)]
settings.ROOT_URLCONF = __name__

app = ASGIHandler()
