"""The subject of a unit of work, in words: a function, or a request."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

from unbroken.ledger.deeds import Deeds


@runtime_checkable
class Request(Protocol):
    """A request, as the subject of the unit that watches it."""

    def title(self) -> str:
        """Return its method and path, such as ``POST /orders``: no query, one line."""

    def why_not(self) -> tuple[str, str]:
        """Return why it is not run again if nothing of it was committed, and the remedy."""


def subjects(unit: Deeds | None) -> tuple[str | None, str | None]:
    """Return the function and the request that *unit* works for, as far as they are known."""
    function = request = None
    while unit is not None:
        subject = unit.subject
        if isinstance(subject, Request):
            request = request or subject.title()
        elif subject is not None:
            function = function or name_of(subject)
        unit = unit.above
    return function, request


def name_of(function: Any) -> str:
    """Return ``shop.views.order`` for that function, also behind ``functools.partial``."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def in_words(function: str | None, request: str | None) -> str:
    """Return ``shop.views.order in POST /orders``; empty if neither is known."""
    return " in ".join(each for each in (function, request) if each)
