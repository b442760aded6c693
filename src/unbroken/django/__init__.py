"""``unbroken.django``: engines, middleware and checks for Django (docs/django.md)."""

from __future__ import annotations

from typing import Any

from unbroken.extras import needed

__all__ = ["pools", "replayable"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: settings name the engines before Django is set up."""
    if name == "replayable":
        with needed("django", "django", extra="django"):
            from unbroken.integrations.django.units import replayable

        return replayable
    if name == "pools":
        with needed("django", "django", extra="django"):
            from unbroken.integrations.django.pools import pools

        return pools
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
