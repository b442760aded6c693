"""The plugin for all engines of a process, without a change in their URLs:
``unbroken.sqlalchemy.install()``.

It serves programs that create their engines by themselves. It also serves URLs that a bare driver
gets, too, which would refuse the plugin's name in them. All of SQLAlchemy's functions that create
engines ask the URL for its plugins. That is where this plugin is added.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import sqlalchemy
from sqlalchemy import pool as sqla_pool
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import URL

from unbroken.errors import ConfigurationError
from unbroken.messages.integrations import ENGINE_UNKNOWN
from unbroken.settings import Settings

_SEAM = "_instantiate_plugins"
_WORD = "unbroken"
_OURS = (None, sqla_pool.QueuePool, sqla_pool.AsyncAdaptedQueuePool)
#: Settings that SQLAlchemy's own arguments also set.
_THEIRS = {
    "max_size": ("pool_size", "max_overflow"),
    "acquire_timeout": ("pool_timeout",),
    "reset": ("pool_reset_on_return",),
}

_lock = threading.Lock()
_installed: Installed | None = None


def install(**settings: Any) -> Installed:
    """Make every ``create_engine`` and ``create_async_engine`` call from now on create an engine
    that has the plugin.

    *settings*: those of :class:`unbroken.Settings`, for engines that set none. An engine with a
    pool of its own (``poolclass=NullPool``, ``pool=``) stays unchanged, and so do SQLite's, and
    engines created before. After a second call the new settings apply. Returns an object whose
    ``undo()`` ends it for later engines.

    Raises ConfigurationError for settings that cannot work, and if this SQLAlchemy creates its
    engines in an unknown way.
    """
    global _installed
    Settings.of(**settings)
    with _lock:
        if _installed is None:
            _installed = Installed()
        _installed.settings = settings
        return _installed


class Installed:
    """The result of :func:`install`. As a context manager it is undone at the end."""

    def __init__(self) -> None:
        original = URL.__dict__.get(_SEAM)
        if not inspect.isfunction(original) or list(inspect.signature(original).parameters) != [
            "self",
            "kwargs",
        ]:
            raise ConfigurationError(
                ENGINE_UNKNOWN(
                    f"SQLAlchemy {sqlalchemy.__version__} creates its engines in a way that"
                    " install() does not know; name the plugin in the URL"
                )
            )
        self.settings: dict[str, Any] = {}
        self._original = original
        plugins.register(_WORD, "unbroken.integrations.sqlalchemy", "Plugin")

        def asked(url: URL, kwargs: Mapping[str, Any]) -> Any:
            return original(url, self._with_ours(url, kwargs))

        self._asked = asked
        setattr(URL, _SEAM, asked)

    def undo(self) -> None:
        """Give the plugin to later engines only by name again.

        Engines that have it keep it.
        """
        global _installed
        with _lock:
            if URL.__dict__.get(_SEAM) is self._asked:
                setattr(URL, _SEAM, self._original)
            if _installed is self:
                _installed = None

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _with_ours(self, url: URL, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of an engine, with the plugin among them if it has something to
        do.
        """
        in_url = url.query.get("plugin", ())
        named = [*((in_url,) if isinstance(in_url, str) else in_url), *kwargs.get("plugins", ())]
        if _WORD in named or "pool" in kwargs or kwargs.get("poolclass") not in _OURS:
            return kwargs
        given = kwargs.get("unbroken") or {}
        ours = {**self._defaults(url, kwargs), **given} if isinstance(given, Mapping) else given
        return {**kwargs, "plugins": [*kwargs.get("plugins", ()), _WORD], "unbroken": ours}

    def _defaults(self, url: URL, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that neither the engine's URL nor its own arguments give."""
        said = {
            *url.query,
            *(name for name, theirs in _THEIRS.items() if any(each in kwargs for each in theirs)),
        }
        return {name: value for name, value in self.settings.items() if name not in said}
