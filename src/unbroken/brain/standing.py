"""Whether the server behind one address accepts writes, and whether it must for this pool.

A server that accepts none may be a standby by design, or a demoted primary. Only this process's own
observations distinguish them.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from unbroken.roles import Role, Wanted

#: Seconds between two searches of a process for a server that accepts writes, while a read-only one
#: serves reads. Only refused writes start a search.
LOOK_EVERY = 1.0
#: If the server does not report its role, it is asked again after this many seconds.
ASK_AGAIN = 60.0


class News(Enum):
    """The effect on all pools when a server with a new role serves."""

    NOTHING = auto()
    REDUCED = auto()  #: it was the primary, is now read-only, and serves reads
    BETTER = auto()  #: it accepts writes; older connections lead to a read-only server


class Refused(Enum):
    """The next step after a server refused a write because it is read-only for all clients."""

    OUTAGE = auto()  #: it was demoted, or should be the primary: the pools wait for one
    LOOK = auto()  #: the caller gets the error; one connection is replaced, to find a primary
    CALLERS = auto()  #: the caller gets the error


class Standing:
    """The state of one server's role. The caller holds the lock of the record."""

    __slots__ = ("asked_at", "is_reduced", "looked_at", "took_writes")

    def __init__(self) -> None:
        self.asked_at = -math.inf  #: when it last did not report its role
        #: A server here has accepted writes since this process began.
        self.took_writes = False
        #: The current server is read-only, and pools with target "any" use it nevertheless.
        self.is_reduced = False
        self.looked_at = -math.inf

    def must_ask(self, want: Wanted, now: float) -> bool:
        """Whether a new connection must ask for the role, even without an outage."""
        if want is not Wanted.ANY:
            return True
        return self.is_reduced or (not self.took_writes and now - self.asked_at >= ASK_AGAIN)

    def objection(self, role: Role | None, want: Wanted, *, waited_enough: bool) -> str | None:
        """Why a server with this *role* must not serve a pool that wants *want*. None: it may.

        *role* None: the server did not report it. A pool that accepts any server accepts that; a
        pool that wants a role does not. *waited_enough*: callers have waited for a primary for as
        long as the pool allows. After that, a pool that accepts any server takes a read-only one.
        """
        if role is Role.UNREADY:
            return role.value
        if role is None and want in (Wanted.PRIMARY, Wanted.STANDBY):
            return f"does not report its role, but target={want.value}"
        if role is Role.STANDBY and want is Wanted.PRIMARY:
            return f"{role.value}, but target=primary"
        if role is Role.PRIMARY and want is Wanted.STANDBY:
            return f"{role.value}, but target=standby"
        was_demoted = self.took_writes and not self.is_reduced and not waited_enough
        if role is Role.STANDBY and want is Wanted.ANY and was_demoted:
            return f"{role.value}, but took writes before"
        return None

    def serves(self, role: Role | None, want: Wanted, now: float) -> News:
        """From now on a server with this *role* serves a pool that wants *want*."""
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
        """The server refused a write because it is read-only for all clients."""
        if want is Wanted.PRIMARY or (self.took_writes and not self.is_reduced):
            return Refused.OUTAGE
        if want is Wanted.ANY and now - self.looked_at >= LOOK_EVERY:
            self.looked_at = now
            return Refused.LOOK
        return Refused.CALLERS
