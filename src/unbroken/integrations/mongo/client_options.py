"""Of what a client was given: PyMongo's arguments, with defaults that bound every wait.

The caller's own words win.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from unbroken.errors import ConfigurationError

#: Milliseconds. An operation ends after two seconds, whatever blocks it: a server that refuses, is
#: frozen or has vanished. A frozen server is found out by a heartbeat within about two (1 s between
#: heartbeats and 1 s to connect or answer). The third bounds the few waits that PyMongo does not
#: count as operations (``client.address``, ending a cursor).
DEFAULTS: Mapping[str, int] = {
    "timeoutMS": 2000,
    "heartbeatFrequencyMS": 1000,
    "connectTimeoutMS": 1000,
    "serverSelectionTimeoutMS": 2000,
}
#: Who sets one of these bounds operations the older way; ``timeoutMS`` would overrule it.
_OLDER_BOUNDS = {"sockettimeoutms", "serverselectiontimeoutms", "waitqueuetimeoutms"}

#: Seconds that a busy machine may take for a heartbeat beside its wait and its answer.
SPARE = 0.5

#: How long callers wait for a server that is away, in seconds.
OUTAGE_WAIT = 1.0


def given_options(host: Any, kwargs: Iterable[str]) -> set[str]:
    """The names (in small letters) of all options in the URIs of *host* and in *kwargs*."""
    names = {name.lower() for name in kwargs}
    for each in [host] if isinstance(host, str) else host or ():
        if "://" in str(each):
            query = urlsplit(str(each)).query or str(each).partition("?")[2]
            names.update(
                unquote(pair.partition("=")[0]).lower()
                for pair in query.replace(";", "&").split("&")
                if pair
            )
    return names


def with_defaults(host: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """*kwargs*, and the defaults for what neither they nor the URI say."""
    given = given_options(host, kwargs)
    defaults = dict(DEFAULTS)
    if given & _OLDER_BOUNDS:
        defaults.pop("timeoutMS", None)
    return {
        **{name: value for name, value in defaults.items() if name.lower() not in given},
        **kwargs,
    }


def fresh_for(settings: Any) -> float:
    """For how many seconds what a heartbeat showed holds, by a client's topology *settings*.

    The next heartbeat begins after one interval and ends after one more connect at the latest.
    """
    limit = settings.pool_options.connect_timeout
    return float(settings.heartbeat_frequency) + (limit or math.inf) + SPARE


def checked_wait(outage_wait: Any) -> float:
    """*outage_wait*, or ConfigurationError that says what it may be."""
    known = isinstance(outage_wait, (int, float)) and not isinstance(outage_wait, bool)
    if not known or math.isnan(outage_wait) or outage_wait < 0:
        raise ConfigurationError(
            f"outage_wait={outage_wait!r} must be a number of seconds of at least 0 (math.inf:"
            " never fail fast)"
        )
    return float(outage_wait)
