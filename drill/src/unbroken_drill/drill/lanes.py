"""A few things at a time, each in a thread of its own, and all of them ended by a Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

#: How often the main thread looks up from waiting, so that a Ctrl-C and the display are prompt.
_TICK: Final = 0.1


def run_lanes(count: int, lane: Callable[[], None], tick: Callable[[], None], interrupt: Callable[[], None]) -> None:
    """Run *lane* in *count* threads until each has ended, and call *tick* ten times a second meanwhile.

    Whatever is raised here, a KeyboardInterrupt too: *interrupt* is called, which must make the lanes end, and they are
    waited for.
    """
    ended = threading.Semaphore(0)

    def one() -> None:
        try:
            lane()
        finally:
            ended.release()

    lanes = [threading.Thread(target=one, name=f"drill lane {number}") for number in range(count)]
    begun: list[threading.Thread] = []
    try:
        for each in lanes:
            each.start()
            begun.append(each)
        left = count
        # not Thread.join: a Ctrl-C within it makes Python 3.11 take the thread for ended
        while left:
            left -= ended.acquire(timeout=_TICK)
            tick()
    except BaseException:
        interrupt()
        raise
    finally:
        for each in begun:
            each.join()
