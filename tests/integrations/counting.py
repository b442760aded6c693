"""Exact counts of round trips on the wire, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

from unbroken_drill import FaultProxy


def per_request(proxy: FaultProxy, far: float, request: Callable[[], object]) -> float:
    """How many round trips through *proxy*, *far* seconds each way, each *request* costs that
    comes right after another one.

    The answer that the last request of a row leaves behind is one more for each row. So two rows
    are compared, each counted when nothing is on its way.
    """

    def total(times: int) -> int:
        rest(proxy, far)
        before = proxy.round_trips
        for _ in range(times):
            request()
        rest(proxy, far)
        return proxy.round_trips - before

    for _ in range(6):  # psycopg prepares a statement when it is sent for the sixth time
        request()
    # the smallest: where something keeps this process from going on at once, it waits for answers
    few, many = (min(total(times) for _ in range(2)) for times in (3, 7))
    return (many - few) / 4


def rest(proxy: FaultProxy, far: float) -> None:
    """Wait until nothing is on its way."""
    seen = -1
    while (now := proxy.round_trips) != seen:
        seen = now
        time.sleep(4 * far)
