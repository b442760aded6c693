"""Settings meant for the pool in a place where SQLAlchemy or the driver reads them: in the URL's
query, among ``connect_args``, among the arguments of ``create_engine``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from sqlalchemy import pool as sqla_pool
from sqlalchemy import util
from sqlalchemy.engine import URL, Engine

from unbroken.drivers import file_of
from unbroken.drivers._takes import refuse_strays, takes
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.messages.configuration import BAD_SETTING
from unbroken.pool.arguments import THEIR_NAMES
from unbroken.settings import LONGEST, Settings

_SETTINGS = {each.name for each in fields(Settings)} | set(THEIR_NAMES)
#: The names that SQLAlchemy reads itself in a URL, for any driver.
_IN_URL = {"plugin", "plugins", "host", "port"}
_ENGINE = {
    "plugins", "unbroken", "connect_args", "creator", "async_creator", "pool", "poolclass",
    "module", "strategy", "future", "empty_in_strategy", "enable_from_linting", "_is_async",
    "_initialize", "_coerce_config", "pool_size", "max_overflow", "pool_timeout", "pool_recycle",
    "pool_pre_ping", "pool_reset_on_return", "pool_use_lifo", "pool_logging_name", "pool_events",
    "echo_pool",
}  # fmt: skip
#: SQLAlchemy's numbers: the minimum and the type of each.
_VALUES: Mapping[str, tuple[int, tuple[type, ...], str]] = {
    "pool_size": (0, (int,), "a whole number"),
    "max_overflow": (-1, (int,), "a whole number"),
    "pool_timeout": (0, (int, float), "a number of seconds"),
    "pool_recycle": (-1, (int, float), "a number of seconds"),
}
_HOW = "Give unbroken's settings as create_engine(…, unbroken={'leak_after': 10})."


def check_names(url: URL, kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a setting that SQLAlchemy or the driver would refuse, usually at
    the first connect.

    *kwargs*: those of ``create_engine``. Names that cannot be recognized as ours stay theirs.
    """
    _check_values(kwargs)
    if _has_other_plugins(url, kwargs):  # they may have options of their own
        return
    driver = file_of(url.get_driver_name())
    known = takes(driver)
    if known is not None:
        in_url = known | _IN_URL | (_SETTINGS - {"connect_timeout"})
        refuse_strays(url.query, in_url, f"the URL's query: {driver} has no option", _HOW)
        args = kwargs.get("connect_args") or {}
        refuse_strays(args, known, f"connect_args: {driver} has no option", _HOW)
    engine = _engine_takes(url, is_async=bool(kwargs.get("_is_async")))
    if engine is not None:
        refuse_strays(kwargs, engine, "create_engine() has no argument", _HOW)


def _has_other_plugins(url: URL, kwargs: Mapping[str, Any]) -> bool:
    in_url = url.query.get("plugin", ())
    named = [*((in_url,) if isinstance(in_url, str) else in_url), *kwargs.get("plugins", ())]
    return any(name != "unbroken" for name in named)


def _check_values(kwargs: Mapping[str, Any]) -> None:
    """Check these values: SQLAlchemy itself takes any value for them, and fails when it first uses
    one.
    """
    args = kwargs.get("connect_args")
    if args is not None and not isinstance(args, Mapping):
        raise ConfigurationError(BAD_SETTING(f"connect_args={shown(args)} must be a dictionary"))
    if kwargs.get("_coerce_config"):  # of engine_from_config, whose values are texts
        return
    for name, (least, kinds, what) in _VALUES.items():
        value = kwargs.get(name, least)
        if name == "pool_timeout" and value is None:
            continue
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not good or not least <= value <= LONGEST:
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(value)} must be {what} of at least {least}")
            )
    reset = kwargs.get("pool_reset_on_return")
    if not (reset is None or isinstance(reset, (str, bool, Enum))):
        raise ConfigurationError(
            BAD_SETTING(f"pool_reset_on_return={shown(reset)} must be 'rollback', 'commit' or None")
        )


def _engine_takes(url: URL, *, is_async: bool) -> set[str] | None:
    try:
        kinds = (url.get_dialect(is_async), sqla_pool.QueuePool, Engine)
        return _ENGINE.union(*(util.get_cls_kwargs(kind) for kind in kinds))
    except Exception:  # no such dialect: SQLAlchemy raises that itself
        return None
