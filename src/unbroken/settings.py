"""Every setting of a pool: its unit, its default and the reason for it. This module also validates
them.

Times are seconds as floats. ``None`` means automatic where that makes sense, ``math.inf`` means
never.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from unbroken.errors import ConfigurationError
from unbroken.hints import remedy, shown
from unbroken.messages.configuration import BAD_SETTING, SETTINGS_CONTRADICT, UNKNOWN_SETTING
from unbroken.roles import wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a pool.

    Immutable. :meth:`of` builds one from keywords. Its errors name the wrong setting, the value and
    the remedy.
    """

    max_size: int = 10
    """Maximum number of connections, including those being opened. Default 10, as in HikariCP.
    `max_size` × number of processes must stay below the server's max_connections, unless the
    processes use `share`.
    """

    min_size: int = 0
    """Connections kept open while idle. 0: the pool is lazy and opens connections on demand."""

    share: int | str | None = None
    """Share a server's connections among all pools of this user on this host. Processes × max_size
    can then exceed the number that the server grants. "auto": as many as the server grants, less a
    margin; or their number. A name before either, as in "shop:auto", shares only among the pools of
    that name. None: each pool opens up to max_size. Needs Linux.
    """

    acquire_timeout: float = 10.0
    """One deadline for a whole acquire: waiting, checking, connecting."""

    max_waiting: int | None = None
    """Maximum number of waiting callers. The next caller gets an error immediately. None: no limit.
    Health checks always wait. Callers of a lower priority do not count.
    """

    shed_target: float | None = None
    """How long callers may have to wait while demand exceeds capacity. Callers that would wait
    longer get an error immediately. None: the value is learned. It then applies to web requests,
    and where callers leave before their time. A number of seconds applies to all callers. math.inf
    turns it off. docs/overload.md has the details.
    """

    connect_timeout: float = 5.0
    """One connection attempt, in total, with any driver: name lookup, TCP, TLS, login and the
    pool's first queries. A longer attempt is ended from outside. Other attempts begin beside a
    silent one: docs/settings.md, Bounds.
    """

    outage_wait: float = 5.0
    """How long callers wait for a server that is down. After that, new callers fail immediately,
    while the prober continues. The default is longer than most restarts, and shorter than a typical
    proxy's time limit.
    """

    target: str = "any"
    """Which servers of a cluster to use: "any", "primary" (takes writes), "standby" (takes none) or
    "prefer-standby". libpq's values of target_session_attrs also work.
    """

    max_age: float | None = None
    """Retire a connection this long after it was opened. None: 3600 s, which bounds the effects of
    a failover, a DNS change or memory that a server keeps for a session. Each connection's own
    limit is up to a quarter lower, so that connections do not all retire at the same time (as
    HikariCP's jitter since 6.1).
    """

    max_idle: float | None = None
    """Close a connection above min_size that was not used for this long. None: 600 s."""

    idle_limit: float | None = None
    """How long the server lets a connection idle. None: the pool asks the server once
    (wait_timeout, idle_session_timeout), and learns other limits from connections that died.
    """

    send_timeout: float = 12.0
    """How long the network may be silent. Unacknowledged data (TCP_USER_TIMEOUT) or unanswered
    keepalive probes then end a connection. The limit does not bound a server that works on a long
    statement, or is frozen: `deadline` does. math.inf: the system decides (about 15 minutes).
    """

    keepalive: float | None = None
    """TCP keepalive: first probe after this much silence. None: half of send_timeout, below the
    shortest common NAT timeout (60 s). The first probe is never later than that half, so that three
    probes are lost before a connection counts as lost. math.inf: as the driver set it.
    """

    ping_after: float | None = None
    """Ping at acquire (one round trip) after this much idle time. None: 60 s on TCP, where
    keepalive detects silent drops; never on a unix socket; 1 s with a driver that hides its
    descriptor.
    """

    ping_timeout: float = 2.0
    """How long a ping may take before the connection counts as dead."""

    reset_timeout: float = 5.0
    """How long the pool's own ROLLBACK, BEGIN or reset may take. Then the pool closes the
    connection and opens another.
    """

    commit_timeout: float = 60.0
    """How long the COMMIT at the end of a lease may take. Then the pool closes the connection, and
    the outcome is unknown (CommitUnknownError). A lease's deadline ends it sooner. math.inf: only
    the deadline limits it.
    """

    leak_after: float = 60.0
    """Warn once about a connection held this long, with the line that took it. math.inf: never."""

    reclaim: bool = False
    """Also end a connection that was held longer than leak_after. The pool shuts its socket down
    (never closes it) and reuses its place. The holder gets an error.
    """

    deadline: float | None = None
    """How long a connection may block its holder: acquire, work and commit together. None: no
    limit.
    """

    reset: Literal["rollback", "session"] | Callable[[Any], Any] | None = "rollback"
    """Cleanup at release. "rollback" rolls back an open transaction (no round trip if there
    certainly is none). "session" also undoes effects of statements on the session (settings, locks,
    temporary tables), in one or two round trips and only if there may be some. A callable gets the
    connection. None does nothing.
    """

    follow_dns: bool = True
    """Check every few seconds where the server's name leads, and replace connections to an old
    address: idle ones immediately, others when they come back. Addresses, sockets and localhost are
    not looked up. A name that rotates among addresses is left alone.
    """

    heal: bool = True
    """Run a lost statement again on another connection if it is the first of its transaction, or a
    read in autocommit. Engines of SQLAlchemy and Django and databases of peewee do this; a bare
    pool never repeats a single statement.
    """

    max_replays: int = 10
    """Maximum number of replays of one unit of work."""

    retry_budget: float = 0.2
    """How much lost work this process runs again on this server, as a fraction of the work that
    succeeds. The default is that of Finagle and Linkerd. A reserve of three replays for each
    connection, and a slow trickle, come on top. Callers of further lost work get an error. "off" or
    math.inf: only max_replays limits replays. docs/overload.md has the details.
    """

    name: str | None = None
    """The pool's name in logs and metrics. None: server and database."""

    units: tuple[str, ...] = ()
    """Functions of other packages whose calls become units of work, as :func:`unbroken.adopt` takes
    them: ``"package.module:Class.method"``. The setting applies to the whole process, from the
    creation of the pool on.
    """

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """Settings from keywords.

        Raises ConfigurationError that names the setting, the value and the remedy.
        """
        known = {f.name for f in fields(cls)}
        for name in given:
            if name not in known:
                raise ConfigurationError(
                    UNKNOWN_SETTING(f"unknown setting {shown(name)}; {remedy(name, known)}")
                )
        settings = cls(**_spelled(given))
        _validate(settings)
        return settings

    def changed(self, **given: Any) -> Settings:
        """Return a validated copy with some settings changed."""
        settings = replace(self, **_spelled(given))
        _validate(settings)
        return settings

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split *options* (a URL's query, say) into (our settings, everything else)."""
        known = {f.name for f in fields(cls)}
        ours = {k: v for k, v in options.items() if k in known}
        return ours, {k: v for k, v in options.items() if k not in known}

    @classmethod
    def from_text(cls, options: Mapping[str, str]) -> dict[str, Any]:
        """Return keywords for :meth:`of` from text such as a URL's query: ``{"max_size": "5"}``
        gives ``{"max_size": 5}``.
        """
        return {name: _from_text(name, text) for name, text in options.items()}


#: The text that turns the retry budget off.
OFF = "off"
#: The largest number of connections or replays.
MOST = 1_000_000
#: The maximum number of seconds for waits of the system, and for connects of drivers.
LONGEST, A_YEAR = 1e9, 31_536_000.0
_INTS = {"max_size": 1, "min_size": 0, "max_replays": 0, "max_waiting": 0}
_POSITIVE = {
    "acquire_timeout", "connect_timeout", "ping_timeout", "leak_after", "send_timeout",
    "reset_timeout", "commit_timeout",
}  # fmt: skip
_NOT_NEGATIVE = {"outage_wait"}
_POSITIVE_OR_NONE = {
    "max_age", "max_idle", "idle_limit", "keepalive", "ping_after", "deadline", "shed_target",
}  # fmt: skip
_SWITCHES = ("reclaim", "follow_dns", "heal")
_PART = "a number of at least 0, such as 0.2 for a fifth, or 'off'"
_FINITE = {"connect_timeout", "ping_timeout", "reset_timeout"}


def _from_text(name: str, text: str) -> Any:
    if name not in Settings.__dataclass_fields__:
        return text  # of() raises that there is no such setting
    if text.lower() in ("none", "null"):
        return None
    if name in ("reset", "name", "target"):
        return text
    if name == "share":
        return int(text) if text.isascii() and text.isdigit() else text
    if name == "retry_budget" and text.lower() == OFF:
        return math.inf
    if name == "units":
        return tuple(text.replace(",", " ").split())
    if name in _SWITCHES:
        if text.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            return text.lower() in ("1", "true", "yes", "on")
        raise ConfigurationError(
            BAD_SETTING(f"{name}={shown(text)} is not a boolean; write true or false")
        )
    try:
        return int(text) if name in _INTS else float(text)
    except ValueError:
        kind = "a whole number" if name in _INTS else "a number of seconds"
        kind = _PART if name == "retry_budget" else kind
        raise ConfigurationError(BAD_SETTING(f"{name}={shown(text)} is not {kind}")) from None


def _spelled(given: dict[str, Any]) -> dict[str, Any]:
    """Return *given* with each setting in its final spelling."""
    if isinstance(given.get("units"), list):
        given["units"] = tuple(given["units"])
    if given.get("retry_budget") == OFF:
        given["retry_budget"] = math.inf
    return given


def _validate(s: Settings) -> None:
    for name, least in _INTS.items():
        value = getattr(s, name)
        if value is None and name == "max_waiting":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(value)} must be a whole number of at least {least}")
            )
        if value > MOST:
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(value)} must be a whole number of at most {MOST}")
            )
    try:
        wanted(s.target)
    except ValueError as hint:
        raise ConfigurationError(
            BAD_SETTING(f"target={shown(s.target)} is not a server's role; {hint}")
        ) from None
    if s.share is not None:
        shared(s.share)
    for name in _POSITIVE | _POSITIVE_OR_NONE | _NOT_NEGATIVE:
        _check_seconds(name, getattr(s, name))
    part = s.retry_budget
    is_number = isinstance(part, (int, float)) and not isinstance(part, bool)
    if not is_number or not (0 <= part <= MOST or part == math.inf):
        raise ConfigurationError(BAD_SETTING(f"retry_budget={shown(part)} must be {_PART}"))
    if s.min_size > s.max_size:
        raise ConfigurationError(
            SETTINGS_CONTRADICT(
                f"min_size={s.min_size} exceeds max_size={s.max_size}; lower min_size or raise"
                " max_size"
            )
        )
    for name in _SWITCHES:
        if not isinstance(getattr(s, name), bool):
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(getattr(s, name))} must be True or False")
            )
    if s.reset not in (None, "rollback", "session") and not callable(s.reset):
        raise ConfigurationError(
            BAD_SETTING(
                f"reset={shown(s.reset)} must be 'rollback', 'session', None or a callable that"
                " takes the connection"
            )
        )
    if not isinstance(s.units, tuple) or not all(
        isinstance(name, str) and name for name in s.units
    ):
        raise ConfigurationError(
            BAD_SETTING(
                f"units={shown(s.units)} must be a list of names such as"
                " 'package.module:Class.method'"
            )
        )
    if s.name is not None and (not isinstance(s.name, str) or not s.name):
        raise ConfigurationError(
            BAD_SETTING(f"name={shown(s.name)} must be a non-empty text, or None")
        )


_SHARE = re.compile(r"(?:([^:\s]+):)?(?:auto|([0-9]{1,7}))", re.ASCII)


def shared(share: int | str) -> tuple[str | None, int | None]:
    """Return the name and the number of connections in the setting ``share``, each if it is given.

    Raises ConfigurationError.
    """
    text = str(share) if isinstance(share, int) and not isinstance(share, bool) else share
    found = _SHARE.fullmatch(text) if isinstance(text, str) else None
    number = None if found is None or found[2] is None else int(found[2])
    if found is None or (number is not None and not 1 <= number <= MOST):
        raise ConfigurationError(
            BAD_SETTING(
                f"share={shown(share)} must be 'auto' or a number of connections from 1 to {MOST},"
                " optionally after a name, as in 'shop:auto' and 'shop:40'"
            )
        )
    return found[1], number


def _check_seconds(name: str, value: Any) -> None:
    if value is None and name in _POSITIVE_OR_NONE:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_a_time(value):
        allowed = "seconds, or None" if name in _POSITIVE_OR_NONE else "seconds"
        raise ConfigurationError(
            BAD_SETTING(f"{name}={shown(value)} must be a number of {allowed}")
        )
    if value < 0 or (value == 0 and name not in _NOT_NEGATIVE):
        least = "at least" if name in _NOT_NEGATIVE else "more than"
        raise ConfigurationError(BAD_SETTING(f"{name}={shown(value)} must be {least} 0 s"))
    if value == math.inf and name in _FINITE:
        raise ConfigurationError(
            BAD_SETTING(f"{name}=inf would wait forever; give a number of seconds, such as 5.0")
        )
    most = A_YEAR if name in _FINITE else LONGEST
    if most < value < math.inf:
        never = "" if name in _FINITE else "; write math.inf for never"
        raise ConfigurationError(
            BAD_SETTING(f"{name}={shown(value)} must be at most {most:.0f} s{never}")
        )


def _is_a_time(value: float) -> bool:
    try:
        return not math.isnan(value)
    except OverflowError:  # a whole number beyond all floats
        return False
