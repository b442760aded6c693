"""One pool per database alias and process, shared by its threads, greenlets and requests."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS, RAN_DB_VERSION_CHECK
from django.db.utils import Error

from unbroken.abc import Target
from unbroken.drivers._mysql_reset import sets_nothing_else
from unbroken.errors import ConfigurationError
from unbroken.pool.state import PoolState, state_of
from unbroken.settings import Settings
from unbroken.sync import Pool


class _Pool(Pool):
    """Django's cursors tell what is left on a session, so its statements need not be followed."""

    def _new_state(self) -> PoolState:
        state = super()._new_state()
        state.follow_sessions(False)
        return state


class Source:
    """A pool, and what is known of the server behind it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.facts: dict[
            str, Any
        ] = {}  #: what Django asks a server once per wrapper, that is, per thread


_sources: dict[tuple[Any, ...], Source] = {}


def source_of(wrapper: Any) -> Source:
    """The pool for *wrapper*'s alias and settings, made when it is first asked for.

    Raises ImproperlyConfigured.
    """
    key = _key(wrapper)
    source = _sources.get(key)
    if source is None:
        made = Source(_make(wrapper))
        source = _sources.setdefault(key, made)  # no lock: a fork would copy a held one
        if source is not made:
            made.pool.close(0)
    return source


def is_pooled(wrapper: Any) -> bool:
    """Whether *wrapper* takes its connections from a pool: all but those for creating databases."""
    return bool(wrapper.alias != NO_DB_ALIAS)


def pools() -> dict[str, Pool]:
    """The pools of this process by database alias, as far as they have been used."""
    return {key[0]: source.pool for key, source in list(_sources.items())}


def close_pools(alias: str) -> None:
    """Close the pools of *alias*: before its database is dropped or copied, or when its settings
    changed.
    """
    for key in [key for key in list(_sources) if key[0] == alias]:
        source = _sources.pop(key, None)
        if source is not None:
            source.pool.close(0)


def close_database(name: str, wrapper: Any) -> None:
    """Close the pools of every alias that leads to a database *name* of *wrapper*'s vendor: it is
    about to be dropped or copied.

    Hosts and ports are not compared, since one server has several names. A pool of the same name
    on another server only connects again. What other threads hold at rest is closed, too.
    """
    for key in [k for k in list(_sources) if k[2] == name and k[1].vendor == wrapper.vendor]:
        source = _sources.pop(key, None)
        if source is not None:
            for entry in list(state_of(source.pool).in_use.values()):
                ask = entry.recall()
                if ask is not None:
                    ask()
            source.pool.close(0)


def settings_of(settings_dict: dict[str, Any]) -> Settings:
    """The pool's settings: those in ``OPTIONS["unbroken"]``; CONN_MAX_AGE gives the default of
    ``max_age``.

    Raises ConfigurationError.
    """
    given = settings_dict["OPTIONS"].get("unbroken") or {}
    if not isinstance(given, dict):
        raise ConfigurationError(
            f'OPTIONS["unbroken"]={given!r} must be a dictionary of settings, such as'
            ' {"max_size": 5}'
        )
    age = settings_dict.get("CONN_MAX_AGE")
    return Settings.of(**{**({"max_age": float(age)} if age else {}), **given})


def _key(wrapper: Any) -> tuple[Any, ...]:
    given = wrapper.settings_dict
    return (
        wrapper.alias, type(wrapper), given["NAME"], given["USER"], given["PASSWORD"],
        given["HOST"], given["PORT"], given.get("CONN_MAX_AGE"), given["AUTOCOMMIT"],
        wrapper.timezone_name, repr(given["OPTIONS"]),
    )  # fmt: skip


def _make(wrapper: Any) -> Pool:
    given = {**wrapper.settings_dict, "OPTIONS": dict(wrapper.settings_dict["OPTIONS"])}
    cls, alias = type(wrapper), wrapper.alias
    try:
        settings = settings_of(given)
        chosen = dict(given["OPTIONS"].get("unbroken") or {})
        # What a user leaves is known from Django's cursors: the session is reset when it goes back,
        # but only where it is due.
        reset = "session" if settings.reset == "rollback" else settings.reset
        pool = _Pool(
            _target(wrapper, given),
            connect=lambda: _open(cls, given, alias),
            driver=wrapper.unbroken_driver(),
            **{
                **chosen,
                "max_age": settings.max_age,
                "name": settings.name or alias,
                "reset": reset,
            },
        )
    except ConfigurationError as exc:
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]: {exc}") from exc
    pool._driver.sets_only = _sets_only(cls, given["OPTIONS"])
    return pool


def _sets_only(cls: type, options: dict[str, Any]) -> bool:
    """Whether :func:`_open` changes nothing of a new session but its settings: no code but Django's
    and ours takes part.
    """
    foreign = any(not each.__module__.startswith(_OWN) for each in cls.__mro__[:-1])
    return not foreign and sets_nothing_else(options)


_OWN = ("django.db.", "unbroken.")


def _target(wrapper: Any, given: dict[str, Any]) -> Target:
    """Where the settings lead, for messages and for what the pools of one server share."""
    options = given["OPTIONS"]
    host = given["HOST"] or options.get("host") or None
    return Target(
        scheme=wrapper.vendor,
        backend=wrapper.vendor,
        host=None if host is None or host.startswith("/") else host,
        port=int(given["PORT"]) if str(given["PORT"] or "").isdigit() else None,
        unix_socket=(
            host if host is not None and host.startswith("/") else options.get("unix_socket")
        ),
        user=given["USER"] or None,
        password=given["PASSWORD"] or None,
        database=str(given["NAME"]) if given["NAME"] else None,
    )


def _open(cls: Any, settings_dict: dict[str, Any], alias: str) -> Any:
    """A new session, set up as Django sets up its own. Runs on a thread of the pool's."""
    wrapper = cls(settings_dict, alias)
    wrapper.unbroken_bare = True
    seen = alias in RAN_DB_VERSION_CHECK
    raw: Any = None
    try:
        raw = wrapper.get_new_connection(wrapper.get_connection_params())
        wrapper.connection = raw
        wrapper.set_autocommit(settings_dict["AUTOCOMMIT"])
        wrapper.init_connection_state()
        if not settings_dict["AUTOCOMMIT"]:
            raw.commit()
    except BaseException as exc:
        if raw is not None:
            raw.close()
        if isinstance(exc, Error) and exc.__cause__ is not None:
            raise exc.__cause__ from None  # the driver's own: it tells an outage from a refusal
        raise
    finally:
        wrapper.connection = None
        if not seen:
            RAN_DB_VERSION_CHECK.discard(alias)  # that is for the caller to hear, on its own thread
    return raw
