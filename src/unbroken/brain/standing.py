"""Does the server behind one address take writes, and must it for this pool?

A server that takes none may be a standby on purpose, or the primary of a moment ago. Only what this
process has seen there tells them apart.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from unbroken.roles import Role, Wanted

#: Seconds between two looks of a process for a server that takes writes, where one that takes none
#: serves what only reads. Only refused writes have it look.
LOOK_EVERY = 1.0
#: Where the server does not say its role, it is asked again after so many seconds.
ASK_AGAIN = 60.0


class News(Enum):
    """What it means for all pools that a server with some role serves from now on."""

    NOTHING = auto()
    REDUCED = auto()  #: it was the primary, takes no writes, and serves what only reads
    BETTER = auto()  #: it takes writes, and what was opened before leads to one that does not


class Refused(Enum):
    """What follows when a server has refused a write because it takes none from anybody."""

    OUTAGE = auto()  #: it was demoted, or should be the primary: the pools wait for one
    LOOK = auto()  #: the error is the caller's; one connection is replaced, to look for a primary
    CALLERS = auto()  #: the error is the caller's


class Standing:
    """What is known of one server's role. The caller holds the lock of the record."""

    __slots__ = ("asked_at", "is_reduced", "looked_at", "took_writes")

    def __init__(self) -> None:
        self.asked_at = -math.inf  #: when it did not say last
        #: a server here has taken writes since this process began
        self.took_writes = False
        #: the one that serves takes none, and pools that want any make do with it
        self.is_reduced = False
        self.looked_at = -math.inf

    def must_ask(self, want: Wanted, now: float) -> bool:
        """Whether a new connection is asked for the role, be there no outage."""
        if want is not Wanted.ANY:
            return True
        return self.is_reduced or (not self.took_writes and now - self.asked_at >= ASK_AGAIN)

    def objection(self, role: Role | None, want: Wanted, *, waited_enough: bool) -> str | None:
        """Why a server with this *role* must not serve a pool that wants *want*; None: it may.

        *role* None: it could not be asked, which is no reason where the pool takes any server, and
        one where it wants a role. *waited_enough*: callers have
        waited for a primary for as long as the pool lets them. Then a server that can only be read
        is better than none, where the pool wants any.
        """
        if role is Role.UNREADY:
            return role.value
        if role is None and want in (Wanted.PRIMARY, Wanted.STANDBY):
            return f"does not say its role, and target={want.value}"
        if role is Role.STANDBY and want is Wanted.PRIMARY:
            return f"{role.value}, and target=primary"
        if role is Role.PRIMARY and want is Wanted.STANDBY:
            return f"{role.value}, and target=standby"
        was_demoted = self.took_writes and not self.is_reduced and not waited_enough
        if role is Role.STANDBY and want is Wanted.ANY and was_demoted:
            return f"{role.value}, and took writes before"
        return None

    def serves(self, role: Role | None, want: Wanted, now: float) -> News:
        """A server with this *role* serves a pool that wants *want* from now on."""
        was_reduced = self.is_reduced
        if role is None:
            self.asked_at = now
        elif role is Role.PRIMARY:
            self.took_writes, self.is_reduced = True, False
            return News.BETTER if was_reduced else News.NOTHING
        elif role is Role.STANDBY and want is Wanted.ANY:
            self.is_reduced = True
            return News.REDUCED if self.took_writes and not was_reduced else News.NOTHING
        return News.NOTHING

    def refused(self, want: Wanted, now: float) -> Refused:
        """A write was refused, because the server takes none from anybody."""
        if want is Wanted.PRIMARY or (self.took_writes and not self.is_reduced):
            return Refused.OUTAGE
        if want is Wanted.ANY and now - self.looked_at >= LOOK_EVERY:
            self.looked_at = now
            return Refused.LOOK
        return Refused.CALLERS
