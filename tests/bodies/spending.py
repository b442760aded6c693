"""Spend the retry budget of this process's servers."""

from __future__ import annotations

import time

from unbroken.pool import servers


def spend() -> None:
    """The bank of each server is empty."""
    for record in servers._records.values():
        with record.lock:
            record.budget.by_time = record.budget.by_success = 1e9
            record.budget.since = time.monotonic()
