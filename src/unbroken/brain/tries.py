"""The state of one attempt to connect."""

from __future__ import annotations

import math

from unbroken.abc import Address


class Try:
    """One attempt to connect that is in progress."""

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
        self.number = number  #: counted from 1 since the server last answered
        self.is_ended = False  #: it was ended so that another can begin in its place
        self.is_passed_over = False  #: its host accepted the login, but another host is preferred
        self.address: Address | None = None  #: its host; None: the URL's host
        self.is_late = False  #: its time is up and it was counted as failed, though it still blocks
