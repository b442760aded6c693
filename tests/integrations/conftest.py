"""Django is set up once per process; each test adds its own databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import django
import pytest
from django.conf import settings as site_settings

from unbroken_drill import FaultProxy

if not site_settings.configured:
    site_settings.configure(
        DATABASES={},
        SECRET_KEY="of tests only",
        USE_TZ=True,
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=[],
        MIDDLEWARE=[],
    )
    django.setup()


@pytest.fixture
def settings() -> Iterator[Any]:
    """Django's settings; what a test sets is undone."""
    before = dict(site_settings._wrapped.__dict__)
    yield site_settings
    site_settings._wrapped.__dict__.clear()
    site_settings._wrapped.__dict__.update(before)
    for name in [name for name in site_settings.__dict__ if name != "_wrapped"]:
        site_settings.__dict__.pop(name)


@pytest.fixture
def proxied() -> Iterator[Callable[[Any, str], FaultProxy]]:
    """``proxied(server, protocol)``: a fault proxy before that server."""
    with ExitStack() as stack:
        yield lambda server, protocol: stack.enter_context(
            FaultProxy((server.host, server.port), protocol=protocol)
        )
