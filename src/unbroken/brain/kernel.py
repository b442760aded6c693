"""★ The core: which caller has a connection, which callers wait, and which one gets the next.

All changes of ownership are in this file and in :mod:`.waiting`. It does no I/O, does not know the
clock and takes no lock.

**The lock rule.** Two moves are lock-free, because each is one atomic operation on a deque or dict:
taking an idle entry (``idle.pop()``) and putting one back (``idle.append(entry)``). The bodies do
these inline, in this order:

* A taker checks ``waiting`` first and pops only when no caller waits. Then it records the entry in
  ``in_use``. Only ``overtake`` passes waiting callers, under the lock.
* A giver removes the entry from ``in_use``. It appends *first* and checks ``waiting`` (and the
  generation) *afterwards*. A waiter joins ``waiting`` first and checks ``idle`` afterwards
  (``enter``). Of two concurrent sides the later one sees the other, so no wake-up is lost.

``tests/brain/test_moves.py`` lists their places: it finds each line in the sources that changes an
owner.

Everything else is a method below, and the caller must hold the body's lock. Methods return the
remaining work (tickets to wake, entries to close). The caller does it after releasing the lock.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from unbroken.abc import Cause
from unbroken.brain.entry import CONDEMNED, Entry
from unbroken.brain.ranks import Ticket
from unbroken.brain.waiting import Waiting


class Kernel(Waiting):
    """The state of one pool in one process. The lock rule is in the module's docstring."""

    __slots__ = (
        "closed", "entries", "generation", "granted", "in_use", "keep", "max_size", "min_size",
        "opening", "reclaimed", "resetting", "silent",
    )  # fmt: skip

    def __init__(self, max_size: int, min_size: int = 0, patience: float = 0.0) -> None:
        super().__init__(patience)
        self.max_size = max_size
        self.min_size = min_size
        self.granted = sys.maxsize  #: maximum of this pool under the host's shared limit
        self.keep = math.inf  #: maximum number of idle connections; others are closed
        self.in_use: dict[int, Entry] = {}  #: by id of the driver's connection
        self.resetting: dict[int, Entry] = {}  #: returned, but the reset is in progress
        self.reclaimed: dict[int, Entry] = {}  #: taken from a holder that keeps the object
        self.entries: dict[int, Entry] = {}  #: every open one, by key
        self.opening = 0  #: places reserved for connections that are being opened
        self.silent = 0  #: those among them that callers cannot count on
        self.generation = 0
        self.closed = False

    @property
    def size(self) -> int:
        """Number of connections that are open or being opened."""
        return len(self.entries) + self.opening

    @property
    def bound(self) -> int:
        """Maximum number of connections now."""
        return min(self.max_size, self.granted)

    def serve(self, now: float = math.inf) -> tuple[list[Ticket], list[Entry]]:
        """Remove idle entries that must not be used again, and offer the others to the line at
        *now*. Return (tickets to wake, entries to close).
        """
        stale = self.take_stale()
        return self.offer(now), stale + self._take_spare()

    def _take_spare(self) -> list[Entry]:
        """Remove the most recently returned entries beyond ``keep`` idle ones."""
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
        """Reserve a place for one more connection, if a caller needs one (with *spare*: in any
        case) and there is room. Return whether a place was reserved.
        """
        if not self.wanted and not (spare and not self.closed and self.size < self.bound):
            return False
        self.opening += 1
        return True

    @property
    def wanted(self) -> int:
        """How many more connections should be opened now."""
        return max(0, min(self.missing, self.bound - self.size))

    @property
    def unserved(self) -> int:
        """Number of waiting callers for which no connection is being opened."""
        return len(self.waiting) - (self.opening - self.silent)

    @property
    def missing(self) -> int:
        """How many more connections would be opened if ``granted`` allowed all of them."""
        if self.closed:
            return 0
        need = max(self.unserved, self.min_size - self.size)
        return max(0, min(need, self.max_size - self.size))

    def unreserve(self) -> None:
        """Release a reserved place: the connect failed, or is not needed any more."""
        self.opening -= 1

    def opened(self, entry: Entry) -> tuple[list[Ticket], list[Entry]]:
        """A reserved place has become a connection. Return (tickets to wake, entries to close)."""
        self.unreserve()
        self.entries[entry.key] = entry
        self.put(entry)
        return self.serve()

    def grant_places(self, make: Callable[[], Entry]) -> list[Ticket]:
        """For a body whose callers connect by themselves. While there is room, each caller in the
        line gets an entry without a connection, which *make* creates. Return the tickets to wake.
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
        """From now on the holder of *entry* has *other* instead.

        Return False if *entry* is not in use.
        """
        if self.in_use.pop(entry.key, None) is not entry:
            return False
        self.forget(entry)
        self.entries[other.key] = self.in_use[other.key] = other
        return True

    def drop(self, entry: Entry) -> None:
        """Remove an entry from the pool, even if a caller has it."""
        if self.in_use.get(entry.key) is entry:
            del self.in_use[entry.key]
        self.forget(entry)

    def forget(self, entry: Entry) -> None:
        """Remove an entry that its owner is about to close.

        It must not be in ``idle``.
        """
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]

    # -- use and return ----------------------------------------------------------------------------

    def lend(self, entry: Entry) -> None:
        """From now on a caller has the entry that it was granted."""
        self.in_use[entry.key] = entry

    def admit(self, entry: Entry) -> None:
        """A caller has opened a connection by itself: the pool owns it, and the caller uses it."""
        self.entries[entry.key] = self.in_use[entry.key] = entry

    def resets(self, entry: Entry) -> None:
        """An entry that was just taken out of ``in_use`` is returned, but the pool must send
        something on it first.
        """
        self.resetting[entry.key] = entry

    def is_back(self, entry: Entry) -> bool:
        """Make an entry that is in use, or being reset, the caller's own.

        Return False if it is neither any more.
        """
        return (
            self.in_use.pop(entry.key, None) is entry
            or self.resetting.pop(entry.key, None) is entry
        )

    def came_back(self, key: int) -> Entry | None:
        """The reclaimed entry whose holder returns or drops the connection with this key. None if
        there is none.
        """
        return self.reclaimed.pop(key, None)

    def lose(self, entry: Entry) -> bool:
        """The holder of *entry* has let it be garbage-collected.

        Called in a finalizer, so without the lock. Return whether the entry was in use.
        """
        if self.in_use.get(entry.key) is entry:
            self.in_use.pop(entry.key, None)
            return True
        if self.reclaimed.get(entry.key) is entry:
            self.reclaimed.pop(entry.key, None)
        return False

    def reclaim(self, entry: Entry) -> bool:
        """Take an entry in use away from its holder, which still has the object. Return False if it
        was returned meanwhile.

        The caller keeps the object alive, so that no other connection can get its key.
        """
        if self.in_use.pop(entry.key, None) is not entry:
            return False
        self.forget(entry)
        self.reclaimed[entry.key] = entry
        return True

    # -- entries that must leave -------------------------------------------------------------------

    def all_idle(self) -> list[Entry]:
        """All entries that are idle now, while other threads continue to take and return.

        An entry that is taken and returned meanwhile may appear twice.
        """
        try:
            # A list, not a tuple: Python 3.11 may collect garbage while it builds a tuple of a
            # deque, and so let other threads run.
            return list(self.idle)
        except RuntimeError:
            # "deque mutated during iteration": a free-threaded interpreter runs other threads
            # meanwhile.
            pass
        found: list[Entry] = []
        with suppress(IndexError):
            while True:
                # Takers and givers use the other end, so the entries before it keep their index.
                found.append(self.idle[len(found)])
        return found

    def claim(self, entry: Entry) -> bool:
        """Make an idle entry the caller's own. Return False if another thread took it first."""
        try:
            self.idle.remove(entry)
        except ValueError:
            return False
        return True

    def take_stale(self) -> list[Entry]:
        """Remove idle entries that must not be used again: condemned, of an older generation, of a
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
        """Remove those of *entries* that are still idle from the pool. The caller must close
        them.
        """
        taken = [e for e in entries if self.claim(e)]
        for entry in taken:
            self.forget(entry)
        return taken

    def strays(self) -> list[Entry]:
        """Entries without an owner: an asynchronous exception struck a caller between taking and
        recording one.

        A worker's entry looks the same for a moment. Only one that is found repeatedly is a stray.
        """
        owned = {id(e) for e in self.all_idle()} | {id(t.entry) for t in list(self.waiting)}
        return [
            e
            for e in list(self.entries.values())
            if not (id(e) in owned or self.is_out(e) or e.cause)
        ]

    def is_out(self, entry: Entry) -> bool:
        """Whether a caller has *entry* or is returning it."""
        return self.in_use.get(entry.key) is entry or self.resetting.get(entry.key) is entry

    def drain(self) -> list[Entry]:
        """Start a new generation: idle entries are closed now, used ones when they are returned."""
        self.generation += 1
        return self.take_stale()

    def resize(self, max_size: int, min_size: int) -> list[Entry]:
        """Change the bounds. Return the entries to close now. Used ones beyond the new bound are
        closed when they are returned.
        """
        self.max_size, self.min_size = max_size, min_size
        stale = self.take_stale()
        # ``in_use`` is not complete: a connection may be on its way to a taker, or from a giver.
        out = {id(e): e for e in [*self.in_use.values(), *self.entries.values()]}.values()
        staying = [e for e in out if e.cause is None]
        for entry in staying[: max(0, self.size - max_size - (len(out) - len(staying)))]:
            entry.condemn(Cause.SURPLUS)
        # A giver checks after it appends: one that checked just before has appended by now.
        return stale + self.take_stale()

    def close(self) -> list[Entry]:
        """Stop granting. Return the entries to close now. ``fail`` must end the wait of callers."""
        self.closed = True
        return self.drain()


__all__ = ["CONDEMNED", "Kernel", "Ticket"]
