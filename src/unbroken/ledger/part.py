"""What one connection did in one attempt of a unit of work."""

from __future__ import annotations

from typing import Any

from unbroken.ledger.verdicts import Origin


class Part:
    """What one connection did in one attempt."""

    __slots__ = (
        "dead",
        "direct",
        "doubted",
        "entry",
        "fresh",
        "last",
        "looked",
        "older",
        "open",
        "origin",
        "pending",
        "reports",
        "savepoints",
        "sent",
        "settling",
        "undoing",
        "unheard",
    )

    def __init__(self) -> None:
        self.origin: Origin | None = None  # the pool that it came from
        self.entry: Any = None  # what that pool knows of it
        self.fresh = False  # it was opened, or used, just before
        self.older = False  # it was open when the attempt before lost its connection
        self.reports = 0  # how many came
        self.sent = 0  # how many statements went out
        self.last: str | bytes | None = (
            None  # the last of them, as long as nobody told that it was answered
        )
        self.dead = False  # it was lost
        self.looked = (
            False  # a SELECT in the open transaction may have called something that writes
        )
        self.unheard = False  # a COMMIT of that went out, and its answer is not known
        self.open = False  # it wrote in a transaction that nobody has ended
        self.savepoints = True  # … nothing but savepoints
        self.undoing = False  # a ROLLBACK of that went out as text, and its answer is not known
        self.pending = False  # a COMMIT of that went out, and its answer is not known
        self.doubted = False  # a COMMIT was answered with an error that proves nothing
        self.settling = False  # … of another kind: XA COMMIT
        self.direct = False  # a write in autocommit went out, and its answer is not known

    @property
    def is_unsettled(self) -> bool:
        """Whether something of it may be stored, now or later, without a word of the server's."""
        return self.pending or self.direct or (self.open and not self.savepoints)

    def add(self, other: Part) -> None:
        """What *other* did counts as done here."""
        self.savepoints = self.savepoints and other.savepoints
        self.open = self.open or other.open
        self.undoing = self.undoing or other.undoing
        self.pending = self.pending or other.pending
        self.doubted = self.doubted or other.doubted
        self.settling = self.settling or other.settling
        self.direct = self.direct or other.direct
