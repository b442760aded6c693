"""One attempt to connect, as the brain sees it."""

from __future__ import annotations

import math

from unbroken.abc import Address


class Try:
    """One attempt to connect that is under way."""

    __slots__ = (
        "address",
        "is_ended",
        "is_late",
        "is_passed_over",
        "number",
        "started",
        "until",
        "who",
    )

    def __init__(self, who: object, started: float, number: int) -> None:
        self.who = who
        self.started = started
        self.until = math.inf  #: when its time is up
        self.number = number  #: among the attempts since the server last answered, from 1
        self.is_ended = False  #: it was told to end, for another to begin in its place
        self.is_passed_over = False  #: its host let us in, and another one is preferred
        self.address: Address | None = None  #: where it goes; None: where the URL says
        self.is_late = False  #: its time is up and it was counted as failed, though it still blocks
