"""The cost of one server's outage so far, and when the next line about it is logged."""

from __future__ import annotations

#: Seconds between two log lines about the same outage.
EVERY = 60.0


class Toll:
    """One outage's figures. The caller holds the lock of the server's record."""

    __slots__ = ("attempts", "callers", "told_at")

    def __init__(self) -> None:
        self.attempts = 0  #: attempts to connect that failed
        self.callers = 0  #: callers that were turned away or timed out
        self.told_at = 0.0  #: when the last line about the outage was logged

    def begin(self, now: float, attempts: int = 1) -> None:
        """An outage begins and is logged. This many *attempts* have failed."""
        self.attempts, self.callers, self.told_at = attempts, 0, now

    def is_due(self, now: float) -> bool:
        """Whether another line is due at *now*. True at most once in :data:`EVERY` seconds."""
        if now - self.told_at < EVERY:
            return False
        self.told_at = now
        return True

    def words(self) -> str:
        """The figures as text: ``1,207 attempts failed, 6,000 callers turned away``."""
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts:,} attempts"
        callers = "1 caller" if self.callers == 1 else f"{self.callers:,} callers"
        return f"{attempts} failed, {callers} turned away"
