"""Callers on threads of their own, while something happens to their server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

#: Seconds within which all callers must have ended.
LIMIT = 30.0


@contextmanager
def at_work(callers: Iterable[Callable[[], object]], over: threading.Event) -> Iterator[None]:
    """Run *callers* until the block ends; *over* tells them. One that does not end is a failure."""
    threads = [threading.Thread(target=each) for each in callers]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        until = time.monotonic() + LIMIT
        for each in threads:
            each.join(max(0.0, until - time.monotonic()))
    assert not any(each.is_alive() for each in threads), "a caller hangs"
