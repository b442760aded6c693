"""Share the connections that a server grants among the pools of this host (setting ``share``).

A pool holds a slot of a common file (:mod:`unbroken.net.slots`) for each connection that it has or
opens. ``kernel.granted`` is the number that it may have. It follows the slots: it grows after a
slot was acquired. A slot is released some time after its connection was closed.
:mod:`unbroken.brain.share` decides what to acquire and release.

No process wakes another. A pool whose callers wait for a slot checks every few milliseconds, one
that has slots every tenth of a second.
"""

from __future__ import annotations

import errno
import math
import sys
import weakref
from typing import Any

from unbroken.abc import BaseDriver, Cause
from unbroken.brain import share as rule
from unbroken.brain.kernel import Kernel
from unbroken.brain.share import Shares
from unbroken.errors import ConfigurationError
from unbroken.logs import Part
from unbroken.messages.configuration import SETTINGS_CONTRADICT
from unbroken.messages.pool import SHARE_OFF
from unbroken.net.slots import Flag, Slots
from unbroken.pool.servers import key_of
from unbroken.settings import Settings, shared

log = Part("pool")

#: Seconds between two checks of a pool that has slots.
LOOK = 0.1
#: … of one that has more than it needs: a session may need that long to end at the server.
ENDING = 0.05
#: … and of one whose callers wait for a slot: the first pause, and the longest.
SOON, LATER = 0.005, 0.04
#: Seconds between two checks for slots whose holders have died.
DEAD_EVERY = 0.2
#: … if its own callers do not wait.
BURIED_EVERY = 1.0
#: If a check is late by this many seconds, a caller makes it: no timer runs.
LATE = 0.1
#: Before the limit is known, a pool has one connection, on which it asks for the limit.
UNKNOWN, BEFORE = 1000, 1
#: Maximum number of other pools that are counted.
COUNTED = 64
#: Errors after which the file is opened again, once.
_PASSING = (errno.EBADF, errno.EAGAIN, errno.ENOENT, errno.ESTALE)


def share_of(driver: BaseDriver, settings: Settings, kernel: Kernel) -> Share | None:
    """The share of a new pool. None: it shares nothing.

    Raises ConfigurationError if the server cannot be identified.
    """
    if settings.share is None or driver.target.backend == "sqlite":
        return None
    name, number = shared(settings.share)
    key = key_of(driver, settings)
    if key is None and name is None:
        raise ConfigurationError(
            SETTINGS_CONTRADICT(
                f"share={settings.share!r} needs a name beside connect=: the pool does not know"
                " which server connect= leads to; name that server, as in share='shop:auto'"
            )
        )
    kernel.granted = 0
    return Share(f"{key or ''}\n{name or ''}", number)


class Share:
    """One pool's part in the connections that the pools of this host share. Its fields are guarded
    by the pool's lock.
    """

    def __init__(self, key: str, number: int | None) -> None:
        self._key = key
        self.number = number  #: the setting; None: the server is asked
        self.limit = number  #: maximum connections of all pools; None: not known yet
        self.own: int | None = None  #: … and of those with this pool's login and database
        self.asked = False
        self.off = ""  #: why nothing is shared any more
        self.hungry = False  #: callers wait for a slot
        self.lent = 0
        self._slots: Slots | None = None
        self._timer: Any = None
        self._pause = SOON
        self._mourned: dict[int, float] = {}  #: slots of dead processes, and when they can be used
        self._since = math.inf  #: when this pool got its first slot
        self._next_dead = -math.inf
        self._next_burial = -math.inf
        self._not_before = -math.inf  #: when it may exceed its share again
        self._spare = self._over = 0  #: at the last check
        self._renewed = -math.inf

    # -- taking ------------------------------------------------------------------------------------

    def seek_unasked(self, state: Any) -> None:
        """Like :meth:`seek`, for a pool that cannot ask its server anything."""
        if self.limit is None and not self.off:
            with state.lock:
                self._give_up(state, "the pool cannot ask the server for its limit; give a number")
        self.seek(state)

    def seek(self, state: Any, *, at_least: int = 0, looks: bool = False) -> None:
        """Acquire free slots for the connections that *state* wants to open. While it waits for
        some, its next check does that.
        """
        now, kernel = state.clock(), state.kernel
        if self.off or kernel.closed:
            return
        timer = self._timer
        if self.hungry and not looks and timer is not None and now < timer.when + LATE:
            return
        with state.lock:
            want = max(kernel.size + kernel.missing, min(at_least, kernel.max_size))
            if self.limit is None:
                want = min(want, BEFORE)
            if want <= kernel.granted and not self.hungry:
                return
            try:
                self._take(state, want, now)
            except OSError as exc:
                self._failed(state, exc, now)
        self._arm(state, now)

    def _take(self, state: Any, want: int, now: float) -> None:
        kernel, slots = state.kernel, self._open(state)
        limit = self._bound()
        starving = slots.others(Flag.STARVES, COUNTED)
        calls = kernel.unserved > 0
        # no connection is kept ready while callers of other pools wait
        refrains = not calls and (starving or slots.others(Flag.HUNGRY, 1))
        pools = 1 + slots.others(Flag.MEMBER) if starving or self.hungry else 1
        while kernel.granted < want and not refrains:
            is_poor = rule.starves(limit, pools, kernel.granted)
            if starving and (now < self._not_before or not is_poor):
                break
            if kernel.granted < len(slots.held) - len(self._mourned):
                kernel.granted += 1  # it was about to be released
            elif kernel.granted + len(self._mourned) >= want or not self._take_one(slots, now):
                break
        if kernel.granted and self._since == math.inf:
            self._since = now
        before, self.hungry = self.hungry, calls and kernel.granted < want
        if self.hungry and not before:
            self._pause = SOON
            pools = 1 + slots.others(Flag.MEMBER)
        slots.raise_flag(Flag.HUNGRY, self.hungry)
        slots.raise_flag(Flag.STARVES, self.hungry and rule.starves(limit, pools, kernel.granted))

    def _take_one(self, slots: Slots, now: float) -> bool:
        if slots.take(self._bound(), low=self._is_low) is not None:
            return True
        if now < self._next_dead:
            return False
        found = self._mourn(slots, now)
        self._next_dead = now if found else now + DEAD_EVERY
        return found

    def _mourn(self, slots: Slots, now: float) -> bool:
        """Acquire a slot whose holder has died. It can be used, or released, after a while."""
        slot = slots.take_dead(self._bound())
        if slot is not None:
            self._mourned[slot] = now + rule.MOURNED
        return slot is not None

    def _bound(self) -> int:
        """The number of slots for this pool."""
        if self.limit is None:
            return UNKNOWN
        return self.limit if self.own is None else min(self.limit, self.own)

    @property
    def _is_low(self) -> bool:
        """Whether to acquire low slots: for pools that must not use the high ones, perhaps once the
        limit is known.
        """
        return self.limit is None or self.own is not None

    def _open(self, state: Any) -> Slots:
        """Open the file. If it had to be opened again, this pool's slots are acquired again."""
        slots = self._slots
        if slots is None:
            slots = self._slots = Slots(self._key)
            self._mourned.clear()
            self._learn(slots)
            kernel = state.kernel
            limit, goes_on = self._bound(), True
            while len(slots.held) < kernel.granted and goes_on:
                found = slots.take(limit, low=self._is_low)
                # if only the descriptor was closed, its slots look like those of a dead process
                goes_on = found is not None or slots.take_dead(limit) is not None
            kernel.granted = min(kernel.granted, len(slots.held))
        return slots

    def _learn(self, slots: Slots) -> None:
        """Take over the server's limit that another process wrote, or write down the one that this
        process was given.
        """
        if self.number is not None:
            return
        written = slots.limit
        if written is not None:
            self.limit = written
        elif self.limit is not None:
            slots.limit = self.limit

    # -- looking -----------------------------------------------------------------------------------

    def _arm(self, state: Any, now: float) -> None:
        """Schedule the next check."""
        if self._slots is None or self.off:
            return
        pause = self._pause if self.hungry else ENDING if self._spare else LOOK
        when = now + pause * state.random.uniform(0.8, 1.2)
        with state.lock:
            timer = self._timer
            if timer is not None and timer.is_pending and timer.when <= when:
                return
            this = weakref.ref(state)
            self._timer = state.runtime.watcher.at(when, lambda: _look(this))
        if timer is not None:
            timer.cancel()

    def look(self, state: Any) -> None:
        """On the watcher: release slots that others need more, acquire those that have become
        free.
        """
        now, kernel = state.clock(), state.kernel
        state.now = now  # else a connection seems idle since the last tick
        with state.lock:
            self._pause = min(LATER, self._pause * 1.5)
            try:
                self._tend(state, now)
            except OSError as exc:
                self._failed(state, exc, now)
            stale = kernel.take_stale()
        for entry in stale:
            state.close_entry(entry)
        self.seek(state, looks=True)
        state.ensure_connecting()
        self._arm(state, now)

    def _tend(self, state: Any, now: float) -> None:
        kernel = state.kernel
        if self._slots is not None and not self._slots.is_current:
            self._slots.leave_behind()
            self._slots = None
        if self._slots is None and not kernel.granted:
            return
        slots = self._open(state)
        self._learn(slots)
        self._mourned = {slot: when for slot, when in self._mourned.items() if when > now}
        limit = self._bound()
        for slot in [each for each in slots.held if each >= limit]:
            if slots.take(limit, low=self._is_low) is None:
                break
            slots.give_back(slot)
        if now >= self._next_burial:  # so that no caller has to wait for long dead slots
            self._next_burial = now + BURIED_EVERY
            while self._mourn(slots, now):
                pass
        fit = sum(slot < limit and slot not in self._mourned for slot in slots.held)
        kernel.granted = min(kernel.granted, fit)
        self._lend(state, slots, limit, now)
        self._condemn(kernel)
        self._let_go(state, slots, limit)

    def _lend(self, state: Any, slots: Slots, limit: int, now: float) -> None:
        kernel = state.kernel
        hungry = slots.others(Flag.HUNGRY, COUNTED)
        if not hungry:
            return
        starving = slots.others(Flag.STARVES, COUNTED)
        number = rule.to_return(
            kernel.granted,
            limit,
            1 + slots.others(Flag.MEMBER),
            hungry=hungry,
            starving=starving,
            waits=kernel.unserved > 0,
            idle=[now - entry.last_used for entry in kernel.all_idle()],
            kept=now - self._since,
        )
        kernel.granted -= number
        self.lent += number
        if number and starving:
            self._not_before = now + rule.STAND_BACK
        if not kernel.granted:
            self._since = math.inf

    def _condemn(self, kernel: Kernel) -> None:
        """Some connections should have been closed since the last check and are still in use. Those
        that were acquired last are closed on return, even if callers wait.
        """
        over = max(0, kernel.size - kernel.granted)
        lent = [entry for entry in list(kernel.in_use.values()) if entry.cause is None]
        lent.sort(key=lambda entry: -entry.taken_at)
        marked = len(kernel.in_use) - len(lent)
        for entry in lent[: max(0, min(over, self._over) - marked)]:
            entry.condemn(Cause.SURPLUS)
        self._over = over

    def _let_go(self, state: Any, slots: Slots, limit: int) -> None:
        """Release the slots that were not needed at the last check either."""
        kernel = state.kernel
        need = kernel.size + kernel.missing
        need = max(need, len(kernel.entries) + min(state.connectors, kernel.max_size))
        kernel.granted = min(kernel.granted, need)
        mine = sorted(slots.held - set(self._mourned), key=lambda slot: (slot < limit, slot))
        spare = len(mine) - max(kernel.granted, kernel.size)
        for slot in mine[: max(0, min(spare, self._spare))]:
            slots.give_back(slot)
            spare -= 1
        self._spare = max(0, spare)
        if not slots.held and not kernel.waiting and not kernel.min_size:
            self._close()

    # -- the server's answer, and the end ----------------------------------------------------------

    def wants_word(self, *, was_away: bool) -> bool:
        """Whether to ask the server on the next connection: once, and again after an outage,
        because a restart may change the limit.
        """
        return self.number is None and not self.off and (was_away or not self.asked)

    def told(self, state: Any, said: tuple[int, int | None] | None) -> None:
        """The server answered how many connections it grants, to all and to this login. None: it
        reports none.
        """
        with state.lock:
            if said is None and self.limit is not None:
                return
            if said is None:
                self._give_up(
                    state, "the server did not report how many connections it grants; give a number"
                )
                return
            server, own = said
            self.limit = rule.usable(server)
            self.own = None if own is None or own >= server else rule.usable(own)
            if self._slots is not None:
                self._slots.limit = self.limit
        log.info(
            "share",
            f"{state.name}: the pools on this host share {self._bound()} connections; the server"
            f" grants {server if own is None else min(server, own)}",
            pool=state.name,
        )

    def _failed(self, state: Any, exc: OSError, now: float) -> None:
        """The file failed. It is opened again, but not repeatedly."""
        if self._slots is not None:
            self._slots.leave_behind()
            self._slots = None
        if exc.errno in _PASSING and now - self._renewed > 1.0:
            self._renewed = now
            self.hungry = False
            return
        self._give_up(state, str(exc))

    def _give_up(self, state: Any, why: str) -> None:
        self.off, self.hungry = why, False
        state.kernel.granted = sys.maxsize
        self._close()
        log.warning(
            "share is off",
            SHARE_OFF(
                f"{state.name}: the processes on this host do not share the server's connections"
                f" (share={state.settings.share!r}): {why}; each pool opens up to max_size"
            ),
            pool=state.name,
        )

    def end(self, state: Any) -> None:
        """The pool is closed: its slots are released with its last connection."""
        if not state.kernel.size:
            with state.lock:
                self._close()

    def _close(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        slots, self._slots = self._slots, None
        self._mourned.clear()
        self._spare = self._over = 0
        if slots is not None:
            slots.close()

    def leave_behind(self) -> None:
        """This state is over: it belongs to the parent process, or its event loop has ended."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.leave_behind()

    # -- texts -------------------------------------------------------------------------------------

    def seen(self) -> Shares:
        """The current state of the share."""
        slots, limit = self._slots, None if self.limit is None else self._bound()
        free, pools = None, 0
        if slots is not None:
            try:
                free = None if limit is None else slots.free(limit)
                pools = 1 + slots.others(Flag.MEMBER)
            except OSError:
                pass
        held = 0 if slots is None else len(slots.held)
        return Shares(limit, held, free, pools, self.lent, self.hungry, self.off)

    @property
    def words(self) -> str:
        """The share, for messages: ``, 3 of the 24 connections that this host shares``."""
        if self.off or self.limit is None:
            return ""
        held = 0 if self._slots is None else len(self._slots.held)
        return f", {held} of the {self._bound()} connections that this host shares"


def _look(state_ref: Any) -> None:
    state = state_ref()
    if state is not None and state.here[0] and state.share is not None:
        state.share.look(state)
