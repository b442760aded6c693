"""The plugin: ``create_engine(url, plugins=["unbroken"])``, or ``?plugin=unbroken`` in the URL."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import pool as sqla_pool
from sqlalchemy.engine import URL, CreateEnginePlugin, Engine

from unbroken.brain.stats import Stats
from unbroken.errors import ConfigurationError
from unbroken.integrations.sqlalchemy.async_pool import AsyncUnbrokenQueuePool
from unbroken.integrations.sqlalchemy.hooks import Hooks
from unbroken.integrations.sqlalchemy.plan import log, open_plan
from unbroken.integrations.sqlalchemy.pool import UnbrokenQueuePool
from unbroken.integrations.sqlalchemy.where import aim, needs_one_host, with_one_host
from unbroken.messages.integrations import ENGINE_NOT_OURS, POOLED_AS_SQLALCHEMY_DOES
from unbroken.settings import Settings

_SETTINGS = frozenset(each.name for each in fields(Settings)) - {"connect_timeout"}
#: Databases without a server, whose pools SQLAlchemy chooses with care: they stay unchanged.
_WITHOUT_SERVER = {"sqlite"}


class Plugin(CreateEnginePlugin):
    """Gives an engine an unbroken pool, and hooks where unbroken knows more than SQLAlchemy's
    dialects.

    Settings are those of :class:`unbroken.Settings`, in ``create_engine(..., unbroken={...})`` or
    in the URL's query. The dictionary can also contain ``observers``. SQLAlchemy's own pool
    arguments keep their meaning. Raises ConfigurationError for a setting that cannot work.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self._names: tuple[str, ...] = ()
        #: the engine's, if SQLAlchemy gets a simpler one
        self._url: URL | None = None
        self._plan = None
        if url.get_backend_name() in _WITHOUT_SERVER or "pool" in kwargs:
            kwargs.pop("unbroken", None)
            self._names = tuple(name for name in url.query if name in _SETTINGS)
            return
        is_async = bool(kwargs.get("_is_async", False))
        ours = AsyncUnbrokenQueuePool if is_async else UnbrokenQueuePool
        given = kwargs.get("poolclass")
        if given in (None, sqla_pool.QueuePool, sqla_pool.AsyncAdaptedQueuePool):
            kwargs["poolclass"] = given = ours
        is_ours = issubclass(given, (UnbrokenQueuePool, AsyncUnbrokenQueuePool))
        self._plan, self._names = open_plan(url, kwargs, is_async=is_async, is_ours=is_ours)
        if not is_ours:
            _say_what_stays(given)

    def update_url(self, url: URL) -> URL:
        """Return the URL without unbroken's own options. Of several hosts SQLAlchemy sees the
        first.
        """
        url = url.difference_update_query(self._names)
        hosts = () if self._plan is None else self._plan.hosts
        if not needs_one_host(url, hosts):
            return url
        self._url = url
        return with_one_host(url, hosts)

    def handle_pool_kwargs(self, pool_cls: type[sqla_pool.Pool], pool_args: dict[str, Any]) -> None:
        """Pass the plan to our pool."""
        if self._plan is not None and issubclass(
            pool_cls, (UnbrokenQueuePool, AsyncUnbrokenQueuePool)
        ):
            pool_args["unbroken"] = self._plan

    def engine_created(self, engine: Engine) -> None:
        """Add hooks where SQLAlchemy classifies errors, ends transactions and sends statements."""
        if self._plan is None:
            return
        if self._url is not None:
            engine.url = self._url
        if self._plan.aims:
            aim(engine, self._plan.driver)
        Hooks(engine, self._plan).install()


def _say_what_stays(given: type[sqla_pool.Pool]) -> None:
    """Log, once in a process for each class, that a pool stays SQLAlchemy's."""
    name = given.__name__
    if issubclass(given, sqla_pool.NullPool):
        why = (
            "it opens a connection for each use and keeps none, so unbroken has none to replace."
            " That is right for short commands, such as Alembic's"
        )
    elif issubclass(given, (sqla_pool.StaticPool, sqla_pool.SingletonThreadPool)):
        why = "it keeps one connection to itself, for tests or for each thread"
    else:
        why = "only connections of unbroken's own pool are checked, replaced and run again"
    log.info(
        "pool stays",
        POOLED_AS_SQLALCHEMY_DOES(
            f"poolclass={name} stays as you gave it: {why}. Remove poolclass to use unbroken's pool"
        ),
        about=name,
        once=True,
    )


def stats(engine: Any) -> Stats:
    """Return the numbers of *engine*'s pool in this process at this moment, like
    :meth:`unbroken.Pool.stats`.

    *engine* is an Engine or an AsyncEngine. Raises ConfigurationError for an engine without an
    unbroken pool.
    """
    pool = getattr(engine, "sync_engine", engine).pool
    if not isinstance(pool, (UnbrokenQueuePool, AsyncUnbrokenQueuePool)):
        raise ConfigurationError(
            ENGINE_NOT_OURS(
                f"{engine!r} does not use an unbroken pool; create it with create_engine(...,"
                " plugins=['unbroken'])"
            )
        )
    return pool.unbroken_stats()
