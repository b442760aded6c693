"""The arguments of ``create_engine``, split: our settings, the driver, and the arguments for
SQLAlchemy's own pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.engine import URL

from unbroken.abc import (
    Address,
    BaseDriver,
    Capabilities,
    Connection,
    Fault,
    FaultKind,
    Observer,
    Target,
)
from unbroken.adoption import adopt_for
from unbroken.backends.system import one_line
from unbroken.drivers import known as all_known
from unbroken.drivers import open_driver
from unbroken.drivers._base import Base
from unbroken.drivers._diagnosis import Option, options_of
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.integrations.sqlalchemy.strays import check_names
from unbroken.integrations.sqlalchemy.where import hosts_of, take_callables, target_of
from unbroken.logs import Part
from unbroken.messages.configuration import (
    BAD_SETTING,
    SETTING_HAS_NO_USE,
    SETTING_TWICE,
    URL_UNREADABLE,
)
from unbroken.messages.integrations import POOLED_AS_SQLALCHEMY_DOES
from unbroken.pool.arguments import by_our_names
from unbroken.pool.observers import tell
from unbroken.pool.secrets import NO_SECRETS
from unbroken.pool.unsupported import refuse_eventlet
from unbroken.settings import Settings

log = Part("driver")

#: Settings that SQLAlchemy's pool has under another name. Theirs take precedence; ours are
#: translated if theirs is not given.
_THEIRS = {
    "max_size": "pool_size",
    "acquire_timeout": "pool_timeout",
    "reset": "pool_reset_on_return",
}

#: The name of a DBAPI's connect timeout, and its type. Without a timeout, a server that does not
#: answer holds a caller for minutes.
_CONNECT_TIMEOUT: Mapping[str, tuple[str, Callable[[float], float]]] = {
    **dict.fromkeys(
        (
            "pymysql",
            "mysqldb",
            "asyncmy",
            "mariadbconnector",
            "psycopg",
            "psycopg_async",
            "psycopg2",
        ),
        ("connect_timeout", math.ceil),
    ),
    "aiomysql": ("connect_timeout", float),
    "mysqlconnector": ("connection_timeout", math.ceil),
    "asyncpg": ("timeout", float),
}
_TIMEOUT_NAMES = ("connect_timeout", "connection_timeout", "timeout")


class Plan:
    """One engine's part of unbroken, shared by all the pools that it has in its life."""

    def __init__(
        self,
        driver: BaseDriver,
        settings: Settings,
        observers: tuple[Observer, ...] = (),
        *,
        is_async: bool = False,
    ) -> None:
        self.driver = driver
        self.settings = settings
        self.name = settings.name or driver.target.label
        self.is_async = is_async
        #: the login that is asked for at each connect
        self.secrets = NO_SECRETS
        #: the hosts of the URL
        self.hosts: tuple[Address, ...] = ()
        #: the application opens the connections, to an address of its own choice
        self.is_created_outside = False
        #: seconds for one attempt; the application's own value counts
        self.connect_limit = settings.connect_timeout
        #: the second base class of our errors: the DBAPI's OperationalError
        self.foreign: type[BaseException] = driver.errors[0]
        self._observers = observers
        self._module = next(
            (each.module.partition(".")[0] for each in all_known() if each.name == driver.name),
            None,
        )

    @property
    def aims(self) -> bool:
        """Return whether each connect receives its host, or its user and password."""
        several = len(self.hosts) > 1 and not self.is_created_outside
        return several or self.secrets.are_asked

    def genuine(self, raw: Any) -> Connection | None:
        """Return the driver's own object: *raw*, or the object that a tracer's proxy wraps; None if
        neither can be determined.
        """
        for _ in range(5):
            if any(each.__module__.partition(".")[0] == self._module for each in type(raw).__mro__):
                # a proxy's __class__ is not its own
                return raw
            raw = getattr(raw, "__wrapped__", None)
        self.warn_unknown("another library has wrapped them")
        return None

    def warn_unknown(self, why: object) -> None:
        """Warn once that the driver's connections cannot be reached."""
        log.warning(
            "driver not known",
            POOLED_AS_SQLALCHEMY_DOES(
                f"{self.name}: unbroken does not recognize these connections ({why}), so they are"
                " pooled as SQLAlchemy does it"
            ),
            about=self.name,
            once=True,
            pool=self.name,
        )

    @property
    def is_blind(self) -> bool:
        """Return whether there is no driver file for this DBAPI. Then the pool is SQLAlchemy's,
        with reports of leaks.
        """
        return isinstance(self.driver, Blind)

    def emit(self, event: str, fields: Mapping[str, Any]) -> None:
        """Notify the observers."""
        tell(self._observers, event, fields)

    def go_blind(self, dialect: Any) -> None:
        """Note that the driver's connections cannot be reached: from now on the engine's pools are
        SQLAlchemy's, with reports of leaks.
        """
        self.driver = Blind(self.driver.target)
        self.driver.dialect = dialect


class Blind(Base):
    """Stands in if there is no driver file: it knows nothing, and asks SQLAlchemy's dialect whether
    a connection is lost.
    """

    name = "unknown"
    capabilities = Capabilities(
        fileno=False, transaction_status=False, watchable=False, abort=False, server=False
    )
    errors: tuple[type[BaseException], ...] = (Exception,)

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target("unknown", "unknown", host="server")
        self.dialect: Any = None  #: SQLAlchemy's, once there is one

    def classify(self, exc: BaseException) -> Fault:
        """Return LOST if the dialect reports so."""
        dialect = self.dialect
        try:
            lost = (
                dialect is not None
                and isinstance(exc, dialect.loaded_dbapi.Error)
                and dialect.is_disconnect(exc, None, None)
            )
        except Exception:
            lost = False
        return Fault(FaultKind.LOST if lost else FaultKind.OTHER, text=one_line(exc))

    def fileno(self, conn: Connection) -> int | None:  # noqa: ARG002
        """Return None: it is not known."""
        return None

    def is_in_transaction(self, conn: Connection) -> bool | None:  # noqa: ARG002
        """Return None: it is not known."""
        return None

    def is_quiet(self, conn: Connection) -> bool:  # noqa: ARG002
        """Return True: SQLAlchemy handles that."""
        return True

    def session_id(self, conn: Connection) -> str | None:  # noqa: ARG002
        """Return None: it is not known."""
        return None

    def close(self, conn: Connection) -> None:
        """Do nothing: SQLAlchemy closes."""

    def watch(self, conn: Connection) -> None:
        """Do nothing: it is not possible."""

    def unwatch(self, conn: Connection) -> None:
        """Do nothing: there is nothing to undo."""


def open_plan(
    url: URL, kwargs: dict[str, Any], *, is_async: bool, is_ours: bool
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan for an engine, and the names of settings that were in *url*'s query.

    Translates SQLAlchemy's own settings in *kwargs*. *is_ours*: whether its pool is one of ours.
    """
    refuse_eventlet()
    check_names(url, kwargs)
    given, names = _settings(url, kwargs, by_our_names if is_ours else dict)
    observers = tuple(given.pop("observers", ()))
    _translate(given, kwargs)
    settings = Settings.of(**given)
    if settings.max_idle is None:
        # SQLAlchemy's documentation: pool_size connections are "kept persistently"
        settings = settings.changed(max_idle=math.inf)
    hosts = hosts_of(url) if is_ours else ()
    target = target_of(url, hosts)
    if "\ufffd" in (target.password or ""):
        raise ConfigurationError(
            URL_UNREADABLE(
                "the password in the URL is not UTF-8 after its %-escapes are decoded, so"
                " SQLAlchemy would change it; give the password in connect_args"
            )
        )
    adopt_for(settings.units, settings.max_replays)
    if kwargs.get("creator") is not None:
        target = replace(target, others=())
    plan = Plan(_driver(url, target, is_async), settings, observers, is_async=is_async)
    plan.is_created_outside = kwargs.get("creator") is not None
    if not plan.is_blind:
        plan.hosts = hosts
        if is_ours:
            plan.secrets = take_callables(target, kwargs, is_async=is_async)
        _in_pure_python(url, kwargs)
        plan.connect_limit = _bound_connect(url, kwargs, settings)
        plan.driver.given = _options(url, kwargs, names)  # type: ignore[attr-defined] # of Base
    return plan, names


def _options(url: URL, kwargs: dict[str, Any], ours: tuple[str, ...]) -> tuple[Option, ...]:
    """Return the driver's options, and the place of each."""
    in_url = {name: value for name, value in url.query.items() if name not in ours}
    args = dict(kwargs.get("connect_args") or {})
    return (*options_of(in_url, "in the URL"), *options_of(args, "in connect_args"))


def _settings(
    url: URL, kwargs: dict[str, Any], named: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    given = kwargs.pop("unbroken", None) or {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            BAD_SETTING(
                f"unbroken={shown(given)} must be a dict of settings, such as"
                " unbroken={'leak_after': 10}"
            )
        )
    # in a URL that one is the DBAPI's
    ours, theirs = Settings.split(
        named({k: v for k, v in url.query.items() if k != "connect_timeout"})
    )
    several = [k for k, v in ours.items() if not isinstance(v, str)]
    if several:
        raise ConfigurationError(
            SETTING_TWICE(
                f"setting {several[0]!r} appears more than once in the URL; keep only one"
            )
        )
    names = tuple(each for each in url.query if each not in theirs and each != "connect_timeout")
    return {**Settings.from_text(ours), **named(given)}, names


def _translate(given: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Turn settings that belong to SQLAlchemy itself into its arguments."""
    if given.pop("min_size", 0):
        raise ConfigurationError(
            SETTING_HAS_NO_USE(
                "min_size has no effect here: SQLAlchemy's pool opens connections on demand and"
                " keeps up to pool_size; leave min_size out"
            )
        )
    if callable(given.get("reset")):
        raise ConfigurationError(
            SETTING_HAS_NO_USE(
                "reset=callable has no effect here; use SQLAlchemy's pool event 'reset'"
            )
        )
    if given.get("reset") == "session":
        raise ConfigurationError(
            SETTING_HAS_NO_USE(
                "reset='session' has no effect here; use SQLAlchemy's pool event 'reset'"
            )
        )
    Settings.of(**{name: given[name] for name in _THEIRS if name in given})
    for name, theirs in _THEIRS.items():
        if name not in given:
            continue
        value = given.pop(name)
        if theirs in kwargs or (name == "max_size" and "max_overflow" in kwargs):
            raise ConfigurationError(
                SETTING_TWICE(
                    f"{name} and SQLAlchemy's {theirs} are the same setting; give only one of them"
                )
            )
        kwargs[theirs] = value
        if name == "max_size":
            kwargs["max_overflow"] = 0


def _driver(url: URL, target: Target, is_async: bool) -> BaseDriver:
    name = url.get_driver_name()
    try:
        if is_async:
            return open_driver(target, is_async=True, connect=_opens_nothing, driver=name)
        return open_driver(target, connect=_opens_nothing, driver=name)
    except ConfigurationError as why:
        log.warning(
            "driver not known",
            POOLED_AS_SQLALCHEMY_DOES(
                f"unbroken does not know the driver {url.drivername} ({why}), so its connections"
                " are pooled as SQLAlchemy does it"
            ),
            about=name,
            once=True,
        )
        return Blind(target)


def _opens_nothing() -> Any:
    raise NotImplementedError("SQLAlchemy opens the connections")


def _bound_connect(url: URL, kwargs: dict[str, Any], settings: Settings) -> float:
    """Apply our time limit to an attempt to connect, unless the application gave one.

    Returns the limit that holds, in seconds.
    """
    args = dict(kwargs.get("connect_args") or {})
    given = next(
        (source[name] for name in _TIMEOUT_NAMES for source in (args, url.query) if name in source),
        None,
    )
    if given is not None:
        return _seconds(given, settings.connect_timeout)
    found = _CONNECT_TIMEOUT.get(url.get_driver_name())
    if found is not None:
        name, kind = found
        kwargs["connect_args"] = {**args, name: kind(settings.connect_timeout)}
    return settings.connect_timeout


def _in_pure_python(url: URL, kwargs: dict[str, Any]) -> None:
    """Make mysql-connector-python use pure Python. By default it would use its C extension, which
    the driver does not support.

    Raises if the extension is requested.
    """
    if url.get_driver_name() != "mysqlconnector":
        return
    args = dict(kwargs.get("connect_args") or {})
    wanted = args.get("use_pure", url.query.get("use_pure", True))
    if wanted in (False, 0, "false", "False", "0", "no"):
        open_driver(str(url.set(query={"use_pure": "false"})))  # raises with the reason
    kwargs["connect_args"] = {**args, "use_pure": True}


def _seconds(given: Any, otherwise: float) -> float:
    try:
        seconds = float(given)
    except (TypeError, ValueError):
        return otherwise
    return seconds if 0.0 < seconds < math.inf else otherwise
