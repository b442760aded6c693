"""Of what a client was given: PyMongo's arguments, with defaults that bound every wait, and how
long callers wait in an outage.

The caller's own words win.
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
from unbroken.settings import LONGEST

#: Milliseconds. A server that has stopped answering is found out by a heartbeat: two seconds after
#: its last answer (1 s between heartbeats and 1 s to connect or answer), and every round trip that
#: waits for it ends then. What a healthy server takes long for is not bounded: a change stream, a
#: slow query, a long list. The third bounds the wait for a free connection, as every pool's does;
#: the last one what PyMongo chooses a server for by itself, such as the end of a cursor.
DEFAULTS: Mapping[str, int] = {
    "heartbeatFrequencyMS": 1000,
    "connectTimeoutMS": 1000,
    "waitQueueTimeoutMS": 10_000,
    "serverSelectionTimeoutMS": 2000,
}
#: Milliseconds. Where no heartbeat looks on (in uWSGI's master, behind a load balancer), the bound
#: is on the socket.
UNWATCHED = {"socketTimeoutMS": 2000}
_BOUNDS = {"timeoutms", "sockettimeoutms"}

#: Seconds that a busy machine may take for a heartbeat beside its wait and its answer.
SPARE = 0.5

#: How long callers wait for a server that is away, in seconds: as every pool's do.
OUTAGE_WAIT = 5.0
#: How much longer they wait where a set elects, in seconds. As MongoDB comes, a primary that
#: is gone is replaced after eleven seconds, and one that is frozen after up to twenty.
ELECTION_WAIT = 20.0
#: A change stream that resumes waits so many times as long as other callers: by default for 30 s,
#: as PyMongo's does.
STREAM = 6.0
#: Whether a change stream is being resumed.
resuming: ContextVar[bool] = ContextVar("unbroken.mongo.resuming", default=False)


@dataclass(frozen=True)
class Waits:
    """How long a client's callers wait for a server, in seconds; ``math.inf``: for ever.

    *selection* is the caller's own ``serverSelectionTimeoutMS``; None: he gave none.
    """

    outage: float
    election: float
    selection: float | None = None

    def least(self, operation: Any) -> float:
        """How long a caller of *operation* may wait, however long the outage has lasted.

        A COMMIT, so that it is found out what became of it. A change stream that resumes waits for
        news, and nobody waits for it.
        """
        if operation == "commitTransaction":
            return self.outage
        return STREAM * self.outage if resuming.get() else 0.0

    def until(self, came: float) -> float:
        """When the own time of a caller is up who *came* then: what he said himself."""
        ends = math.inf if self.selection is None else came + self.selection
        return min(ends, _csot.get_deadline()) if _csot.get_timeout() else ends


def given_options(host: Any, kwargs: Iterable[str]) -> set[str]:
    """The names (in small letters) of all options in the URIs of *host* and in *kwargs*."""
    return {name.lower() for name in (*kwargs, *_in_uris(host))}


def _in_uris(host: Any) -> set[str]:
    """The names of the options in the URIs of *host*."""
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
    """Raise ConfigurationError for what is no host or URI, and for options of a URI that are meant
    for us.
    """
    option_names.check_host(host)
    option_names.check_names(_in_uris(host), ())


def with_defaults(host: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """*kwargs*, and the defaults for what neither they nor the URI say.

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
    """*arguments* for a client that no heartbeat looks after: with a bound on its sockets, unless
    they have one.
    """
    given = given_options(arguments.get("host"), arguments)
    return {**arguments} if given & _BOUNDS else {**arguments, **UNWATCHED}


def waits_of(given: set[str], options: Any, outage: Any, election: Any) -> Waits:
    """The waits of a client that was *given* options of these names, and has these *options*.

    Raises ConfigurationError that says what *outage* and *election* may be.
    """
    is_given = "serverselectiontimeoutms" in given
    return Waits(
        _checked("outage_wait", outage),
        _checked("election_wait", election),
        float(options.server_selection_timeout) if is_given else None,
    )


def fresh_for(settings: Any) -> float:
    """For how many seconds what a heartbeat showed holds, by a client's topology *settings*.

    The next heartbeat begins after one interval and ends after one more connect at the latest.
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
