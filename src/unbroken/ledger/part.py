"""The record of one connection in one attempt of a unit of work."""

from __future__ import annotations

from typing import Any

from unbroken.ledger.verdicts import Origin


class Part:
    """The record of one connection in one attempt."""

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
        self.entry: Any = None  # that pool's record of it
        self.fresh = False  # it was opened, or used, just before
        self.older = False  # it was open when the attempt before lost its connection
        self.reports = 0  # the number of reports
        self.sent = 0  # the number of statements sent
        self.last: str | bytes | None = (
            None  # the last of them, as long as no answer to it was reported
        )
        self.dead = False  # it was lost
        self.looked = (
            False  # a SELECT in the open transaction may have called a function that writes
        )
        self.unheard = False  # a COMMIT of that was sent, and its answer is not known
        self.open = False  # it wrote in a transaction that was not ended
        self.savepoints = True  # … only savepoints
        self.undoing = False  # a ROLLBACK of that was sent as text, and its answer is not known
        self.pending = False  # a COMMIT of that was sent, and its answer is not known
        self.doubted = False  # a COMMIT was answered with an error that proves nothing
        self.settling = False  # … of another kind: XA COMMIT
        self.direct = False  # a write in autocommit was sent, and its answer is not known

    @property
    def is_unsettled(self) -> bool:
        """Return whether something of it may be stored, now or later, without an answer from the
        server.
        """
        return self.pending or self.direct or (self.open and not self.savepoints)

    def add(self, other: Part) -> None:
        """Add the record of *other* to this one."""
        self.savepoints = self.savepoints and other.savepoints
        self.open = self.open or other.open
        self.undoing = self.undoing or other.undoing
        self.pending = self.pending or other.pending
        self.doubted = self.doubted or other.doubted
        self.settling = self.settling or other.settling
        self.direct = self.direct or other.direct
