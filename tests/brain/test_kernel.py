"""The heart: each method by itself, and all of them interleaved in every order that threads can
bring about.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from unbroken.abc import Cause
from unbroken.brain import kernel as kernel_module
from unbroken.brain import waiting as waiting_module
from unbroken.brain.entry import CONDEMNED, Entry
from unbroken.brain.kernel import Kernel, Ticket


class Conn:
    """A driver's connection, as far as the kernel cares."""


def entry_of(kernel: Kernel, now: float = 0.0) -> Entry:
    return Entry(Conn(), now, kernel.generation, now + 3600)


def opened(kernel: Kernel) -> Entry:
    """One more open connection, idle unless somebody waits for it."""
    kernel.opening += 1
    entry = entry_of(kernel)
    kernel.opened(entry)
    return entry


def lend(kernel: Kernel) -> Entry:
    """What the hot path of an acquire does."""
    entry = kernel.idle.pop()
    kernel.in_use[entry.key] = entry
    return entry


def give(kernel: Kernel, entry: Entry) -> tuple[list[Ticket], list[Entry]]:
    """What the hot path of a release does."""
    del kernel.in_use[entry.key]
    kernel.idle.append(entry)
    if kernel.waiting or entry.generation != kernel.generation:
        return kernel.serve()
    return [], []


def ticket() -> Ticket:
    return Ticket(0.0, None)


# -- each method by itself -------------------------------------------------------------------------


def test_who_enters_while_something_is_idle_is_granted_it_at_once() -> None:
    kernel = Kernel(2)
    entry, mine = opened(kernel), ticket()
    assert kernel.enter(mine) == [mine]
    assert mine.entry is entry
    assert not kernel.waiting
    assert not kernel.idle


def test_who_enters_while_nothing_is_idle_stands_at_the_end_of_the_line() -> None:
    kernel = Kernel(2)
    first, second = ticket(), ticket()
    assert kernel.enter(first) == []
    assert kernel.enter(second) == []
    assert list(kernel.waiting) == [first, second]
    assert not first.done


def test_who_enters_at_the_front_is_served_before_the_others() -> None:
    kernel = Kernel(2)
    first, early = ticket(), ticket()
    kernel.enter(first)
    kernel.enter(early, front=True)
    entry = opened(kernel)
    assert early.entry is entry
    assert not first.done


def test_serve_grants_in_the_order_of_the_line() -> None:
    kernel = Kernel(3)
    opened(kernel)
    opened(kernel)
    entries = [lend(kernel), lend(kernel)]
    line = [ticket(), ticket(), ticket()]
    for each in line:
        kernel.enter(each)
    assert give(kernel, entries[0]) == ([line[0]], [])
    assert give(kernel, entries[1]) == ([line[1]], [])
    assert [t.done for t in line] == [True, True, False]


class StrikeError(Exception):
    """What a signal handler raises."""


def struck(work: Callable[[], object], turn: int) -> bool:
    """Do *work*, and raise at the *turn*-th line of the kernel. False: there are not so many."""
    lines = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in (kernel_module.__file__, waiting_module.__file__):
            return None
        if event == "line":
            lines += 1
            if lines == turn:
                sys.settrace(None)
                raise StrikeError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except StrikeError:
        return True
    finally:
        sys.settrace(before)
    return False


MOVES: dict[str, Callable[[Kernel, Entry, list[Ticket]], object]] = {
    "serve": lambda kernel, entry, _line: give(kernel, entry),
    "opened": lambda kernel, _entry, _line: opened(kernel),
    "fail": lambda kernel, _entry, _line: kernel.fail(ValueError),
    "places": lambda kernel, _entry, _line: kernel.grant_places(lambda: entry_of(kernel)),
    "leave": lambda kernel, _entry, line: kernel.leave(line[0]),
    "call": lambda kernel, entry, _line: patient(kernel, entry),
    "answer": lambda kernel, entry, line: (patient(kernel, entry), kernel.answer_call(line[0], 1)),
}


def patient(kernel: Kernel, entry: Entry) -> tuple[list[Ticket], list[Entry]]:
    """A release at 1 s, where newcomers may overtake those that came less than 10 s before."""
    kernel.patience = 10.0
    del kernel.in_use[entry.key]
    kernel.idle.append(entry)
    return kernel.serve(1.0)


@pytest.mark.parametrize("how", MOVES)
def test_an_exception_at_any_line_of_a_move_keeps_nobody_from_being_served(how: str) -> None:
    for turn in itertools.count(1):
        kernel = Kernel(3)
        opened(kernel)
        entry = lend(kernel)
        line = [ticket(), ticket()]
        for each in line:
            kernel.enter(each)
        was_struck = struck(partial(MOVES[how], kernel, entry, line), turn)
        kernel.serve()
        assert all(
            each.done or each in kernel.waiting or (how == "leave" and each is line[0])
            for each in line
        ), turn
        owned = [
            *kernel.idle,
            *kernel.in_use.values(),
            *(each.entry for each in line if each.entry),
            *kernel.strays(),
        ]
        assert all(each in owned for each in kernel.entries.values()), turn
        if not was_struck:
            assert turn > 3
            return


def test_a_caller_is_called_first_and_a_newcomer_may_take_the_connection_meanwhile() -> None:
    kernel, mine = Kernel(1), ticket()
    opened(kernel)
    entry = lend(kernel)
    kernel.enter(mine)
    assert patient(kernel, entry) == ([mine], [])
    assert (mine.called, mine.done) == (True, False)
    assert kernel.serve(2.0) == ([], [])  # it is on its way
    assert kernel.overtake(2.0) is entry
    assert kernel.answer_call(mine, 2.0) == []
    assert (mine.called, mine.done) == (False, False)
    assert list(kernel.waiting) == [mine]


def test_a_caller_that_was_called_takes_an_idle_connection_and_calls_the_next() -> None:
    kernel, line = Kernel(3), [ticket(), ticket(), ticket()]
    for _ in range(3):
        opened(kernel)
    entries = [lend(kernel), lend(kernel), lend(kernel)]
    for each in line:
        kernel.enter(each)
    assert patient(kernel, entries[0]) == ([line[0]], [])
    kernel.idle.append(entries[1])
    kernel.idle.append(entries[2])
    assert kernel.answer_call(line[0], 1.0) == line[1:]
    assert line[0].entry is entries[2]
    assert [each.called for each in line] == [False, True, True]


def test_a_caller_that_has_waited_for_long_is_not_overtaken() -> None:
    kernel, mine = Kernel(1), ticket()
    opened(kernel)
    entry = lend(kernel)
    kernel.enter(mine)
    patient(kernel, entry)
    assert kernel.overtake(10.0) is None
    assert kernel.serve(10.0) == ([mine], [])
    assert mine.entry is entry


def test_a_caller_that_was_called_later_leaves_the_connection_to_one_that_has_waited_for_long() -> (
    None
):
    kernel, early, late = Kernel(2), ticket(), Ticket(5.0, None)
    opened(kernel)
    opened(kernel)
    entries = [lend(kernel), lend(kernel)]
    kernel.enter(early)
    kernel.enter(late)
    patient(kernel, entries[0])
    late.called = True
    assert kernel.answer_call(late, 10.0) == [early]
    assert early.entry is entries[0]
    assert not late.done


def test_a_caller_that_had_a_dead_connection_is_not_overtaken() -> None:
    kernel, mine = Kernel(1), ticket()
    opened(kernel)
    entry = lend(kernel)
    kernel.enter(mine, front=True)
    assert patient(kernel, entry) == ([mine], [])
    assert mine.entry is entry


@pytest.mark.parametrize("how", ["it gives up", "it is told"])
def test_a_caller_that_was_called_and_does_not_look_passes_the_call_on(how: str) -> None:
    kernel, line = Kernel(1), [ticket(), ticket()]
    opened(kernel)
    entry = lend(kernel)
    for each in line:
        kernel.enter(each)
    patient(kernel, entry)
    if how == "it gives up":
        assert kernel.give_up(line[0])
        assert kernel.serve(1.0) == ([line[1]], [])
    else:
        kernel.dismiss([line[0]], ValueError())
        assert kernel.answer_call(line[0], 1.0) == [line[1]]
    assert line[1].called


def test_who_leaves_before_a_grant_is_not_granted_anything_later() -> None:
    kernel = Kernel(1)
    mine = ticket()
    kernel.enter(mine)
    assert kernel.leave(mine) is None
    entry = opened(kernel)
    assert list(kernel.idle) == [entry]
    assert mine.entry is None


def test_who_leaves_after_a_grant_gets_what_was_granted_to_hand_it_on() -> None:
    kernel = Kernel(1)
    mine = ticket()
    kernel.enter(mine)
    entry = opened(kernel)
    assert kernel.leave(mine) is entry
    assert mine.entry is None


def test_who_leaves_twice_or_after_a_failure_gets_nothing() -> None:
    kernel = Kernel(1)
    mine = ticket()
    kernel.enter(mine)
    kernel.fail(lambda: ValueError())
    assert kernel.leave(mine) is None
    assert kernel.leave(mine) is None


def test_fail_gives_each_waiter_an_error_of_its_own() -> None:
    kernel = Kernel(1)
    line = [ticket(), ticket()]
    for each in line:
        kernel.enter(each)
    assert kernel.fail(lambda: ValueError("no")) == line
    assert isinstance(line[0].error, ValueError)
    assert line[0].error is not line[1].error
    assert all(t.done for t in line)
    assert not kernel.waiting


def test_a_place_is_reserved_only_when_somebody_needs_one_and_there_is_room() -> None:
    kernel = Kernel(1)
    assert not kernel.reserve()  # nobody waits
    kernel.enter(ticket())
    kernel.enter(ticket())
    assert kernel.reserve()
    assert not kernel.reserve()  # two wait, but the pool is full with the one being opened
    assert kernel.size == 1
    kernel.unreserve()
    assert kernel.size == 0


def test_a_place_is_reserved_to_keep_min_size() -> None:
    kernel = Kernel(3, 2)
    assert kernel.wanted == 2
    assert kernel.reserve()
    assert kernel.reserve()
    assert not kernel.reserve()


def test_wanted_counts_who_waits_without_those_being_opened() -> None:
    kernel = Kernel(10)
    for _ in range(3):
        kernel.enter(ticket())
    kernel.opening = 2
    assert kernel.wanted == 1


def test_wanted_never_exceeds_the_room_that_is_left() -> None:
    kernel = Kernel(2)
    for _ in range(5):
        kernel.enter(ticket())
    assert kernel.wanted == 2


def test_what_was_opened_goes_to_who_waits() -> None:
    kernel = Kernel(1)
    mine = ticket()
    kernel.enter(mine)
    assert kernel.reserve()
    entry = entry_of(kernel)
    assert kernel.opened(entry) == ([mine], [])
    assert kernel.opening == 0
    assert kernel.size == 1


def test_forget_does_not_forget_another_connection_with_the_same_id() -> None:
    kernel = Kernel(2)
    old = opened(kernel)
    new = entry_of(kernel)
    new.key = old.key  # the old object was collected, and its address used again
    kernel.entries[new.key] = new
    kernel.forget(old)
    assert kernel.entries[new.key] is new


def test_exile_frees_the_place_of_a_lent_connection() -> None:
    kernel = Kernel(1)
    opened(kernel)
    entry = lend(kernel)
    assert kernel.reclaim(entry)
    assert kernel.size == 0
    assert kernel.reclaimed == {entry.key: entry}
    assert not kernel.in_use


def test_exile_leaves_alone_what_came_back_in_the_meantime() -> None:
    kernel = Kernel(1)
    entry = opened(kernel)
    assert not kernel.reclaim(entry)
    assert list(kernel.idle) == [entry]


def test_claim_takes_what_is_idle_once() -> None:
    kernel = Kernel(1)
    entry = opened(kernel)
    assert kernel.claim(entry)
    assert not kernel.claim(entry)
    assert not kernel.idle


def test_take_removes_what_is_idle_and_leaves_what_is_lent() -> None:
    kernel = Kernel(2)
    opened(kernel)
    lent, idle = lend(kernel), opened(kernel)
    assert kernel.take([lent, idle]) == [idle]
    assert list(kernel.entries.values()) == [lent]


def test_drain_closes_what_is_idle_now_and_what_is_lent_when_it_comes_back() -> None:
    kernel = Kernel(2)
    opened(kernel)
    lent, idle = lend(kernel), opened(kernel)
    assert kernel.drain() == [idle]
    assert idle.cause is Cause.DRAINED
    assert give(kernel, lent) == ([], [lent])
    assert kernel.size == 0


def test_a_smaller_pool_closes_the_coldest_idle_ones() -> None:
    kernel = Kernel(3)
    coldest, _, warmest = opened(kernel), opened(kernel), opened(kernel)
    stale = kernel.resize(1, 0)
    assert stale[0] is coldest
    assert list(kernel.idle) == [warmest]
    assert {e.cause for e in stale} == {Cause.SURPLUS}


def test_a_smaller_pool_closes_lent_ones_when_they_come_back() -> None:
    kernel = Kernel(3)
    for _ in range(3):
        opened(kernel)
    lent = [lend(kernel) for _ in range(3)]
    assert kernel.resize(1, 0) == []
    closed = [e for each in lent for e in give(kernel, each)[1]]
    assert len(closed) == 2
    assert kernel.size == len(kernel.idle) == 1


def test_a_smaller_pool_does_not_close_lent_ones_in_vain() -> None:
    kernel = Kernel(3)
    for _ in range(3):
        opened(kernel)
    lent = lend(kernel)
    assert len(kernel.resize(1, 0)) == 2
    assert give(kernel, lent) == ([], [])
    assert list(kernel.idle) == [lent]


def test_a_smaller_pool_closes_what_was_on_its_way_to_somebody() -> None:
    kernel = Kernel(2)
    opened(kernel), opened(kernel)
    on_its_way = [kernel.idle.pop(), kernel.idle.pop()]  # taken, and not noted as lent yet
    assert kernel.resize(1, 0) == []
    for entry in on_its_way:
        kernel.in_use[entry.key] = entry
    assert sum(len(give(kernel, each)[1]) for each in on_its_way) == 1
    assert kernel.size == len(kernel.idle) == 1


def test_a_pool_that_is_made_smaller_twice_keeps_what_the_new_size_allows() -> None:
    kernel = Kernel(6)
    for _ in range(6):
        opened(kernel)
    lent = [lend(kernel) for _ in range(6)]
    kernel.resize(4, 0)
    kernel.resize(2, 0)
    for each in lent:
        give(kernel, each)
    assert kernel.size == len(kernel.idle) == 2


def test_a_closed_pool_reserves_nothing_and_wants_nothing() -> None:
    kernel = Kernel(2, 2)
    kernel.enter(ticket())
    kernel.close()
    kernel.fail(lambda: ValueError())
    assert kernel.wanted == 0
    assert not kernel.reserve()


def test_what_was_being_opened_while_the_pool_was_closed_is_closed_too() -> None:
    kernel = Kernel(1)
    kernel.enter(ticket())
    assert kernel.reserve()
    kernel.close()
    kernel.fail(lambda: ValueError())
    late = entry_of(kernel)  # its generation is the newest: it was made after the pool was closed
    assert kernel.opened(late) == ([], [late])
    assert late.cause is Cause.POOL_CLOSED
    assert kernel.size == 0


def test_a_condemned_connection_is_closed_when_it_comes_back_and_its_first_cause_stands() -> None:
    kernel = Kernel(1)
    opened(kernel)
    lent = lend(kernel)
    lent.condemn(Cause.RECLAIMED, "held for too long")
    lent.condemn(Cause.LOST)
    assert lent.generation == CONDEMNED
    assert give(kernel, lent) == ([], [lent])
    assert (lent.cause, lent.words) == (Cause.RECLAIMED, "held for too long")


def test_strays_are_those_that_nobody_owns() -> None:
    kernel = Kernel(4)
    opened(kernel)
    lent = lend(kernel)
    lost = opened(kernel)
    kernel.idle.remove(lost)
    opened(kernel)
    returning = opened(kernel)
    kernel.idle.remove(returning)
    kernel.resetting[returning.key] = returning
    assert kernel.strays() == [lost]
    assert kernel.is_out(lent)
    assert kernel.is_out(returning)
    assert not kernel.is_out(lost)


class Cycle:
    """Garbage that only the collector finds; it gives a connection back from within the
    collection.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self.itself, self.act = self, act

    def __del__(self) -> None:
        self.act()


@pytest.mark.parametrize("look", [Kernel.strays, Kernel.take_stale], ids=lambda f: f.__name__)
def test_looking_through_idle_survives_a_collection_that_lets_another_thread_in(
    look: Callable[[Kernel], Any],
) -> None:
    """Python 3.11 collects in the middle of building a tuple, and whatever runs then may take or
    give connections.
    """
    kernel = Kernel(100)
    for _ in range(40):
        opened(kernel)
    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        ballast: list[list[None]] = []
        for turn in range(20_000):
            Cycle(lambda: kernel.idle.rotate(1))
            ballast.extend([] for _ in range(turn % 7))
            if len(ballast) > 100:
                ballast.clear()
            look(kernel)
    finally:
        gc.set_threshold(*before)


class Restless(deque[Entry]):
    """One that others change whenever somebody walks through it: so it is without the interpreter's
    lock.
    """

    def __iter__(self) -> Iterator[Entry]:
        raise RuntimeError("deque mutated during iteration")


def test_all_idle_is_found_where_others_change_it_meanwhile() -> None:
    kernel = Kernel(100)
    idle = [opened(kernel) for _ in range(70)]  # more than one of a deque's blocks
    kernel.idle = Restless(kernel.idle)
    assert kernel.all_idle() == idle
    kernel.idle.clear()
    assert kernel.all_idle() == []


def test_what_stays_idle_is_found_while_threads_take_and_give() -> None:
    kernel, stop = Kernel(100), threading.Event()
    staying = {opened(kernel) for _ in range(70)}
    for _ in range(3):
        opened(kernel)

    def take_and_give() -> None:
        while not stop.is_set():
            kernel.idle.append(kernel.idle.pop())

    threads = [threading.Thread(target=take_and_give) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(500):
            assert staying <= set(kernel.all_idle())
            assert not staying & set(kernel.strays())
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# -- all of them, interleaved ----------------------------------------------------------------------

#: the next step of this actor needs no lock: it may happen in the middle of somebody else's method
FREE = "free"
ASLEEP = "asleep"  #: the next step comes when somebody wakes it
LOCKED = "locked"  #: the next step is a method of the kernel, called under the lock

Actor = Generator[str, None, None]

#: Which lock-free steps of others happen in the middle of a method; below 0: no more before the
#: next touch of a deque.
CHAOS = st.lists(st.integers(-9, 11), max_size=8)
#: How many steps somebody takes at once before others have their turn.
RUSH = st.integers(0, 4)
TROUBLES = ("die", "die", "exercise", "reclaim", "condemn", "drain", "resize", "resize", "close")


class Pausing(deque[Any]):
    """A deque that lets other threads in before each operation, as the interpreter may."""

    pause: Callable[[], None] = staticmethod(lambda: None)  # type: ignore[assignment]

    def append(self, item: Any) -> None:
        self.pause()
        super().append(item)

    def appendleft(self, item: Any) -> None:
        self.pause()
        super().appendleft(item)

    def pop(self) -> Any:  # type: ignore[override]
        self.pause()
        return super().pop()

    def popleft(self) -> Any:
        self.pause()
        return super().popleft()

    def remove(self, item: Any) -> None:
        self.pause()
        super().remove(item)

    def __bool__(self) -> bool:
        self.pause()
        return super().__len__() > 0

    def __iter__(self) -> Iterator[Any]:
        self.pause()
        return iter([*super().__iter__()])  # one atomic look, as list(deque) is


class KernelMachine(RuleBasedStateMachine):
    """Threads at a kernel. Every lock-free move is one step; the methods are steps under the lock,
    into which the lock-free steps of others are mixed wherever the kernel touches a deque."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel(3)
        idle, waiting = Pausing(), Pausing()
        idle.pause = waiting.pause = self._let_others_in  # type: ignore[method-assign]
        self.kernel.idle, self.kernel.waiting = idle, waiting
        self.actors: list[
            tuple[Actor, str]
        ] = []  #: who is in the middle of something, and what the next step needs
        self.hands: list[Entry] = []  #: owned by an actor for the moment
        self.line: list[Ticket] = []  #: who ought to stand in line, in order
        self.standing: list[Ticket] = []  #: whose waiter has not woken up yet, granted or not
        self.leaving: list[Ticket] = []  #: has given up, and has not left the line yet
        self.owed = 0  #: givers that have appended and not looked, or have looked and not served
        self.now = 0.0  #: grows by 1 with each step
        self.closed: list[Entry] = []
        self.dead: set[int] = set()
        self.size_before = 0
        self.chaos: list[int] = []
        self.inside = False
        self.broken = False

    @initialize(size=st.integers(1, 3), lent=st.integers(0, 3), waiting=st.integers(0, 2))
    def begin(self, size: int, lent: int, waiting: int) -> None:
        """Most of what is interesting happens in a pool that is in use already."""
        self.kernel.max_size = size
        for _ in range(min(size, lent + 1)):
            opened(self.kernel)
        for _ in range(min(size, lent)):
            lend(self.kernel)
        for _ in range(waiting if lent >= size else 0):
            self.start(self.waiter(), 1)

    # -- running actors ----------------------------------------------------------------------------

    def start(self, actor: Actor, rush: int = 0, chaos: Iterable[int] = ()) -> None:
        """Begin *actor*, and let it take *rush* steps at once."""
        self.chaos = [*chaos]
        self.actors.append((actor, FREE))
        for _ in range(1 + rush):
            mine = [a for a in self.actors if a[0] is actor]
            if mine:
                self._advance(mine[0])
        self.chaos = []

    def _advance(self, actor: tuple[Actor, str]) -> None:
        self.now += 1
        at = self.actors.index(actor)
        del self.actors[at]
        with suppress(StopIteration):
            self.actors.insert(at, (actor[0], next(actor[0])))

    def _let_others_in(self) -> None:
        """Called from within the kernel's methods, before each touch of a deque."""
        if self.inside:
            return
        self.inside = True
        try:
            while self.chaos and (choice := self.chaos.pop()) >= 0:
                free = [a for a in self.actors if a[1] == FREE]
                for _ in range(1 + choice % 3):
                    somebody = [
                        a
                        for a in self.actors
                        if free and a[0] is free[choice % len(free)][0] and a[1] == FREE
                    ]
                    if somebody:
                        self._advance(somebody[0])
        finally:
            self.inside = False

    @rule(which=st.integers(0, 63), chaos=CHAOS)
    @precondition(lambda self: self.actors)
    def step(self, which: int, chaos: list[int]) -> None:
        self.chaos = chaos
        self._advance(self.actors[which % len(self.actors)])
        self.chaos = []

    # -- the bodies' moves, as sync.py, aio.py and flows/ make them --------------------------------

    @rule(rush=RUSH, chaos=CHAOS)
    def take(self, rush: int, chaos: list[int]) -> None:
        self.start(self.taker(), rush, chaos)

    def taker(self) -> Actor:
        """The hot path of an acquire: look at the line, pop, lend."""
        yield FREE
        if self.kernel.waiting:
            yield from self.newcomer()
            return
        yield FREE
        try:
            entry = self.kernel.idle.pop()
        except IndexError:
            yield from self.waiter()
            return
        self.hands.append(entry)
        yield from self.lend(entry)

    def newcomer(self) -> Actor:
        """Somebody waits already."""
        yield LOCKED
        now = self.now
        entry = self.kernel.overtake(now)
        if entry is None:
            yield from self.waiter()
            return
        self.hands.append(entry)
        self.demand(not self.has_waited_long(now), "it overtook somebody who has waited for long")
        yield from self.lend(entry)

    def has_waited_long(self, now: float, before: Ticket | None = None) -> bool:
        """Whether somebody in the line must not be overtaken at *now*."""
        line = [*deque.__iter__(self.kernel.waiting)]
        return any(
            (each.is_first or now - each.since >= self.kernel.patience)
            and (before is None or each.since < before.since)
            for each in line
            if not each.done
        )

    def lend(self, entry: Entry) -> Actor:
        if id(entry) in self.dead:
            yield LOCKED
            self.discard(entry)
            yield from self.waiter(front=True)
        else:
            yield FREE
            self.hands.remove(entry)
            self.kernel.in_use[entry.key] = entry

    def waiter(self, front: bool = False) -> Actor:
        """Standing in line: enter under the lock, then wake up once there is something to wake up
        for.
        """
        yield LOCKED
        if self.kernel.closed:
            return
        mine = Ticket(self.now, None)
        self.line.insert(0 if front else len(self.line), mine)
        self.standing.append(mine)
        self.granted(self.kernel.enter(mine, front=front))
        while not mine.done or mine.called:
            yield ASLEEP
            if mine.called:
                yield LOCKED
            if mine not in self.standing:
                return  # its time was up
            if mine.called:
                self.answer(mine)
        yield FREE
        if mine not in self.standing:
            return
        self.standing.remove(mine)
        entry, mine.entry = mine.entry, None
        if entry is not None:
            self.hands.append(entry)
            yield from self.lend(entry)

    def answer(self, mine: Ticket) -> None:
        was_done, now = mine.done, self.now
        woken = self.kernel.answer_call(mine, now)
        if mine.entry is not None and not was_done:
            self.demand(not self.has_waited_long(now, mine), "quicker than one who waited long")
            self.line.remove(mine)
        self.granted(woken)

    @rule(which=st.integers(0, 63), rush=RUSH, chaos=CHAOS)
    @precondition(lambda self: self.standing)
    def give_up(self, which: int, rush: int, chaos: list[int]) -> None:
        """A waiter's time is up, or it is cancelled: before a grant, or after it and before it
        wakes up.
        """
        self.start(self.quitter(self.standing.pop(which % len(self.standing))), rush, chaos)

    def quitter(self, mine: Ticket) -> Actor:
        self.leaving.append(mine)
        yield LOCKED
        self.leaving.remove(mine)
        must_serve = self.kernel.give_up(mine)
        if mine in self.line:
            self.line.remove(mine)
        if must_serve:
            yield from self.settle()

    @rule(which=st.integers(0, 63), rush=RUSH, chaos=CHAOS)
    @precondition(lambda self: self.kernel.in_use)
    def give(self, which: int, rush: int, chaos: list[int]) -> None:
        self.start(self.giver(self.any_lent(which)), rush, chaos)

    def giver(self, entry: Entry) -> Actor:
        """The hot path of a release."""
        yield FREE
        if self.kernel.in_use.pop(entry.key, None) is entry:
            self.hands.append(entry)
            yield from self.append_and_look(entry)

    def append_and_look(self, entry: Entry) -> Actor:
        """A giver appends *first* and looks *afterwards*."""
        yield FREE
        self.hands.remove(entry)
        self.owed += 1
        self.kernel.idle.append(entry)
        yield FREE
        if self.kernel.waiting or entry.generation != self.kernel.generation:
            yield from self.settle()
        self.owed -= 1

    def settle(self) -> Actor:
        self.owed += 1
        yield LOCKED
        tickets, stale = self.kernel.serve(self.now)
        self.owed -= 1
        self.granted(tickets)
        self.close_all(stale)

    @rule(which=st.integers(0, 63), rush=RUSH, chaos=CHAOS)
    @precondition(lambda self: self.kernel.in_use)
    def give_slowly(self, which: int, rush: int, chaos: list[int]) -> None:
        self.start(self.slow_giver(self.any_lent(which)), rush, chaos)

    def slow_giver(self, entry: Entry) -> Actor:
        """A release with a round trip in it; what is not welcome is buried."""
        yield FREE
        if self.kernel.in_use.pop(entry.key, None) is not entry:
            return
        self.hands.append(entry)
        self.kernel.resetting[entry.key] = entry
        yield FREE
        del self.kernel.resetting[entry.key]
        yield LOCKED
        kernel = self.kernel
        if entry.generation == kernel.generation and not (
            kernel.closed or kernel.size > kernel.max_size
        ):
            yield from self.put(entry)
        else:
            self.discard(entry)

    def put(self, entry: Entry) -> Actor:
        yield FREE
        self.hands.remove(entry)
        self.owed += 1
        self.kernel.idle.append(entry)
        yield from self.settle()
        self.owed -= 1

    def discard(self, entry: Entry) -> None:
        entry.condemn(Cause.DISCARDED)
        self.kernel.forget(entry)
        self.hands.remove(entry)
        self.close_all([entry])

    @rule(fails=st.integers(0, 3), rush=RUSH, chaos=CHAOS)
    def open(self, fails: int, rush: int, chaos: list[int]) -> None:
        self.start(self.connector(fails=fails == 3), rush, chaos)

    def connector(self, fails: bool = False) -> Actor:
        yield LOCKED
        if not self.kernel.reserve():
            return
        generation = self.kernel.generation
        yield LOCKED
        if fails:
            self.kernel.unreserve()
            return
        entry = entry_of(self.kernel)
        entry.generation = generation
        tickets, stale = self.kernel.opened(entry)
        self.granted(tickets)
        self.close_all(stale)

    def upkeep(self, entry: Entry) -> Actor:
        yield LOCKED
        if self.kernel.claim(entry):
            self.hands.append(entry)
            if id(entry) in self.dead:
                self.discard(entry)
            else:
                yield from self.put(entry)

    @rule(what=st.sampled_from(TROUBLES), which=st.integers(0, 63), chaos=CHAOS)
    def trouble(self, what: str, which: int, chaos: list[int]) -> None:
        """The rare things, all in one rule: they would crowd out the rest."""
        self.chaos = chaos
        getattr(self, what)(which)
        self.chaos = []

    def exercise(self, which: int) -> None:
        if self.kernel.entries:
            self.start(self.upkeep(self.any_entry(which)))

    def die(self, which: int) -> None:
        """The other side ends a connection; the watcher may see it."""
        if self.kernel.entries:
            entry = self.any_entry(which)
            self.dead.add(id(entry))
            if which % 2:
                self.close_all(self.kernel.take([entry]))

    def reclaim(self, which: int) -> None:
        if self.kernel.in_use:
            entry = self.any_lent(which)
            entry.condemn(Cause.RECLAIMED)
            if self.kernel.reclaim(entry):
                self.close_all([entry])

    def condemn(self, which: int) -> None:
        if self.kernel.in_use:
            self.any_lent(which).condemn(Cause.KILLED)

    def drain(self, which: int) -> None:
        self.close_all(self.kernel.drain())

    def resize(self, which: int) -> None:
        self.close_all(self.kernel.resize(1 + which % 4, 0))

    def close(self, which: int) -> None:
        if which % 4:
            return  # a closed pool ends most of the story
        self.close_all(self.kernel.close())
        failed = self.kernel.fail(lambda: ValueError("closed"))
        assert failed == self.line
        self.line.clear()

    def any_lent(self, which: int) -> Entry:
        return list(self.kernel.in_use.values())[which % len(self.kernel.in_use)]

    def any_entry(self, which: int) -> Entry:
        return list(self.kernel.entries.values())[which % len(self.kernel.entries)]

    # -- what must hold ----------------------------------------------------------------------------

    def demand(self, holds: bool, what: str) -> None:
        if not holds:
            self.broken = True
        assert holds, what

    def granted(self, woken: list[Ticket]) -> None:
        tickets = [each for each in woken if each.done]
        self.demand(all(each.done or each.called for each in woken), "woken for nothing")
        self.demand(tickets == self.line[: len(tickets)], "not served in order")
        self.demand(not (tickets and self.kernel.closed), "a closed pool granted something")
        del self.line[: len(tickets)]

    def close_all(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.demand(entry not in self.closed, "closed twice")
            self.closed.append(entry)

    @invariant()
    def everything_open_has_one_owner(self) -> None:
        tickets = [t.entry for t in [*self.standing, *self.leaving] if t.entry is not None]
        owned = [
            *deque.__iter__(self.kernel.idle),
            *self.kernel.in_use.values(),
            *tickets,
            *self.hands,
        ]
        self.demand(len(owned) == len({id(e) for e in owned}), "two have the same connection")
        self.demand(
            {id(e) for e in owned} == {id(e) for e in self.kernel.entries.values()},
            "nobody has it, or it is not the pool's",
        )
        self.demand(
            not {id(e) for e in owned} & {id(e) for e in self.closed}, "somebody has a closed one"
        )

    @invariant()
    def size_is_bounded(self) -> None:
        size = self.kernel.size
        self.demand(size <= max(self.kernel.max_size, self.size_before), "it grew beyond max_size")
        self.size_before = size

    @invariant()
    def no_wake_up_is_lost(self) -> None:
        if deque.__len__(self.kernel.idle) and deque.__len__(self.kernel.waiting):
            self.demand(
                self.owed > 0 or any(each.called for each in [*self.standing, *self.leaving]),
                "somebody waits, something is idle, and nobody is about to look",
            )

    @invariant()
    def who_waits_is_who_should(self) -> None:
        self.demand(
            list(deque.__iter__(self.kernel.waiting)) == self.line,
            "somebody was lost from the line",
        )

    def check(self) -> None:
        self.everything_open_has_one_owner()
        self.size_is_bounded()
        self.no_wake_up_is_lost()
        self.who_waits_is_who_should()

    def teardown(self) -> None:
        """Let everybody finish; then the pool must be whole."""
        if self.broken:
            return
        for _ in range(3000):
            for entry in list(self.kernel.in_use.values()):
                self.start(self.giver(entry))
            if self.kernel.wanted:
                self.start(self.connector())
            for actor in list(self.actors):
                if actor in self.actors:
                    self._advance(actor)
            self.check()
            if not self.actors and not self.kernel.in_use:
                break
        kernel = self.kernel
        assert not self.actors, "somebody never ended"
        assert not kernel.waiting, "somebody still waits"
        assert kernel.opening == 0
        assert not kernel.resetting
        assert len(kernel.idle) == kernel.size, "at rest, everything open is idle"
        assert kernel.size <= kernel.max_size, "it did not come down to its new size"
        assert kernel.size == 0 or not kernel.closed, "a closed pool holds something"


class PatientMachine(KernelMachine):
    """Newcomers may overtake those who have not waited for long."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel.patience = 8.0


TestKernelMachine = KernelMachine.TestCase  # hypothesis chooses, and shrinks what fails
TestPatientMachine = PatientMachine.TestCase
TestKernelMachine.settings = TestPatientMachine.settings = settings(
    max_examples=300, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

STEPS = 25


def play(machine: type[KernelMachine], seed: int) -> None:
    """One schedule, all of it chosen by *seed*: twenty times as many of these fit into a second."""
    random = Random(seed)

    def chaos() -> list[int]:
        return [random.randint(-9, 11) for _ in range(random.randint(0, 6))]

    state = machine()
    state.begin(size=random.randint(1, 3), lent=random.randint(0, 3), waiting=random.randint(0, 2))
    state.check()
    for _ in range(STEPS):
        which, rush = random.randrange(64), random.choice((0, 0, 1, 2, 3, 4))
        match random.randrange(16):
            case 0 | 1 | 2:
                state.take(rush=rush, chaos=chaos())
            case 3 | 4 if state.kernel.in_use:
                state.give(which=which, rush=rush, chaos=chaos())
            case 5 if state.kernel.in_use:
                state.give_slowly(which=which, rush=rush, chaos=chaos())
            case 6:
                state.open(fails=random.randrange(4), rush=rush, chaos=chaos())
            case 7 if state.standing:
                state.give_up(which=which, rush=rush, chaos=chaos())
            case 8:
                state.trouble(what=random.choice(TROUBLES), which=which, chaos=chaos())
            case _ if state.actors:
                state.step(which=which, chaos=chaos())
        state.check()
    state.teardown()


def explore(machine: type[KernelMachine], seeds: Iterable[int]) -> None:
    for seed in seeds:
        try:
            play(machine, seed)
        except Exception as failure:
            failure.add_note(f"play({machine.__name__}, seed={seed}) shows it again")
            raise


@pytest.mark.parametrize("machine", [KernelMachine, PatientMachine])
def test_no_schedule_breaks_a_promise(machine: type[KernelMachine]) -> None:
    explore(machine, [24_064, *range(10_000)])  # the first one was found by the million


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [KernelMachine, PatientMachine])
def test_no_schedule_of_a_million_breaks_a_promise(machine: type[KernelMachine]) -> None:
    explore(machine, range(10_000, 1_010_000))


# -- the machine finds what it is there to find ----------------------------------------------------


class GiverLooksFirst(KernelMachine):
    def append_and_look(self, entry: Entry) -> Actor:
        yield FREE
        looks = self.kernel.waiting or entry.generation != self.kernel.generation
        yield FREE
        self.hands.remove(entry)
        self.kernel.idle.append(entry)
        if looks:
            yield from self.settle()


def leave_and_drop(self: Kernel, mine: Ticket) -> None:
    with suppress(ValueError):
        self.waiting.remove(mine)
    mine.entry = None


def look_before_joining(self: Kernel, mine: Ticket, *, front: bool = False) -> list[Ticket]:
    if not self.waiting:
        with suppress(IndexError):
            mine.entry = self.idle.pop()
            return [mine]
    (self.waiting.appendleft if front else self.waiting.append)(mine)
    return []


def grant_the_last(self: Kernel) -> list[Ticket]:
    granted = []
    while self.waiting:
        try:
            entry = self.idle.pop()
        except IndexError:
            break
        mine = self.waiting.pop()
        mine.entry = entry
        granted.append(mine)
    return granted


def reserve_without_counting_what_is_opening(self: Kernel) -> bool:
    if self.closed or len(self.entries) >= self.max_size or not self.waiting:
        return False
    self.opening += 1
    return True


def grant_without_taking(self: Kernel) -> list[Ticket]:
    granted = []
    while self.waiting and self.idle:
        mine = self.waiting.popleft()
        mine.entry = list(self.idle)[-1]
        granted.append(mine)
    return granted


def call_without_a_mark(self: Kernel) -> list[Ticket]:
    return list(self.waiting)[: len(self.idle)]


def call_nobody(self: Kernel) -> list[Ticket]:
    return []


def overtake_always(self: Kernel, now: float) -> Entry | None:
    return self._pop_idle()


def forget_the_call(self: Kernel, mine: Ticket) -> bool:
    mine.called, entry = False, self.leave(mine)
    if entry is not None:
        self.put(entry)
    return entry is not None


def answer_without_order(self: Kernel, mine: Ticket, now: float) -> list[Ticket]:
    mine.called = False
    if not mine.done and (entry := self._pop_idle()) is not None:
        mine.entry = entry
        self._leave_line(mine)
    return self.offer(now)


@pytest.mark.parametrize(
    ("machine", "method", "planted", "found"),
    [
        (PatientMachine, "_call", call_without_a_mark, "woken for nothing"),
        (PatientMachine, "_call", call_nobody, "nobody is about to look"),
        (PatientMachine, "overtake", overtake_always, "overtook somebody who has waited"),
        (PatientMachine, "give_up", forget_the_call, "nobody is about to look"),
        (PatientMachine, "answer_call", answer_without_order, "quicker than|in order"),
        (GiverLooksFirst, None, None, "nobody is about to look"),
        (KernelMachine, "leave", leave_and_drop, "nobody has it"),
        (KernelMachine, "enter", look_before_joining, "nobody is about to look"),
        (KernelMachine, "_grant", grant_the_last, "not served in order"),
        (KernelMachine, "_grant", grant_without_taking, "two have the same connection"),
        (
            KernelMachine,
            "reserve",
            reserve_without_counting_what_is_opening,
            "it grew beyond max_size",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_machine_finds_a_planted_bug(
    machine: type[KernelMachine],
    method: str | None,
    planted: Any,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method is not None:
        monkeypatch.setattr(Kernel, method, planted)
    with pytest.raises(AssertionError, match=found):
        explore(machine, range(10_000))
