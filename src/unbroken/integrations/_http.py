"""What the web integrations have in common: their settings, which requests are run again, and what an outage is answered with."""

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
from typing import Any
from urllib.parse import unquote

from unbroken.abc import Fault
from unbroken.core.unit import Action, Unit
from unbroken.errors import CommitUnknownError, ConfigurationError, ConnectionLostError, DeadlineExceeded, OutageError, PoolTimeoutError

log = logging.getLogger("unbroken")

#: Methods that RFC 9110, section 9.2.1, calls safe and that apps implement.
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """What a web integration does. :meth:`of` builds one from keywords and says clearly what is wrong with them."""

    methods: Iterable[str] = SAFE
    """Requests by these methods are run again when a connection is lost and nothing was committed. () for none."""

    replay: Iterable[str] | str | Callable[[Mapping[str, Any]], bool | None] | None = None
    """Others that may be run again: path prefixes (``("/orders",)``), or a callable that is given the environ or scope and
    answers True, False, or None for what the method says."""

    max_body: int = 1 << 20
    """A request whose body is longer (bytes) is not run again: it would have to be kept."""

    max_replays: int = 10
    """How often one request is run again at most."""

    deadline: float | None = None
    """Seconds for all attempts of a request that may be run again; what blocks then is ended. None: no bound."""

    databases: Iterable[Any] = ()
    """The pools and SQLAlchemy engines that /readyz asks, and out of which nothing stays taken after a request."""

    healthz: str | None = None
    """A path that answers 200 as long as the process does, such as "/healthz"."""

    readyz: str | None = None
    """A path that answers 200 when every one of *databases* answers, else 503, such as "/readyz"."""

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
            given["methods"] = frozenset(m.upper() for m in ((methods,) if isinstance(methods, str) else methods))
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
    """One database or several, as a tuple. A pool may be iterable in some sense; a list of them has no ``check``."""
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
            raise ConfigurationError(f"{name}={value!r} must be a number of seconds above 0{', or None' if name == 'deadline' else ''}")
    for name in ("healthz", "readyz"):
        value = getattr(s, name)
        if value is not None and not (isinstance(value, str) and value.startswith("/")):
            raise ConfigurationError(f"{name}={value!r} must be a path that begins with a slash, or None")


def under(path: str, prefix: str) -> bool:
    """Whether *path* is *prefix* or below it: "/orders" has "/orders/7" below it, not "/orders-old"."""
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


# -- what went wrong -----------------------------------------------------------------------------------------------


class Swallowed(Exception):  # noqa: N818 - not an error by itself: it carries one
    """The app answered with a server error because of its ``__cause__``, which it did not let through."""


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """*exc*, what it wraps (SQLAlchemy's ``orig``), was raised from, or in handling which; and the members of groups."""
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
    """What is sent instead of an error page. *cause* is for the log: it may name hosts, which a page must not."""

    status: str
    error: str
    detail: str
    retry_after: int | None
    cause: str


def answer_to(exc: BaseException | None, heard: Iterable[BaseException] = (), method: str = "POST") -> Answer | None:
    """What to send for an error of the database's; None for any other. *heard* are errors that the app did not let through.

    *method*: the request's. One that is safe wrote nothing whose fate could be unknown.
    """
    found = [*chain(exc), *(link for each in heard for link in chain(each))]
    for link in found:
        if isinstance(link, CommitUnknownError):
            return Answer(
                "500 Internal Server Error",
                "outcome unknown",
                "The connection to the database was lost while the work was being committed: it is stored whole, or not at all. "
                "Look before you repeat it.",
                None,
                one_line(link),
            )
    unanswered = next((link for link in found if _is_of_mongo(link)), None)
    if unanswered is not None and not isinstance(unanswered, OutageError):  # one behind it, of another attempt, says less
        return _of_mongo(unanswered, method)
    for link in found:
        if isinstance(link, (OutageError, PoolTimeoutError, DeadlineExceeded, ConnectionLostError)) or _is_queue_timeout(link):
            seconds = max(1, math.ceil(getattr(link, "retry_after", 1.0)))
            words = f"The database cannot be reached at the moment. Please try again in {seconds} s."
            if not isinstance(link, (OutageError, ConnectionLostError)):
                words = f"The database did not answer in time. Please try again in {seconds} s."
            return Answer("503 Service Unavailable", "service unavailable", words, seconds, one_line(link))
    return None


def _is_of_mongo(exc: BaseException) -> bool:
    """Whether PyMongo says so of a server that is not there, does not answer in time, or hung up."""
    errors = sys.modules.get("pymongo.errors")
    return errors is not None and isinstance(exc, errors.ConnectionFailure)


def _of_mongo(exc: Any, method: str) -> Answer:
    errors = sys.modules["pymongo.errors"]
    nothing_sent = isinstance(exc, (errors.ServerSelectionTimeoutError, errors.WaitQueueTimeoutError))
    if nothing_sent or exc.has_error_label("NoWritesPerformed") or method in SAFE:
        words = "The database did not answer in time. Please try again in 1 s."
        return Answer("503 Service Unavailable", "service unavailable", words, 1, one_line(exc))
    words = "The database did not answer: what was sent to it last is stored, or it is not. Look before you repeat it."
    return Answer("500 Internal Server Error", "outcome unknown", words, None, one_line(exc))


def _is_queue_timeout(exc: BaseException) -> bool:
    """SQLAlchemy's own: its pool had nothing to give within pool_timeout."""
    errors = sys.modules.get("sqlalchemy.exc")
    return errors is not None and isinstance(exc, errors.TimeoutError)


def one_line(exc: BaseException) -> str:
    """The message of *exc*, for the log."""
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"


def swallowed(unit: Unit | None) -> BaseException | None:
    """What made the app answer with a server error, if another attempt would cure it."""
    if unit is None:
        return None
    for exc, fault in reversed(unit.noted()):
        if unit.verdict(fault).action is Action.REPLAY:
            return exc
    return None


def fault_of(unit: Unit, exc: BaseException) -> Fault | None:
    """As the unit's own, also through SQLAlchemy's wrappers and exception groups."""
    for link in chain(exc):
        fault = unit.fault_of(link)
        if fault is not None:
            return fault
    return None


# -- pages ---------------------------------------------------------------------------------------------------------

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
        body = _PAGE.format(title=html.escape(answer.error.capitalize()), detail=html.escape(answer.detail)).encode()
        return [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body))), *headers], body
    shown: dict[str, Any] = {"error": answer.error, "detail": answer.detail}
    if answer.retry_after is not None:
        shown["retry_after"] = answer.retry_after
    return json_page(shown, headers)


def json_page(shown: Any, headers: Iterable[tuple[str, str]] = ()) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of *shown* as JSON."""
    body = json.dumps(shown).encode() + b"\n"
    return [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers], body


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
    log.warning("%s %s was answered %s: %s", method, printable(path), answer.status.split(" ", 1)[0], answer.cause)


def printable(path: str) -> str:
    """A path as one line of a log may show it."""
    return "".join(c if c.isprintable() else "?" for c in unquote(path))[:200]
