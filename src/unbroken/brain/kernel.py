"""★ The heart: who has a connection, who waits for one, who is granted one.

Every change of ownership stands in this file. Nothing here does I/O, knows the clock or takes a
lock.

**The lock rule.** Two moves are lock-free, because each is one atomic operation on a deque or dict:
taking an idle entry (``idle.pop()``) and putting one back (``idle.append(entry)``). The bodies do
these inline, in this order:

* a taker looks at ``waiting`` first and pops only when nobody waits: it never overtakes the line;
  then it notes the entry in ``in_use``;
* a giver takes the entry out of ``in_use``, appends *first* and looks at ``waiting`` (and at the
  generation) *afterwards*; a waiter joins ``waiting`` first and looks at ``idle`` afterwards
  (``enter``). Whichever comes second sees the other, so no wake-up is lost.

``tests/brain/test_moves.py`` lists where they stand: it finds each line in the sources that changes
an owner.

Everything else is a method below, and the caller must hold the body's lock. Methods return what is
to be done (tickets to wake, entries to close); the caller does it after letting go of the lock.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from unbroken.abc import Cause
from unbroken.brain.entry import CONDEMNED, Entry
from unbroken.brain.ranks import Rank, Ticket, Turns


class Kernel:
    """The state of one pool in one process. See the module for the lock rule."""

    __slots__ = (
        "closed", "entries", "generation", "granted", "idle", "in_use", "keep", "max_size",
        "min_size", "oldest_first", "opening", "reclaimed", "resetting", "silent", "turns", "users",
        "waiting",
    )  # fmt: skip

    def __init__(self, max_size: int, min_size: int = 0) -> None:
        self.max_size = max_size
        self.min_size = min_size
        self.granted = sys.maxsize  #: likewise, of those that all pools of the host share
        self.keep = math.inf  #: idle connections kept at most: those beyond are closed
        #: lend from the left end of idle instead, which a framework may promise
        self.oldest_first = False
        #: lent from the right end: the warmest first, the rest may be retired
        self.idle: deque[Entry] = deque()
        self.in_use: dict[int, Entry] = {}  #: by id of the driver's connection
        self.resetting: dict[int, Entry] = {}  #: given back, but its reset is still under way
        self.reclaimed: dict[int, Entry] = {}  #: taken away from a holder who still has the object
        self.entries: dict[int, Entry] = {}  #: every open one, by key
        self.waiting: deque[Ticket] = deque()
        self.turns: Turns | None = None  #: while several classes wait
        self.users = 0  #: how many of them the line has a limit for
        self.opening = 0  #: places reserved for connections that are being opened
        self.silent = 0  #: those of them that nobody can count on
        self.generation = 0
        self.closed = False

    @property
    def size(self) -> int:
        """Connections that are open or being opened."""
        return len(self.entries) + self.opening

    @property
    def bound(self) -> int:
        """How many connections there may be now."""
        return min(self.max_size, self.granted)

    # -- the line ----------------------------------------------------------------------------------

    def enter(self, ticket: Ticket, *, front: bool = False) -> list[Ticket]:
        """Give *ticket* an idle entry, or a place in the line: tickets to wake, maybe this one too.

        *front*: for one who was granted an entry that proved dead: it does not start again at the
        end.
        """
        if ticket.rank is not Rank.NORMAL and self.turns is None:
            self.turns = Turns()
        if not self.waiting:
            self.users = 0  # an exception may have struck between a ticket and its number
        (self.waiting.appendleft if front else self.waiting.append)(ticket)
        self.users += ticket.is_users
        # Only after joining the line: a giver that appends from now on sees it, one that appended
        # before is seen here.
        return self._grant()

    def serve(self) -> tuple[list[Ticket], list[Entry]]:
        """Grant idle entries to those who wait, in order: (tickets to wake, entries to close)."""
        stale = self.take_stale()
        granted = self._grant()
        return granted, stale + self._take_spare()

    def _grant(self) -> list[Ticket]:
        """Idle entries to those who wait.

        A ticket leaves the line only once it has something: an exception may strike anywhere.
        """
        granted: list[Ticket] = []
        while self._next_in_line() is not None:
            entry = self._pop_idle()
            if entry is None:
                break
            # again: a finalizer that ran just now may have granted it something
            ticket = self._next_in_line()
            if ticket is None:
                self.put(entry)
                break
            ticket.entry = entry
            granted.append(ticket)
            self._leave_line(ticket)
            if self.turns is not None:
                self._took(ticket)
        return granted

    def _took(self, ticket: Ticket) -> None:
        """Callers of several classes wait, and *ticket* was granted something."""
        turns, line = self.turns, list(self.waiting)
        if turns is not None:
            turns.took(ticket, line)
        if {ticket.rank, *(each.rank for each in line)} == {Rank.NORMAL}:
            self.turns = None  # nobody was passed over

    def _next_in_line(self) -> Ticket | None:
        while self.waiting:
            try:
                ticket = self.waiting[0]
            except IndexError:  # a finalizer that ran just now
                break
            if ticket.entry is None and ticket.error is None:
                turns = self.turns
                return (turns and turns.first(list(self.waiting))) or ticket
            self._leave_line(ticket)  # an exception struck before it could leave
        return None

    def _leave_line(self, ticket: Ticket) -> None:
        with suppress(ValueError):  # it was failed, or has left before
            self.waiting.remove(ticket)
            self.users -= ticket.is_users

    def give_up(self, ticket: Ticket) -> bool:
        """Leave the line.

        True: what was granted in the meantime is idle again; serve those who still wait.
        """
        entry = self.leave(ticket)
        if entry is not None:
            self.put(entry)
        return entry is not None

    def leave(self, ticket: Ticket) -> Entry | None:
        """Give up waiting.

        What was granted in the meantime is returned: it is the caller's to use or put back.
        """
        self._leave_line(ticket)
        entry, ticket.entry = ticket.entry, None
        return entry

    def fail(self, error: Callable[[], BaseException]) -> list[Ticket]:
        """End the wait of all who stand in the line, each with an error of its own."""
        failed: list[Ticket] = []
        while (ticket := self._next_in_line()) is not None:
            failed += self.dismiss([ticket], error())
        return failed

    def ahead(self, ticket: Ticket) -> int:
        """How many are served before *ticket*, the last in the line, if no others come."""
        if self.turns is None:
            return len(self.waiting) - 1
        return sum(each.rank <= ticket.rank for each in list(self.waiting)) - 1

    def dismiss(self, tickets: Iterable[Ticket], error: BaseException) -> list[Ticket]:
        """End the wait of *tickets* with *error*: those of them to wake."""
        dismissed = [each for each in tickets if not each.done]
        for ticket in dismissed:
            ticket.error = error
            self._leave_line(ticket)
        return dismissed

    def _pop_idle(self) -> Entry | None:
        try:
            return self.idle.popleft() if self.oldest_first else self.idle.pop()
        except IndexError:
            return None

    def _take_spare(self) -> list[Entry]:
        """Remove what came back last beyond the number of idle connections to keep."""
        spare: list[Entry] = []
        while len(self.idle) > self.keep:
            try:
                entry = self.idle.pop()
            except IndexError:
                break
            entry.condemn(Cause.SURPLUS)
            self.forget(entry)
            spare.append(entry)
        return spare

    # -- places ------------------------------------------------------------------------------------

    def reserve(self, *, spare: bool = False) -> bool:
        """Reserve a place for one more connection, if somebody needs one (or *spare*: in any case)
        and there is room.
        """
        if not self.wanted and not (spare and not self.closed and self.size < self.bound):
            return False
        self.opening += 1
        return True

    @property
    def wanted(self) -> int:
        """How many more connections ought to be opened now."""
        return max(0, min(self.missing, self.bound - self.size))

    @property
    def unserved(self) -> int:
        """How many callers wait for whom no connection is coming."""
        return len(self.waiting) - (self.opening - self.silent)

    @property
    def missing(self) -> int:
        """How many more connections would be opened if ``granted`` allowed all of them."""
        if self.closed:
            return 0
        need = max(self.unserved, self.min_size - self.size)
        return max(0, min(need, self.max_size - self.size))

    def unreserve(self) -> None:
        """Give a reserved place back: the connect failed, or is not needed any more."""
        self.opening -= 1

    def opened(self, entry: Entry) -> tuple[list[Ticket], list[Entry]]:
        """A reserved place has become a connection: (tickets to wake, entries to close)."""
        self.unreserve()
        self.entries[entry.key] = entry
        self.put(entry)
        return self.serve()

    def grant_places(self, make: Callable[[], Entry]) -> list[Ticket]:
        """For a body whose callers connect by themselves: as long as there is room, each in the
        line gets an entry without a connection, made by *make*. Tickets to wake.
        """
        granted: list[Ticket] = []
        while (
            self.size < self.bound
            and not self.closed
            and (ticket := self._next_in_line()) is not None
        ):
            place = make()
            ticket.entry = self.entries[place.key] = place
            granted.append(ticket)
            self._leave_line(ticket)
        return granted

    def replace(self, entry: Entry, other: Entry) -> bool:
        """The holder of a lent *entry* has *other* in its place from now on.

        False: *entry* is not lent.
        """
        if self.in_use.pop(entry.key, None) is not entry:
            return False
        self.forget(entry)
        self.entries[other.key] = self.in_use[other.key] = other
        return True

    def drop(self, entry: Entry) -> None:
        """An entry leaves the pool, also one that a caller is noted to have."""
        if self.in_use.get(entry.key) is entry:
            del self.in_use[entry.key]
        self.forget(entry)

    def forget(self, entry: Entry) -> None:
        """An entry that its owner is about to close leaves the pool.

        Its owner must not hold it in idle.
        """
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]

    # -- lending -----------------------------------------------------------------------------------

    def lend(self, entry: Entry) -> None:
        """A caller has the entry, which was granted to it, from now on."""
        self.in_use[entry.key] = entry

    def put(self, entry: Entry) -> None:
        """The caller's entry is idle from now on. Afterwards those who wait must be served."""
        self.idle.append(entry)

    def admit(self, entry: Entry) -> None:
        """A caller has opened a connection by itself: it is the pool's, and lent to that caller."""
        self.entries[entry.key] = self.in_use[entry.key] = entry

    def resets(self, entry: Entry) -> None:
        """An entry that was just taken out of ``in_use`` is given back, but something has to be
        sent on it first.
        """
        self.resetting[entry.key] = entry

    def is_back(self, entry: Entry) -> bool:
        """Make an entry that was lent, or is given back, the caller's own.

        False: it is so no more.
        """
        return (
            self.in_use.pop(entry.key, None) is entry
            or self.resetting.pop(entry.key, None) is entry
        )

    def came_back(self, key: int) -> Entry | None:
        """The reclaimed entry whose holder gives the connection with this key back or drops it;
        None: there is none.
        """
        return self.reclaimed.pop(key, None)

    def lose(self, entry: Entry) -> bool:
        """The holder of *entry* is seen to have let it be collected.

        In a finalizer, so without the lock. True: it was lent.
        """
        if self.in_use.get(entry.key) is entry:
            self.in_use.pop(entry.key, None)
            return True
        if self.reclaimed.get(entry.key) is entry:
            self.reclaimed.pop(entry.key, None)
        return False

    def reclaim(self, entry: Entry) -> bool:
        """Take a lent entry away from its holder, who still has the object. False: it came back
        meanwhile.

        The asker keeps the object alive, so that no other connection can have its key.
        """
        if self.in_use.pop(entry.key, None) is not entry:
            return False
        self.forget(entry)
        self.reclaimed[entry.key] = entry
        return True

    # -- what must not stay ------------------------------------------------------------------------

    def all_idle(self) -> list[Entry]:
        """Whatever is idle now, while others go on to take and to give.

        One that does both meanwhile may be in it twice.
        """
        try:
            # A list, not a tuple: Python 3.11 may collect garbage, and so let other threads in,
            # between a tuple's first look at a deque and its last.
            return list(self.idle)
        except RuntimeError:
            # "deque mutated during iteration": an interpreter without a lock of its own lets others
            # in
            pass
        found: list[Entry] = []
        with suppress(IndexError):
            while True:
                # takers and givers work at the other end: what stands before that keeps its number
                found.append(self.idle[len(found)])
        return found

    def claim(self, entry: Entry) -> bool:
        """Make an idle entry the caller's own. False: somebody else took it first."""
        try:
            self.idle.remove(entry)
        except ValueError:
            return False
        return True

    def take_stale(self) -> list[Entry]:
        """Remove what must not be lent again from idle: condemned, of an older generation, of a
        closed pool, or surplus.
        """
        stale = [
            e
            for e in self.all_idle()
            if (self.closed or e.generation != self.generation) and self.claim(e)
        ]
        for entry in stale:
            entry.condemn(Cause.POOL_CLOSED if self.closed else Cause.DRAINED)
            self.forget(entry)
        while self.size > self.bound:
            try:
                entry = self.idle.popleft()
            except IndexError:
                break
            entry.condemn(Cause.SURPLUS)
            self.forget(entry)
            stale.append(entry)
        return stale

    def take(self, entries: Iterable[Entry]) -> list[Entry]:
        """Remove *entries* from the pool, as far as they are idle still; they are the caller's to
        close.
        """
        taken = [e for e in entries if self.claim(e)]
        for entry in taken:
            self.forget(entry)
        return taken

    def strays(self) -> list[Entry]:
        """Entries that nobody owns: an asynchronous exception struck a caller between taking and
        noting it.

        What a worker owns for a moment looks the same: only what is found again and again is one.
        """
        owned = {id(e) for e in self.all_idle()} | {id(t.entry) for t in list(self.waiting)}
        return [
            e
            for e in list(self.entries.values())
            if not (id(e) in owned or self.is_out(e) or e.cause)
        ]

    def is_out(self, entry: Entry) -> bool:
        """Whether a caller has *entry*, or is giving it back."""
        return self.in_use.get(entry.key) is entry or self.resetting.get(entry.key) is entry

    def drain(self) -> list[Entry]:
        """Start a new generation: what is idle is closed now, what is lent when it comes back."""
        self.generation += 1
        return self.take_stale()

    def resize(self, max_size: int, min_size: int) -> list[Entry]:
        """Change the bounds: entries to close now; what is out beyond the new bound is closed when
        it comes back.
        """
        self.max_size, self.min_size = max_size, min_size
        stale = self.take_stale()
        # What is lent is not all that is out: one may be on its way to a taker, or from a giver.
        out = {id(e): e for e in [*self.in_use.values(), *self.entries.values()]}.values()
        staying = [e for e in out if e.cause is None]
        for entry in staying[: max(0, self.size - max_size - (len(out) - len(staying)))]:
            entry.condemn(Cause.SURPLUS)
        # a giver looks after it appends: one that looked just before has appended by now
        return stale + self.take_stale()

    def close(self) -> list[Entry]:
        """Lend nothing any more: entries to close now. Who waits must be told with ``fail``."""
        self.closed = True
        return self.drain()


__all__ = ["CONDEMNED", "Kernel", "Ticket"]
