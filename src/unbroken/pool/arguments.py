"""Argument handling that both pools share, before any connect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unbroken.abc import Target
from unbroken.drivers.url import parse
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.messages.configuration import BAD_SETTING, SETTING_TWICE
from unbroken.messages.processes import NOT_FOR_ANOTHER_PROCESS
from unbroken.pool.ending import refuse_at_the_end
from unbroken.pool.unsupported import refuse_eventlet
from unbroken.settings import Settings

#: libpq's names for our settings.
THEIR_NAMES = {"target_session_attrs": "target"}


def take_settings(
    url: str | Target | None, given: Mapping[str, Any]
) -> tuple[Target | None, dict[str, Any]]:
    """Split a URL's query into the driver's options (they stay) and the pool's settings. Keywords
    override the query.
    """
    refuse_at_the_end("a database")
    refuse_eventlet()
    given = by_our_names(given)
    if url is None:
        return None, given
    target = url if isinstance(url, Target) else parse(url)
    ours, theirs = Settings.split(by_our_names(target.options))
    return replace(target, options=theirs), {**Settings.from_text(ours), **given}


def by_our_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of *options* in which settings with another library's name have ours. Raises
    ConfigurationError for a name that is no text, or a setting given twice.
    """
    found = dict(options)
    for name in found:
        if not isinstance(name, str):
            raise ConfigurationError(
                BAD_SETTING(f"the name of a setting must be a string, not {shown(name)}")
            )
    for theirs, ours in THEIR_NAMES.items():
        if theirs not in found:
            continue
        if ours in found:
            raise ConfigurationError(
                SETTING_TWICE(f"{ours} and {theirs} are the same setting; give only one of them")
            )
        found[ours] = found.pop(theirs)
    return found


def bounded(driver: Any, settings: Settings) -> Settings:
    """The settings, limited to the driver's abilities (a private in-memory database cannot be
    shared).
    """
    limit = getattr(driver, "max_size", None)
    return (
        settings
        if limit is None or settings.max_size <= limit
        else settings.changed(max_size=limit, min_size=min(settings.min_size, limit))
    )


def not_picklable(what: str) -> TypeError:
    """The error for an attempt to pickle *what*, a pool."""
    return TypeError(
        NOT_FOR_ANOTHER_PROCESS(
            f"{what} cannot be pickled; pass the URL to the other process, and create a pool there"
        )
    )
