"""What the web integrations have in common: their settings, which requests are run again, and what
an outage is answered with.
"""

from __future__ import annotations

import difflib
import html
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from time import monotonic
from typing import Any
from urllib.parse import unquote

from unbroken.abc import Fault
from unbroken.errors import (
    CommitUnknownError,
    ConfigurationError,
    ConnectionLostError,
    DeadlineExceeded,
    OutageError,
    PoolTimeoutError,
)
from unbroken.ledger import scope
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Fate

log = logging.getLogger("unbroken")

#: Where a WSGI environ or an ASGI scope holds the request's :class:`Exchange`.
KEY = "unbroken.exchange"

#: Methods that RFC 9110, section 9.2.1, calls safe and that apps implement.
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """What a web integration does.

    :meth:`of` builds one from keywords and says clearly what is wrong with them.
    """

    methods: Iterable[str] = SAFE
    """Requests by these methods are run again when a connection is lost and nothing was
    committed. () for none.
    """

    replay: Iterable[str] | str | Callable[[Mapping[str, Any]], bool | None] | None = None
    """Others that may be run again: path prefixes (``("/orders",)``), or a callable that is given
    the environ or scope and answers True, False, or None for what the method says."""

    max_body: int = 1 << 20
    """A request whose body is longer (bytes) is not run again: it would have to be kept."""

    max_replays: int = 10
    """How often one request is run again at most."""

    deadline: float | None = None
    """Seconds for all attempts of a request that may be run again; what blocks then is ended.

    None: no bound.
    """

    databases: Iterable[Any] = ()
    """The pools and SQLAlchemy engines that /readyz asks, and out of which nothing stays taken
    after a request.
    """

    healthz: str | None = None
    """A path that answers 200 as long as the process does, such as "/healthz"."""

    readyz: str | None = None
    """A path that answers 200 when every one of *databases* answers, else 503, such as
    "/readyz".
    """

    ready_timeout: float = 1.0
    """Seconds that each database has for that."""

    @classmethod
    def of(cls, **given: Any) -> HttpSettings:
        """Raises ConfigurationError that names the setting, the value and the remedy."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ConfigurationError(f"unknown setting {name!r}; {hint}")
        if "methods" in given:
            methods = given["methods"]
            given["methods"] = frozenset(
                m.upper() for m in ((methods,) if isinstance(methods, str) else methods)
            )
        if isinstance(given.get("replay"), str):
            given["replay"] = (given["replay"],)
        elif "replay" in given and given["replay"] is not None and not callable(given["replay"]):
            given["replay"] = tuple(given["replay"])
        if "databases" in given:
            given["databases"] = _several(given["databases"])
        settings = cls(**given)
        _validate(settings)
        return settings

    def may_replay(self, method: str, path: str, request: Mapping[str, Any]) -> bool:
        """Whether a request may be run again, if the ledger allows it."""
        if callable(self.replay):
            answer = self.replay(request)
            if answer is not None:
                return bool(answer)
        elif self.replay is not None and any(under(path, prefix) for prefix in self.replay):
            return True
        return method in self.methods


def _several(given: Any) -> tuple[Any, ...]:
    """One database or several, as a tuple.

    A pool may be iterable in some sense; a list of them has no ``check``.
    """
    return tuple(given) if isinstance(given, (list, tuple, set, frozenset)) else (given,)


def _validate(s: HttpSettings) -> None:
    for name, least in (("max_body", 0), ("max_replays", 0)):
        value = getattr(s, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(f"{name}={value!r} must be a whole number of at least {least}")
    for name in ("deadline", "ready_timeout"):
        value = getattr(s, name)
        if value is None and name == "deadline":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigurationError(
                f"{name}={value!r} must be a number of seconds above"
                f" 0{', or None' if name == 'deadline' else ''}"
            )
    for name in ("healthz", "readyz"):
        value = getattr(s, name)
        if value is not None and not (isinstance(value, str) and value.startswith("/")):
            raise ConfigurationError(
                f"{name}={value!r} must be a path that begins with a slash, or None"
            )


def under(path: str, prefix: str) -> bool:
    """Whether *path* is *prefix* or below it: "/orders" has "/orders/7" below it, not
    "/orders-old".
    """
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


# -- what went wrong -------------------------------------------------------------------------------


class Swallowed(Exception):  # noqa: N818 - not an error by itself: it carries one
    """The app answered with a server error because of its ``__cause__``, which it did not let
    through.
    """


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """*exc*, what it wraps (SQLAlchemy's ``orig``), was raised from, or in handling which; and the
    members of groups.
    """
    todo, seen = [exc], set()
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        todo.append(None if link.__suppress_context__ else link.__context__)
        todo.append(link.__cause__)
        orig = getattr(link, "orig", None)
        if isinstance(orig, BaseException):
            todo.append(orig)
        if isinstance(link, BaseExceptionGroup):
            todo.extend(link.exceptions)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent instead of an error page. *cause* is for the log: it may name hosts, which a
    page must not.
    """

    status: str
    error: str
    detail: str
    retry_after: int | None
    fate: Fate
    cause: str


_STORED = (
    "What this request had committed is stored; the answer could not be made. Look before you"
    " repeat it."
)
_UNKNOWN = "It is not known whether what this request wrote is stored. Look before you repeat it."


def answer_to(
    exc: BaseException | None, heard: Iterable[BaseException], fate: Fate, method: str
) -> Answer | None:
    """What to send for an error of the database's; None for any other error.

    *heard* are errors that the app did not let through. *fate* is what the ledger knows of the
    writes of the request, *method* is the request's. Only a request that stored nothing is told
    to try again.
    """
    found = [*chain(exc), *(link for each in heard for link in chain(each))]
    kinds = (_is_unknown, _is_of_mongo, _is_away)  # the worst is told
    away = next((link for is_so in kinds for link in found if is_so(link)), None)
    if away is None:
        return None
    cause = one_line(away)
    if _is_unknown(away) or (_is_of_mongo(away) and _may_have_stored(away, method)):
        fate = Fate.UNKNOWN
    if fate is Fate.UNKNOWN:
        return Answer("500 Internal Server Error", "outcome unknown", _UNKNOWN, None, fate, cause)
    if fate is Fate.STORED:
        return Answer(
            "500 Internal Server Error", "stored, not answered", _STORED, None, fate, cause
        )
    seconds = max(1, math.ceil(getattr(away, "retry_after", 1.0)))
    cannot = isinstance(away, (OutageError, ConnectionLostError))
    why = "cannot be reached at the moment" if cannot else "did not answer in time"
    words = (
        f"The database {why}; nothing of this request is stored. Please try again in {seconds} s."
    )
    return Answer("503 Service Unavailable", "service unavailable", words, seconds, fate, cause)


def _is_unknown(exc: BaseException) -> bool:
    return isinstance(exc, CommitUnknownError)


def _is_away(exc: BaseException) -> bool:
    return isinstance(
        exc, (OutageError, PoolTimeoutError, DeadlineExceeded, ConnectionLostError)
    ) or _is_queue_timeout(exc)


def _is_of_mongo(exc: BaseException) -> bool:
    errors = sys.modules.get("pymongo.errors")
    return errors is not None and isinstance(exc, errors.ConnectionFailure)


def _may_have_stored(exc: Any, method: str) -> bool:
    """Whether an error of PyMongo's leaves a write in doubt that the ledger does not know of: a
    plain client's are in none.
    """
    if exc.__dict__.get("unbroken_followed"):
        return False
    errors = sys.modules["pymongo.errors"]
    unsent = (errors.ServerSelectionTimeoutError, errors.WaitQueueTimeoutError)
    certain = isinstance(exc, unsent) or exc.has_error_label("NoWritesPerformed")
    return not certain and method not in SAFE


def _is_queue_timeout(exc: BaseException) -> bool:
    """SQLAlchemy's own: its pool had nothing to give within pool_timeout."""
    errors = sys.modules.get("sqlalchemy.exc")
    return errors is not None and isinstance(exc, errors.TimeoutError)


def one_line(exc: BaseException) -> str:
    """The message of *exc*, for the log."""
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"


def fault_of(unit: Unit, exc: BaseException) -> Fault | None:
    """As the unit's own, also through SQLAlchemy's wrappers and exception groups."""
    for link in chain(exc):
        fault = unit.fault_of(link)
        if fault is not None:
            return fault
    return None


# -- one request -----------------------------------------------------------------------------------


class Exchange:
    """One request: the ledger that watches all of it, and what may still be done about an error.

    Each request has its own, also one that is made inside another (a test client's in a view). A
    part of the same request (a mounted app) shares the ledger of the whole.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.limits: HttpSettings | None = None  #: what bounds its attempts; None: never run again
        self.attempts = 0  #: how many were begun of one that may be run again
        self.begun = False  #: something went out: no other attempt, no other answer
        self.heard: list[
            BaseException
        ] = []  #: the database's errors, whatever the app made of them
        self._said: tuple[Answer, BaseException] | None = None  # an answer, not sent yet, and why
        self._whole: Exchange | None = None
        self._own: Unit | None = None  # the unit of work of its attempts, where it is not another's
        self._token: scope.Token | None = None
        self._witness: Any = None

    # -- the ledger --------------------------------------------------------------------------------

    def watch(self, whole: Exchange | None) -> None:
        """From now on, hear of the database's errors and follow all writes.

        *whole*: the exchange that this one is a part of, if that is the same request. The caller's
        frame must call :meth:`unwatch` before it returns.
        """
        self._whole = whole
        self._witness = scope.witnesses(self.heard)
        watched = None if whole is None else scope.current()
        if watched is None:
            self._token = scope.enter(Unit(observing=True), id(sys._getframe(1)))
        else:
            self._token = scope.Token(watched, False)

    def unwatch(self) -> None:
        """The exchange is over. Call it in any case, in the context of :meth:`watch`."""
        if self._token is not None:
            scope.leave(self._token)
        if self._witness is not None:
            scope.no_longer_witnesses(self._witness)
        self.heard.clear()
        self._said = self._whole = self._own = None

    @property
    def fate(self) -> Fate:
        """What the ledger knows of what this request wrote."""
        return Fate.UNKNOWN if self._token is None else self._token.unit.fate()

    @property
    def is_troubled(self) -> bool:
        """Whether a database raised an error in this attempt, whatever the app made of it."""
        watching = None if self._token is None else self._token.unit
        return bool(self.heard) or any(
            unit is not None and unit.met for unit in (self._own, watching)
        )

    @property
    def unit(self) -> Unit | None:
        """The unit of work that an attempt at this request is now in; None: it is not run again
        from here.
        """
        unit = scope.current()
        return None if unit is None or unit.observing else unit

    def attempt(self) -> bool:
        """An attempt begins, in its unit of work.

        Whether there was one before, which is forgotten.
        """
        self.attempts += 1
        unit = scope.current()
        is_own = self._token is not None and unit is not self._token.unit
        self._own = unit if is_own else None
        self.heard.clear()
        self._said = None
        return self.attempts > 1

    def go_out(self) -> None:
        """The response goes out: it cannot be run again, and what a stream or a background task
        does from here on is no part of its unit of work."""
        self.begun = True
        if self._own is not None:
            self._own.close()

    # -- another attempt? --------------------------------------------------------------------------

    def is_cut_off(self) -> bool:
        """Whether some of the client's body was read and not kept, so that no attempt can read it
        again.
        """
        return False

    def has_turn(self) -> Unit | None:
        """The unit of this attempt, if attempts and time are left for another one."""
        unit, limits = self.unit, self.limits
        if unit is None or limits is None or self.begun or self.is_cut_off():
            return None
        return unit if unit.attempts <= limits.max_replays and monotonic() < unit.until else None

    def would_replay(self, exc: BaseException) -> bool:
        """Whether another attempt follows if the app raises *exc* now."""
        unit = self.has_turn()
        fault = None if unit is None else fault_of(unit, exc)
        return (
            unit is not None and fault is not None and unit.verdict(fault).action is Action.REPLAY
        )

    def curable(self) -> BaseException | None:
        """The last error of the database's in this attempt that another attempt would cure."""
        unit = self.has_turn()
        if unit is not None:
            for exc, fault in reversed(unit.noted()):
                if unit.verdict(fault).action is Action.REPLAY:
                    return exc
        return None

    def tell(self, exc: BaseException) -> None:
        """Have the unit know *exc* by what it was raised from, also through SQLAlchemy's wrappers
        and groups.
        """
        unit = self.unit
        if (
            unit is not None
            and unit.fault_of(exc) is None
            and (fault := fault_of(unit, exc)) is not None
        ):
            unit.note(exc, fault)

    # -- the answer --------------------------------------------------------------------------------

    def answer(self, exc: BaseException | None) -> Answer | None:
        """What to send for *exc*; with None, for what the app made a page of.

        None: the app's own matter.
        """
        answer = answer_to(exc, self.heard, self.fate, self.method)
        if answer is not None:
            self._say(answer, self.heard[-1] if exc is None else exc)
        return answer

    def _say(self, answer: Answer, cause: BaseException) -> None:
        self._said = answer, cause
        if self._whole is not None:
            self._whole._say(answer, cause)

    def reconsider(self, status: int) -> None:
        """The app is done, and *status* is not sent yet. Raises Swallowed if another answer is due.

        That is so when another attempt would cure an error that the app made a page of, when an
        outage made the app answer 500, and when the app stored something after it was told that
        nothing is stored.
        """
        if status < 500:
            return
        cause = self.curable()
        if cause is None:
            cause = self._due(status)
        if cause is not None:
            raise Swallowed(f"answered with {status}") from cause

    def _due(self, status: int) -> BaseException | None:
        """Why an answer of ours must take the place of the app's page."""
        if self._said is not None and self._said[0].fate is not Fate.NOTHING:
            return None  # the page says so, or the app chose another one
        if self._said is not None and self.fate is not Fate.NOTHING:
            return self._said[1]
        if status == 500 and answer_to(None, self.heard, self.fate, self.method) is not None:
            return self.heard[-1]
        return None


# -- pages -----------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1><p>{detail}</p></body></html>
"""


def page(answer: Answer, accept: str) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of *answer*: HTML where *accept* prefers it, else JSON."""
    headers = [("Cache-Control", "no-store")]
    if answer.retry_after is not None:
        headers.append(("Retry-After", str(answer.retry_after)))
    if prefers_html(accept):
        body = _PAGE.format(
            title=html.escape(answer.error.capitalize()), detail=html.escape(answer.detail)
        ).encode()
        return [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            *headers,
        ], body
    shown: dict[str, Any] = {
        "error": answer.error,
        "detail": answer.detail,
        "fate": answer.fate.value,
    }
    if answer.retry_after is not None:
        shown["retry_after"] = answer.retry_after
    return json_page(shown, headers)


def json_page(
    shown: Any, headers: Iterable[tuple[str, str]] = ()
) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of *shown* as JSON."""
    body = json.dumps(shown).encode() + b"\n"
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        *headers,
    ], body


def prefers_html(accept: str) -> bool:
    """Whether an Accept header names HTML, and not JSON with a higher weight."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, _, parameters = part.partition(";")
        found = re.search(r"(?:^|;)\s*q\s*=\s*([0-9.]+)", parameters)
        try:
            weights[kind.strip()] = float(found.group(1)) if found else 1.0
        except ValueError:
            continue
    as_html = max(weights.get("text/html", 0.0), weights.get("application/xhtml+xml", 0.0))
    return as_html > 0 and as_html >= weights.get("application/json", 0.0)


def report(answer: Answer, method: str, path: str) -> None:
    """One line in the log in place of a traceback."""
    status = answer.status.split(" ", 1)[0]
    log.warning(
        "%s %s was answered %s, %s: %s",
        method,
        printable(path),
        status,
        answer.fate.value,
        answer.cause,
    )


def printable(path: str) -> str:
    """A path as one line of a log may show it."""
    return "".join(c if c.isprintable() else "?" for c in unquote(path))[:200]
