"""Notify the application's observers of each event. Their exceptions are logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unbroken.abc import Observer
from unbroken.logs import Part
from unbroken.messages.pool import OBSERVER_FAILED

log = Part("pool")


def tell(observers: Iterable[Observer], event: str, fields: Mapping[str, Any]) -> None:
    """Call each of *observers* with *event* and its *fields*."""
    for observer in observers:
        try:
            observer(event, fields)
        except Exception:
            log.exception(
                "observer failed",
                OBSERVER_FAILED(f"an observer raised an error at the event {event!r}"),
                about=event,
            )
