"""What both pools do with their arguments before anything is connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unbroken.abc import Target
from unbroken.drivers.url import parse
from unbroken.settings import Settings


def take_settings(
    url: str | Target | None, given: Mapping[str, Any]
) -> tuple[Target | None, dict[str, Any]]:
    """Part a URL's query into the driver's options (they stay) and the pool's settings; keywords
    win over the query.
    """
    if url is None:
        return None, dict(given)
    target = url if isinstance(url, Target) else parse(url)
    ours, theirs = Settings.split(target.options)
    return replace(target, options=theirs), {**Settings.from_text(ours), **given}


def bounded(driver: Any, settings: Settings) -> Settings:
    """The settings within what the driver can do (a private in-memory database cannot be
    shared).
    """
    limit = getattr(driver, "max_size", None)
    return (
        settings
        if limit is None or settings.max_size <= limit
        else settings.changed(max_size=limit, min_size=min(settings.min_size, limit))
    )
