"""A client's arguments: PyMongo's, with defaults that bound every wait, and how long callers wait
in an outage.

The caller's own values take precedence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from pymongo import _csot

from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.integrations.mongo import option_names
from unbroken.messages.configuration import BAD_SETTING
from unbroken.settings import LONGEST, Settings

#: Milliseconds. A heartbeat detects a server that has stopped answering two seconds after its last
#: answer: 1 s between heartbeats and 1 s to connect or answer. Every round trip that waits for it
#: ends then. Slow work of a healthy server is not bounded: a change stream, a slow query, a long
#: list. The third value bounds the wait for a free connection, as in every pool. The last one
#: bounds PyMongo's own choices of a server, such as for the end of a cursor.
DEFAULTS: Mapping[str, int] = {
    "heartbeatFrequencyMS": 1000,
    "connectTimeoutMS": 1000,
    "waitQueueTimeoutMS": 10_000,
    "serverSelectionTimeoutMS": 2000,
}
#: Milliseconds. Without heartbeats (in uWSGI's master, behind a load balancer), the bound is on the
#: socket.
UNWATCHED = {"socketTimeoutMS": 2000}
_BOUNDS = {"timeoutms", "sockettimeoutms"}

#: Seconds that a heartbeat may take on a busy machine beside its wait and its answer.
SPARE = 0.5

#: How long callers wait for a server that is down, in seconds, as in every pool.
OUTAGE_WAIT = 5.0
#: How much longer they wait while a set elects, in seconds. With MongoDB's defaults, a lost primary
#: is replaced after eleven seconds, and a frozen one after up to twenty.
ELECTION_WAIT = 20.0
#: A change stream that resumes waits this many times as long as other callers: by default for 30 s,
#: as PyMongo's does.
STREAM = 6.0
#: Whether a change stream is being resumed.
resuming: ContextVar[bool] = ContextVar("unbroken.mongo.resuming", default=False)


@dataclass(frozen=True)
class Waits:
    """How long a client's callers wait for a server, in seconds; ``math.inf``: for ever.

    *selection* is the caller's own ``serverSelectionTimeoutMS``; None: not given.
    """

    outage: float
    election: float
    selection: float | None = None

    def least(self, operation: Any) -> float:
        """Return how long a caller of *operation* may wait, regardless of how long the outage has
        lasted.

        A COMMIT waits, so that its result becomes known. A change stream that resumes waits for
        events, and no request waits for it.
        """
        if operation == "commitTransaction":
            return self.outage
        return STREAM * self.outage if resuming.get() else 0.0

    def until(self, came: float) -> float:
        """Return the time until which a caller that *came* at that time may wait, by its own
        limit.
        """
        ends = math.inf if self.selection is None else came + self.selection
        return min(ends, _csot.get_deadline()) if _csot.get_timeout() else ends


@dataclass(frozen=True)
class Limits:
    """The bounds of a client's queues for connections beside each caller's own time."""

    most: int | None  #: ``max_waiting``
    target: float | None  #: ``shed_target``

    @classmethod
    def of(cls, max_waiting: Any, shed_target: Any) -> Limits:
        """Raises ConfigurationError that says what each may be."""
        Settings.of(max_waiting=max_waiting, shed_target=shed_target)
        return cls(max_waiting, shed_target)


def given_options(host: Any, kwargs: Iterable[str]) -> set[str]:
    """Return the names (in lower case) of all options in the URIs of *host* and in *kwargs*."""
    return {name.lower() for name in (*kwargs, *_in_uris(host))}


def _in_uris(host: Any) -> set[str]:
    """Return the names of the options in the URIs of *host*."""
    names = set[str]()
    several = host if isinstance(host, (list, tuple)) else [host]  # PyMongo refuses other kinds
    for each in several:
        if "://" in str(each):
            query = urlsplit(str(each)).query or str(each).partition("?")[2]
            names.update(
                unquote(pair.partition("=")[0])
                for pair in query.replace(";", "&").split("&")
                if pair
            )
    return names


def check_uri(host: Any) -> None:
    """Raise ConfigurationError for a value that is no host or URI, and for options of a URI that
    are meant for this library.
    """
    option_names.check_host(host)
    option_names.check_names(_in_uris(host), ())


def with_defaults(host: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return *kwargs*, with the defaults for options that neither they nor the URI set.

    Raises ConfigurationError for a name that no client takes.
    """
    option_names.check_host(host)
    option_names.check_names(_in_uris(host), kwargs)
    given = given_options(host, kwargs)
    return {
        **{name: value for name, value in DEFAULTS.items() if name.lower() not in given},
        **kwargs,
    }


def bounded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return *arguments* for a client without heartbeats: with a bound on its sockets, unless they
    have one.
    """
    given = given_options(arguments.get("host"), arguments)
    return {**arguments} if given & _BOUNDS else {**arguments, **UNWATCHED}


def waits_of(given: set[str], options: Any, outage: Any, election: Any) -> Waits:
    """Return the waits of a client that was *given* options of these names, and has these
    *options*.

    Raises ConfigurationError that names the valid values of *outage* and *election*.
    """
    is_given = "serverselectiontimeoutms" in given
    return Waits(
        _checked("outage_wait", outage),
        _checked("election_wait", election),
        float(options.server_selection_timeout) if is_given else None,
    )


def fresh_for(settings: Any) -> float:
    """Return for how many seconds the result of a heartbeat is valid, by a client's topology
    *settings*.

    The next heartbeat begins after one interval and ends after at most one more connect.
    """
    limit = settings.pool_options.connect_timeout
    return float(settings.heartbeat_frequency) + (limit or math.inf) + SPARE


def _checked(name: str, value: Any) -> float:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not (0 <= value <= LONGEST or value == math.inf):
        raise ConfigurationError(
            BAD_SETTING(
                f"{name}={shown(value)} must be a number of seconds of at least 0 (math.inf: never"
                " fail fast)"
            )
        )
    return float(value)
