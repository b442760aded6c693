"""One pool per database alias and process, shared by its threads, greenlets and requests."""

from __future__ import annotations

import math
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS, RAN_DB_VERSION_CHECK
from django.db.utils import Error

from unbroken.abc import Login
from unbroken.drivers._diagnosis import options_of
from unbroken.drivers._login import Opener
from unbroken.drivers._mysql_reset import sets_nothing_else
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.integrations.django import names, where
from unbroken.messages.configuration import BAD_SETTING
from unbroken.pool.arguments import by_our_names
from unbroken.pool.state import PoolState, state_of
from unbroken.settings import Settings
from unbroken.sync import Pool


class _Pool(Pool):
    """A pool whose statements need not be followed, because Django's cursors report the leftovers
    on a session.
    """

    def _new_state(self) -> PoolState:
        state = super()._new_state()
        state.follow_sessions(False)
        return state


class Source:
    """A pool, and the facts known about the server behind it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.facts: dict[
            str, Any
        ] = {}  #: the answers that Django asks a server for once per wrapper, that is, per thread


#: libpq's name for the setting ``target``.
_ROLE = "target_session_attrs"

_sources: dict[tuple[Any, ...], Source] = {}


def source_of(wrapper: Any) -> Source:
    """Return the pool for *wrapper*'s alias and settings. It is created at the first call.

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
    """Return whether *wrapper* takes its connections from a pool: all but those for creating
    databases.
    """
    return bool(wrapper.alias != NO_DB_ALIAS)


def pools() -> dict[str, Pool]:
    """Return the pools of this process by database alias, as far as they have been used."""
    return {key[0]: source.pool for key, source in list(_sources.items())}


def close_pools(alias: str) -> None:
    """Close the pools of *alias*, before its database is dropped or copied, or when its settings
    changed.
    """
    for key in [key for key in list(_sources) if key[0] == alias]:
        source = _sources.pop(key, None)
        if source is not None:
            source.pool.close(0)


def close_database(name: str, wrapper: Any) -> None:
    """Close the pools of every alias that leads to a database *name* of *wrapper*'s vendor. It is
    about to be dropped or copied.

    Hosts and ports are not compared, since one server has several names. A pool of the same name on
    another server only connects again. Connections that other threads hold at rest are closed, too.
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
    """Return the pool's settings: those in ``OPTIONS["unbroken"]``. CONN_MAX_AGE gives the default
    of ``max_age``, and libpq's ``target_session_attrs`` in ``OPTIONS`` is our ``target``.

    Raises ConfigurationError.
    """
    names.check(settings_dict)
    given = settings_dict["OPTIONS"].get("unbroken") or {}
    if not isinstance(given, dict):
        raise ConfigurationError(
            BAD_SETTING(
                f'OPTIONS["unbroken"]={shown(given)} must be a dictionary of settings, such as'
                ' {"max_size": 5}'
            )
        )
    age = settings_dict.get("CONN_MAX_AGE")
    chosen = _chosen(settings_dict)
    if not age or "max_age" in chosen:
        return Settings.of(**chosen)
    if isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 < age < math.inf:
        raise ConfigurationError(
            BAD_SETTING(f"CONN_MAX_AGE={shown(age)} must be a number of seconds, 0 or None")
        )
    return Settings.of(**chosen, max_age=float(age))


def _chosen(settings_dict: dict[str, Any]) -> dict[str, Any]:
    options = settings_dict["OPTIONS"]
    theirs = {name: options[name] for name in (_ROLE,) if name in options}
    return by_our_names({**theirs, **(options.get("unbroken") or {})})


def _key(wrapper: Any) -> tuple[Any, ...]:
    given = wrapper.settings_dict
    return (
        wrapper.alias, type(wrapper), given["NAME"], given["USER"], given["PASSWORD"],
        given["HOST"], given["PORT"], given.get("CONN_MAX_AGE"), given["AUTOCOMMIT"],
        wrapper.timezone_name, _written(given["OPTIONS"]),
    )  # fmt: skip


def _written(options: Any) -> str:
    try:
        return repr(options)
    except ValueError:  # a number of thousands of digits, which :func:`settings_of` refuses
        return ""


def _make(wrapper: Any) -> Pool:
    cls, alias = type(wrapper), wrapper.alias
    try:
        names.check(wrapper.settings_dict)
        given = {**wrapper.settings_dict, "OPTIONS": dict(wrapper.settings_dict["OPTIONS"])}
        settings = settings_of(given)
        chosen = _chosen(given)
        # Django's cursors note a user's leftovers, so the session is reset on its return only if a
        # reset is due.
        reset = "session" if settings.reset == "rollback" else settings.reset
        pool = _Pool(
            where.target_of(given, wrapper.vendor),
            connect=Opener(lambda login: _open(cls, given, alias, login)),
            driver=wrapper.unbroken_driver(),
            password=where.callable_of(given, "PASSWORD"),
            user=where.callable_of(given, "USER"),
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
    pool._driver.given = options_of(  # type: ignore[attr-defined] # of every driver here
        {name: value for name, value in given["OPTIONS"].items() if name != "unbroken"},
        f"in OPTIONS of DATABASES[{alias!r}]",
    )
    pool._driver.login_may_change = where.asks_anew(cls)
    return pool


def _sets_only(cls: type, options: dict[str, Any]) -> bool:
    """Return whether :func:`_open` changes only a new session's settings: no code but Django's and
    ours takes part.
    """
    foreign = any(not each.__module__.startswith(where.OWN) for each in cls.__mro__[:-1])
    return not foreign and sets_nothing_else(options)


def _open(cls: Any, settings_dict: dict[str, Any], alias: str, login: Login | None) -> Any:
    """Open a new session as *login*, set up as Django sets up its own. Runs on a thread of the
    pool's.
    """
    given = where.at_first(settings_dict, cls.vendor)
    wrapper = cls(where.turned(given, login), alias)
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
            # the driver's own: it distinguishes an outage from a refusal
            raise exc.__cause__ from None
        raise
    finally:
        wrapper.connection = None
        if not seen:
            RAN_DB_VERSION_CHECK.discard(alias)  # the caller must see that error on its own thread
    return raw
