"""The plugin for all engines of a process, without a word in their URLs:
``unbroken.sqlalchemy.install()``.

For programs that make their engines by themselves, and for URLs that a bare driver is given, too:
it would refuse our word in them. All of SQLAlchemy's functions that make engines ask the URL for
its plugins; that is where this one is added.
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
#: Settings that SQLAlchemy's own arguments say, too.
_THEIRS = {
    "max_size": ("pool_size", "max_overflow"),
    "acquire_timeout": ("pool_timeout",),
    "reset": ("pool_reset_on_return",),
}

_lock = threading.Lock()
_installed: Installed | None = None


def install(**settings: Any) -> Installed:
    """From now on ``create_engine`` and ``create_async_engine`` make engines that have the plugin,
    wherever they are called.

    *settings*: those of :class:`unbroken.Settings`, for engines that are given none. An engine with
    a pool of its own (``poolclass=NullPool``, ``pool=``) stays as it is, and so do SQLite's, and
    engines made before. Installed again, the new settings count. Returns an object whose ``undo()``
    ends it for engines to come.

    Raises ConfigurationError for settings that cannot work, and where this SQLAlchemy makes its
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
    """What :func:`install` did. As a context manager it is undone at the end."""

    def __init__(self) -> None:
        original = URL.__dict__.get(_SEAM)
        if not inspect.isfunction(original) or list(inspect.signature(original).parameters) != [
            "self",
            "kwargs",
        ]:
            raise ConfigurationError(
                ENGINE_UNKNOWN(
                    f"SQLAlchemy {sqlalchemy.__version__} makes its engines in a way that install()"
                    " does not know; name the plugin in the URL"
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
        """Engines made from now on get the plugin only by name again.

        Those that have it keep it.
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
        """The arguments of an engine, with the plugin among them where it has something to do."""
        in_url = url.query.get("plugin", ())
        named = [*((in_url,) if isinstance(in_url, str) else in_url), *kwargs.get("plugins", ())]
        if _WORD in named or "pool" in kwargs or kwargs.get("poolclass") not in _OURS:
            return kwargs
        given = kwargs.get("unbroken") or {}
        ours = {**self._defaults(url, kwargs), **given} if isinstance(given, Mapping) else given
        return {**kwargs, "plugins": [*kwargs.get("plugins", ()), _WORD], "unbroken": ours}

    def _defaults(self, url: URL, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the settings that neither the engine's URL nor its own arguments say."""
        said = {
            *url.query,
            *(name for name, theirs in _THEIRS.items() if any(each in kwargs for each in theirs)),
        }
        return {name: value for name, value in self.settings.items() if name not in said}
