"""The line of callers that wait for a connection, the idle connections, and who gets the next one.

A part of the core: the lock rule is in :mod:`.kernel`.

**Overtaking.** To hand an idle connection to a sleeping thread costs two switches of threads, each
behind the interpreter's lock. That is often more than the use of the connection itself, and the
connection is idle meanwhile. So while the first caller in the line has waited for less than
``patience``, it is only *called*: it is woken, and takes an idle connection if there is one then. A
thread that runs already and asks for a connection in between takes it without any switch. A caller
that has waited for ``patience`` is not overtaken any more: the next connection is handed to it. So
overtaking adds at most that time to a wait. Go's ``sync.Mutex`` has the same two modes (normal and
starvation, 1 ms).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from unbroken.brain.entry import Entry
from unbroken.brain.ranks import Rank, Ticket, Turns


class Waiting:
    """The waiting callers and the idle connections of one pool."""

    __slots__ = ("idle", "oldest_first", "patience", "turns", "users", "waiting")

    def __init__(self, patience: float) -> None:
        #: Seconds for which newcomers may overtake a waiting caller. 0: they never may.
        self.patience = patience
        #: Use the left end of idle instead, because a framework may promise that.
        self.oldest_first = False
        #: Used from the right end: the most recently used first, so the rest can be retired.
        self.idle: deque[Entry] = deque()
        self.waiting: deque[Ticket] = deque()
        self.turns: Turns | None = None  #: while several classes wait
        self.users = 0  #: how many waiting tickets count for the line's limit

    def enter(self, ticket: Ticket, *, front: bool = False) -> list[Ticket]:
        """Give *ticket* an idle entry, or a place in the line. Return the tickets to wake.

        *front*: the caller was granted a dead entry before, so it does not go to the end again.
        """
        if ticket.rank is not Rank.NORMAL and self.turns is None:
            self.turns = Turns()
        if not self.waiting:
            self.users = 0  # an exception may have struck between the two updates below
        ticket.is_first = front
        (self.waiting.appendleft if front else self.waiting.append)(ticket)
        self.users += ticket.is_users
        # Only after joining the line: a giver that appends from now on sees this ticket, and an
        # entry that was appended before is found here.
        return self._grant()

    def _grant(self) -> list[Ticket]:
        """Grant idle entries to waiting callers.

        A ticket leaves the line only once it has an entry: an exception may strike anywhere.
        """
        granted: list[Ticket] = []
        while self._next_in_line() is not None:
            entry = self._pop_idle()
            if entry is None:
                break
            # Check again: a finalizer that ran just now may have granted it an entry.
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
        """*ticket* was granted an entry while callers of several classes wait."""
        turns, line = self.turns, list(self.waiting)
        if turns is not None:
            turns.took(ticket, line)
        if {ticket.rank, *(each.rank for each in line)} == {Rank.NORMAL}:
            self.turns = None  # no class was passed over

    def _next_in_line(self) -> Ticket | None:
        while self.waiting:
            try:
                ticket = self.waiting[0]
            except IndexError:  # emptied by a finalizer just now
                break
            if ticket.entry is None and ticket.error is None:
                turns = self.turns
                return (turns and turns.first(list(self.waiting))) or ticket
            self._leave_line(ticket)  # an exception struck before it could leave
        return None

    def _leave_line(self, ticket: Ticket) -> None:
        with suppress(ValueError):  # it was failed, or has left already
            self.waiting.remove(ticket)
            self.users -= ticket.is_users

    def give_up(self, ticket: Ticket) -> bool:
        """Leave the line.

        Return True if an entry granted meanwhile is idle again: then serve the line.
        """
        was_called, entry = ticket.called, self.leave(ticket)
        if entry is not None:
            self.put(entry)
        return entry is not None or was_called

    def leave(self, ticket: Ticket) -> Entry | None:
        """Stop waiting.

        Return the entry that was granted in the meantime: the caller must use it or put it back.
        """
        self._leave_line(ticket)
        entry, ticket.entry = ticket.entry, None
        return entry

    def fail(self, error: Callable[[], BaseException]) -> list[Ticket]:
        """End the wait of all callers in the line, each with its own error."""
        failed: list[Ticket] = []
        while (ticket := self._next_in_line()) is not None:
            failed += self.dismiss([ticket], error())
        return failed

    def ahead(self, ticket: Ticket) -> int:
        """How many callers are served before *ticket*, the last in the line, if no others come."""
        if self.turns is None:
            return len(self.waiting) - 1
        return sum(each.rank <= ticket.rank for each in list(self.waiting)) - 1

    def dismiss(self, tickets: Iterable[Ticket], error: BaseException) -> list[Ticket]:
        """End the wait of *tickets* with *error*. Return those to wake."""
        dismissed = [each for each in tickets if not each.done]
        for ticket in dismissed:
            ticket.error = error
            self._leave_line(ticket)
        return dismissed

    def put(self, entry: Entry) -> None:
        """From now on the caller's entry is idle. The waiting callers must be served afterwards."""
        self.idle.append(entry)

    def _pop_idle(self) -> Entry | None:
        try:
            return self.idle.popleft() if self.oldest_first else self.idle.pop()
        except IndexError:
            return None

    # -- newcomers ---------------------------------------------------------------------------------

    def overtake(self, now: float) -> Entry | None:
        """Return an idle entry for a caller that has just come although others wait, if the first
        of them has waited for less than ``patience`` at *now*.
        """
        return self._pop_idle() if self._is_patient(now) else None

    def offer(self, now: float) -> list[Ticket]:
        """Grant idle entries in order of the line; within ``patience``, only call its first
        callers. Return the tickets to wake.
        """
        return self._call() if self._is_patient(now) else self._grant()

    def answer_call(self, ticket: Ticket, now: float) -> list[Ticket]:
        """The caller of *ticket*, which was called, is awake. Grant it an idle entry, if no other
        caller was quicker, and nobody before it has waited for too long. Return the other tickets
        to wake.
        """
        if not ticket.done and self._is_patient(now):
            ticket.entry = self._pop_idle()
            if ticket.entry is not None:
                self._leave_line(ticket)
        woken = self.offer(now)
        ticket.called = False  # last: until then, :meth:`give_up` passes the call on
        return [each for each in woken if each is not ticket]

    def _is_patient(self, now: float) -> bool:
        """Whether the first caller has waited for so short a time that others may overtake it.
        Between classes the order is exact. A caller that was granted a dead entry has its turn.
        """
        head = self._next_in_line() if self.patience and self.turns is None else None
        return head is not None and not head.is_first and now - head.since < self.patience

    def _call(self) -> list[Ticket]:
        """Call the first callers, one for each idle entry, if they are not called yet."""
        first = list(self.waiting)[: len(self.idle)]
        called = [each for each in first if not (each.called or each.done)]
        for ticket in called:
            ticket.called = True
        return called
