"""The answer to a web client when the database was lost: the status, the text, the page."""

from __future__ import annotations

import html
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from unbroken.abc import Fault
from unbroken.errors import (
    CommitUnknownError,
    ConnectionLostError,
    DeadlineExceeded,
    OutageError,
    PoolTimeoutError,
    UnbrokenError,
)
from unbroken.integrations.web.settings import SAFE
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Fate
from unbroken.logs import Part
from unbroken.messages.integrations import ANSWERED
from unbroken.pool.rollbacks import EXCEPT
from unbroken.pool.undone import mark_of

log = Part("web")


class Swallowed(Exception):  # noqa: N818 - not an error by itself: it carries one
    """The app answered with a server error because of its ``__cause__``, which it did not let
    through.
    """


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield *exc*, the exceptions that it wraps (SQLAlchemy's ``orig``), was raised from, or was
    raised while handling, and the members of groups.
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
    """The response that replaces an error page. *cause* is for the log: it may name hosts, which a
    page must not. *code* is the error's, and ends *detail*.
    """

    status: str
    error: str
    detail: str
    retry_after: int | None
    fate: Fate
    cause: str
    code: str


_STORED = (
    "The committed writes of this request are stored, but its response could not be produced. Check"
    " the data before you repeat the request."
)
_UNKNOWN = (
    "It is unknown whether the writes of this request are stored. Check the data before you repeat"
    " the request."
)
#: For a request that must not simply be sent again: the failure, and its text.
_FAILED = {
    Fate.UNKNOWN: ("outcome unknown", _UNKNOWN),
    Fate.STORED: ("stored, not answered", _STORED),
}


def answer_to(
    exc: BaseException | None,
    heard: Iterable[BaseException],
    fate: Fate,
    method: str,
    *,
    keeps: bool = False,
) -> Answer | None:
    """Return the answer to an error of the database's; None for any other error.

    *heard* are errors that the app did not let through. *fate* is the ledger's knowledge of the
    writes of the request, *method* is the request's. Only a request that stored nothing is told to
    try again. *keeps*: some of its writes may have gone to tables without transactions.

    A lost connection counts only if its error is behind *exc*: the app may have handled another.
    """
    found = [*chain(exc), *(link for each in heard for link in chain(each))]
    kinds = (_is_unknown, _is_of_mongo, _is_away)  # the worst is reported
    away = next((link for is_so in kinds for link in found if is_so(link)), None)
    if away is None:
        away = next((link for link in chain(exc) if _is_lost(link, fate)), None)
    if away is None:
        return None
    cause = one_line(away)
    if _is_unknown(away) or (_is_of_mongo(away) and _may_have_stored(away, method)):
        fate = Fate.UNKNOWN
    code = _code_of(away)
    if fate in _FAILED:
        error, words = _FAILED[fate]
        words = f"{words} [{code}]"
        return Answer("500 Internal Server Error", error, words, None, fate, cause, code)
    seconds = max(1, math.ceil(getattr(away, "retry_after", 1.0)))
    words = (
        f"{_why(away)}. Nothing from this request is stored{EXCEPT if keeps else ''}."
        f" Please try again in {seconds} s. [{code}]"
    )
    return Answer(
        "503 Service Unavailable", "service unavailable", words, seconds, fate, cause, code
    )


def _why(exc: BaseException) -> str:
    """Return the fact that a client is told."""
    if isinstance(exc, DeadlineExceeded):
        return "The database did not answer in time"
    if isinstance(exc, PoolTimeoutError) or _is_queue_timeout(exc):
        return "The database has no free connection at the moment"
    if isinstance(exc, ConnectionLostError) or mark_of(exc) is not None:
        return "The connection to the database was lost"
    return "The database cannot be reached at the moment"


def _code_of(exc: BaseException) -> str:
    """Return the code of an error of ours; that of the answer itself for a driver's or a
    framework's.
    """
    code = exc.code if isinstance(exc, UnbrokenError) else None
    return code if isinstance(code, str) else ANSWERED.code


def _is_unknown(exc: BaseException) -> bool:
    return isinstance(exc, CommitUnknownError)


def _is_away(exc: BaseException) -> bool:
    return isinstance(
        exc, (OutageError, PoolTimeoutError, DeadlineExceeded, ConnectionLostError)
    ) or _is_queue_timeout(exc)


def _is_lost(exc: BaseException, fate: Fate) -> bool:
    """Return whether *exc* is a driver's error whose work was lost and is not run again.

    If nothing is stored and another attempt cannot succeed, the error remains the app's own.
    """
    is_curable = mark_of(exc)
    return is_curable is not None and (is_curable or fate is not Fate.NOTHING)


def _is_of_mongo(exc: BaseException) -> bool:
    errors = sys.modules.get("pymongo.errors")
    return errors is not None and isinstance(exc, errors.ConnectionFailure)


def _may_have_stored(exc: Any, method: str) -> bool:
    """Return whether an error of PyMongo's leaves a write in doubt that the ledger does not know
    of: a plain client's writes are in no ledger.
    """
    if exc.__dict__.get("unbroken_followed"):
        return False
    errors = sys.modules["pymongo.errors"]
    unsent = (errors.ServerSelectionTimeoutError, errors.WaitQueueTimeoutError)
    certain = isinstance(exc, unsent) or exc.has_error_label("NoWritesPerformed")
    return not certain and method not in SAFE


def _is_queue_timeout(exc: BaseException) -> bool:
    """Return whether it is SQLAlchemy's own: its pool had no connection within pool_timeout."""
    errors = sys.modules.get("sqlalchemy.exc")
    return errors is not None and isinstance(exc, errors.TimeoutError)


def one_line(exc: BaseException) -> str:
    """Return the message of *exc*, for the log."""
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"


def fault_of(unit: Unit, exc: BaseException) -> Fault | None:
    """Return the unit's fault, also through SQLAlchemy's wrappers and exception groups."""
    for link in chain(exc):
        fault = unit.fault_of(link)
        if fault is not None:
            return fault
    return None


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1><p>{detail}</p></body></html>
"""


def page(answer: Answer, accept: str) -> tuple[list[tuple[str, str]], bytes]:
    """Return headers and body of *answer*: HTML if *accept* prefers it, else JSON."""
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
        "code": answer.code,
        "fate": answer.fate.value,
    }
    if answer.retry_after is not None:
        shown["retry_after"] = answer.retry_after
    return json_page(shown, headers)


def json_page(
    shown: Any, headers: Iterable[tuple[str, str]] = ()
) -> tuple[list[tuple[str, str]], bytes]:
    """Return headers and body of *shown* as JSON."""
    body = json.dumps(shown).encode() + b"\n"
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        *headers,
    ], body


def prefers_html(accept: str) -> bool:
    """Return whether an Accept header names HTML, and not JSON with a higher weight."""
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
    """Write one line to the log in place of a traceback."""
    status = answer.status.split(" ", 1)[0]
    request = f"{method} {printable(path)}"
    log.warning(
        "answered",
        ANSWERED(
            f"{request} was answered with {status} (its writes: {answer.fate.value}):"
            f" {answer.cause}"
        ),
        about=(status, answer.fate.value),
        request=request,
        status=int(status),
        fate=answer.fate.value,
    )


def printable(path: str) -> str:
    """Return a path in the form that one line of a log may show."""
    return "".join(c if c.isprintable() else "?" for c in unquote(path))[:200]
