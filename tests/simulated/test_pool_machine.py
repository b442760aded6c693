"""The real pool in a simulated world: whatever goes wrong, and in whatever order threads take their
turns, it keeps its promises. A story is all chosen by its seed; what fails names it, and
``tell(seed)`` shows it again, step by step.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.brain.entry import Entry
from unbroken.brain.kernel import Kernel, Ticket
from unbroken.brain.outage import Outage
from unbroken.errors import (
    CommitUnknownError,
    ConnectRejectedError,
    NotYoursError,
    OutageError,
    PoolTimeoutError,
    UnbrokenError,
)
from unbroken.pool import acquire as acquire_module
from unbroken.pool import answers
from unbroken.pool import connect as connect_module
from unbroken.pool.loan import Loan
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Flow
from unbroken.sync import Pool
from unbroken_drill.fake_server import FakeOperationalError, Mode

from .simulation import Cancelled, Connection, Thread, Violation, World, installed

#: What a caller may be late by: the shortest ping that is still tried, and its answer's way.
LATE = 0.12

#: How old an answer that is due may be when its connection is lent.
SOON = answers.ANSWER_SOON + 0.001

#: Seconds between two requests of one caller.
PAUSES = (0.0, 0.01, 0.3)

GONE = Fault(FaultKind.LOST, Cause.KILLED, 1927, "connection was killed")


class Story:
    """One pool (or two, of one server), some callers, and what goes wrong meanwhile."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = random = world.random
        self.settings: dict[str, Any] = {
            "max_size": random.choice((1, 2, 3, 5)),
            "acquire_timeout": random.choice((0.5, 3.0, 10.0)),
            "outage_wait": random.choice((0.5, 5.0)),
            "connect_timeout": random.choice((0.5, 5.0)),
            "ping_after": random.choice((None, 0.3)),
            "max_idle": random.choice((None, 1.0)),
            "max_age": random.choice((None, 2.0)),
            "leak_after": random.choice((60.0, 1.0)),
            "reclaim": random.random() < 0.3,
            "ping_timeout": random.choice((0.2, 2.0)),
        }
        self.settings["min_size"] = random.choice((0, 0, self.settings["max_size"]))
        world.server.idle_limit = random.choice((None, None, 1.5))
        world.server.tells_idle_limit = random.random() < 0.5
        world.lingers = random.choice((0.0, 0.0, 0.4))
        self.pools = [self._new_pool() for _ in range(random.choice((1, 1, 2)))]
        self.numbers = 0
        self.outcome: dict[int, str] = {}  #: of each row that somebody tried to store
        self.came: dict[int, float] = {}  #: when its caller came to the pool
        self.sizes: dict[int, int] = {}
        self.died: dict[int, int] = {}  #: by session, the step at which its end could be seen
        self.open_sessions = self.last_session = 0  #: when that was noted last
        self.callers: list[Thread] = []
        self.seen: Counter[str] = Counter()
        world.check = self.check  # type: ignore[method-assign]
        world.pass_time = self.check_line  # type: ignore[method-assign]
        world.on_attempt = self.check_pace

    def _new_pool(self) -> Pool:
        knows, shows = self.random.random() < 0.6, self.random.random() < 0.85
        defers = self.random.random() < 0.5
        return self.world.new_pool(
            knows_status=knows, shows_socket=shows, defers=defers, **self.settings
        )

    @property
    def states(self) -> list[PoolState]:
        return [p._state for p in self.pools if p._state.here[0]]

    # -- callers -----------------------------------------------------------------------------------

    def call(self) -> None:
        """Somebody comes and does one of the things that people do."""
        pool = self.random.choice(self.pools)
        work = self.random.choice(
            (
                self.lease,
                self.lease,
                self.lease,
                self.unit,
                self.unit,
                self.plain,
                self.plain,
                self.forget,
                self.hold,
                self.visit,
                self.visit,
                self.visit,
            )
        )
        self.callers.append(self.world.start(lambda: self.guarded(work, pool), work.__name__))

    def guarded(self, work: Any, pool: Pool) -> None:
        world = self.world
        timeout, row = self.settings["acquire_timeout"], self.new_row()
        self.came[row] = world.clock.now
        self.outcome[row] = "refused"  #: until somebody sends its COMMIT
        try:
            work(pool, row)
        except CommitUnknownError:
            self.outcome[row] = "unknown"
        except Cancelled:
            self.seen["cancelled"] += 1
        except (PoolTimeoutError, OutageError, ConnectRejectedError) as error:
            self.seen[type(error).__name__] += 1
            late = world.clock.now - self.came[row] - timeout
            if work != self.unit:  # it may have been replayed
                world.demand(late <= LATE, f"{late:.3f} s late with {error!r}")
        except (FakeOperationalError, KeyError, UnbrokenError) as error:
            self.outcome[row] = "refused"  # whatever else it says, nothing was stored
            self.seen[type(error).__name__] += 1

    def new_row(self) -> int:
        self.numbers += 1
        return self.numbers

    def lent(self, pool: Pool, conn: Connection, begun: int) -> None:
        """What must hold of everything that is handed out."""
        world = self.world
        world.demand(conn.process is world.process, "a child was lent its parent's connection")
        world.demand(not conn.is_closed, "a closed connection was lent")
        if conn.session.has_hung_up and pool._driver.capabilities.fileno:
            world.demand(
                bool(world.interrupts) and self.died.get(conn.session.number, 0) >= begun,
                "a connection known dead was lent",
            )
        world.demand(
            conn.session.pending is None or conn.owes, "somebody else's open transaction was lent"
        )
        world.demand(
            not conn.owes or world.clock.now - conn.owes_since <= SOON or bool(world.interrupts),
            "a connection was lent whose answer is late",
        )

    def work(self, conn: Connection, row: int) -> None:
        for _ in range(self.random.randrange(3)):
            conn.execute("SELECT")
        conn.execute("INSERT", row)
        if self.random.random() < 0.15:
            raise KeyError("the application's own")

    def lease(self, pool: Pool, row: int) -> None:
        begun = self.world.steps
        with pool.connection(deadline=self.random.choice((None, None, 4.0))) as conn:
            self.lent(pool, conn, begun)
            if self.random.random() < 0.8:
                self.work(conn, row)
                self.outcome[row] = (
                    "unknown"  # until the COMMIT is answered: a strike may come in between
                )
            else:
                row = 0
        if row:
            self.outcome[row] = "stored"

    def unit(self, pool: Pool, row: int) -> None:
        begun = self.world.steps

        def work(conn: Connection) -> None:
            nonlocal begun
            self.outcome[row] = "refused"
            self.lent(pool, conn, begun)
            try:
                self.work(conn, row)
            finally:
                begun = self.world.steps  # of the next attempt, if there is one
            self.outcome[row] = "unknown"

        pool.run(work)
        self.outcome[row] = "stored"

    def plain(self, pool: Pool, row: int) -> None:
        """acquire and release; what is open is rolled back."""
        begun = self.world.steps
        conn = pool.acquire()
        try:
            self.lent(pool, conn, begun)
            if self.random.random() < 0.7:
                self.work(conn, row)
        finally:
            pool.release(conn)

    def visit(self, pool: Pool, row: int) -> None:
        """Requests in a row that read once, where nobody waits for the answers to their ROLLBACKs,
        or do nothing.
        """
        for _ in range(self.random.choice((1, 2, 3, 6))):
            self.came[row], begun = self.world.clock.now, self.world.steps
            conn = pool.acquire()
            try:
                self.lent(pool, conn, begun)
                if self.random.random() < 0.5:
                    conn.execute("SELECT")
            finally:
                pool.release(conn)
            self.world.wait(None, self.world.clock.now + self.random.choice(PAUSES), safe=True)

    def forget(self, pool: Pool, row: int) -> None:
        conn = pool.acquire()
        if self.random.random() < 0.5:
            self.world.garbage.append(conn)
        conn.execute("INSERT", row)

    def hold(self, pool: Pool, row: int) -> None:
        with pool.connection() as conn:
            self.world.wait(None, self.world.clock.now + self.random.uniform(0.5, 4.0), safe=True)
            conn.execute("INSERT", row)
            self.outcome[row] = "unknown"
        self.outcome[row] = "stored"

    # -- what goes wrong ---------------------------------------------------------------------------

    def trouble(self) -> None:
        server, random = self.world.server, self.random
        kinds = (
            self.kill_one, self.kill_one, server.kill_sessions, server.drop_silently, server.down,
            server.crash, server.freeze, server.up, server.up, self.starting, self.unreachable,
            server.reject, self.cut, self.notice, self.cancel, self.cancel, self.drain,
            self.resize, self.fork, self.fork_within, self.read_only, self.fill,
            self.linger,
        )  # fmt: skip
        chosen = random.choice(kinds)
        self.seen[chosen.__name__] += 1
        chosen()

    def kill_one(self) -> None:
        sessions = list(self.world.server.sessions.values())
        if sessions:
            self.random.choice(sessions).end(self.random.choice((None, GONE)))

    def starting(self) -> None:
        self.world.server.mode = Mode.STARTING

    def unreachable(self) -> None:
        self.world.server.mode = Mode.UNREACHABLE

    def cut(self) -> None:
        self.world.server.commits_to_lose += 1

    def fill(self) -> None:
        self.world.server.max_connections = self.random.choice((0, 1, 100))

    def linger(self) -> None:
        """Until further notice it takes so long to undo what a transaction did."""
        self.world.lingers = self.random.choice((0.0, 0.4, 3.0))

    def read_only(self) -> None:
        self.world.server.read_only = not self.world.server.read_only

    def notice(self) -> None:
        """Something arrives unasked, on an idle connection."""
        self.world.net.unread.update(
            fd for fd in self.world.net.sessions if self.random.random() < 0.5
        )

    def cancel(self) -> None:
        waiting = [t for t in self.callers if t.is_waiting and not t.greenlet.dead]
        if waiting:
            self.random.choice(waiting).strike = Cancelled()

    def drain(self) -> None:
        pool = self.random.choice(self.pools)
        self.world.start(lambda: pool.drain(), "drain")

    def resize(self) -> None:
        pool, size = self.random.choice(self.pools), self.random.choice((1, 2, 4))
        self.world.start(lambda: pool.resize(max_size=size, min_size=0), "resize")

    def fork(self) -> None:
        self.fork_from(None)

    def fork_within(self) -> None:
        """A thread forks while it has a connection, and goes on in the child."""
        pool = self.random.choice(self.pools)

        def work() -> None:
            try:
                with pool.connection() as conn:
                    conn.execute("SELECT")
                    self.fork_from(self.world.me())
            except NotYoursError:
                self.seen["told that it is the parent's"] += 1
            except (UnbrokenError, FakeOperationalError, Cancelled):
                pass

        self.callers.append(self.world.start(work, "forker"))

    def fork_from(self, keep: Thread | None) -> None:
        # what dies in the child before anybody looks is the fork hook's business
        self.world.garbage.clear()
        self.world.fork(keep)
        self.callers = [t for t in self.callers if t is keep]
        self.sizes.clear()
        hooked = self.random.random() < 0.5  # a fork that Python sees severs at once
        for pool in self.pools if hooked else ():
            if not pool._state.here[0]:
                pool._state.sever()

    # -- what must hold ----------------------------------------------------------------------------

    def check(self) -> None:
        """After each step: a look that is quick while all is well."""
        world, process = self.world, self.world.process
        for pool in self.pools:
            state = pool._state
            if not state.here[0]:
                continue
            kernel = state.kernel
            idle, size = kernel.idle, len(kernel.entries) + kernel.opening
            in_use, resetting = kernel.in_use, kernel.resetting
            owned = len(idle) + len(in_use) + len(resetting)
            if owned > 1 and owned != len({*idle, *in_use.values(), *resetting.values()}):
                raise world.violation("a connection has two owners")
            for entry in idle:
                conn = entry.conn
                if conn is None or conn.session.pending is not None or conn.process is not process:
                    self.check_idle(entry)
            if kernel.opening < 0 or state.connectors < 0:
                raise world.violation("counted below nothing")
            if size > kernel.max_size and size > self.sizes.get(id(state), 0):
                raise world.violation("it grew beyond max_size")
            self.sizes[id(state)] = size
            at = pool._driver.rejected_at
            if (
                kernel.waiting
                and world.rested_until < at < world.clock.now
                and any(t.since < at for t in kernel.waiting)
            ):
                raise world.violation("not told at once that the server says no")
        if (
            len(world.server.sessions) != self.open_sessions
            or world.server._numbers != self.last_session
        ):
            self.note_deaths()

    def check_line(self) -> None:
        """Everybody has done what they can at this moment: nobody may have been overlooked."""
        if any(thread.is_at_rest for thread in self.world.threads):
            return  # somebody who was interrupted may be just about to
        for state in self.states:
            if state.kernel.waiting and state.kernel.idle:
                raise self.world.violation("somebody waits beside an idle connection")

    def check_idle(self, entry: Entry) -> None:
        conn = entry.conn
        if conn is None:
            raise self.world.violation("an idle entry has no connection")
        if conn.session.pending is not None and not conn.owes:
            raise self.world.violation("an open transaction stands in idle")
        if conn.process is not self.world.process:
            raise self.world.violation("another process's connection stands in idle")

    def note_deaths(self) -> None:
        self.open_sessions = len(self.world.server.sessions)
        self.last_session = self.world.server._numbers
        for session, _ in self.world.net.sessions.values():
            if session.has_hung_up:
                self.died.setdefault(session.number, self.world.steps)

    def check_pace(self) -> None:
        """An attempt to connect begins."""
        world = self.world
        outage = world.record.outage
        if not outage.active or world.last_failure is None or world.interrupts:
            return  # one that is interrupted may begin long after it was decided on
        when, kind = world.last_failure
        if when < outage.counted:
            return  # of an outage that has ended: a connection in use was told of another
        gap = world.clock.now - when
        least = {FaultKind.REFUSED: 0.010, FaultKind.NOT_READY: 0.015}.get(kind, 0.050)
        world.demand(
            gap >= least - 1e-9, f"{gap:.4f} s after an attempt that ended with {kind.value!r}"
        )
        called = (
            any(s.kernel.waiting for s in self.states)
            or world.clock.now - outage.called <= 1.0 + 0.25
        )
        world.demand(called or gap >= 0.99, f"nobody waits, and it tried again after {gap:.3f} s")

    # -- from the beginning to the end -------------------------------------------------------------

    def tell(self) -> None:
        world, random = self.world, self.random
        # in some little goes wrong, and many come at a time: what differs is in which order they go
        calls, bursts = random.choice(((0.65, (1, 1, 2, 6)), (0.95, (1, 3, 6))))
        for _ in range(random.randint(3, 25)):
            if random.random() < calls:
                for _ in range(random.choice(bursts)):
                    self.call()
            else:
                self.trouble()
            world.run(
                lambda: False,
                random.choice((0.0, 0.001, 0.01, 0.1, 0.4, random.choice((1.0, 1.0, 3.0)))),
            )
        self.heal()
        self.look_at_rest()

    def heal(self) -> None:
        server = self.world.server
        server.up()
        server.read_only, server.commits_to_lose, server.max_connections = False, 0, 100
        server.idle_limit, self.world.lingers = None, 0.0
        self.world.net.find_silent_ones()
        self.note_deaths()
        ended = self.world.run(lambda: all(t.greenlet.dead for t in self.callers), 120.0)
        self.world.demand(
            ended, f"somebody never came back: {[t for t in self.callers if not t.greenlet.dead]}"
        )
        self.world.garbage.clear()

    def look_at_rest(self) -> None:
        world = self.world
        # a driver that hides its sockets is asked for a ping after a second
        world.run(lambda: False, 1.5)
        for pool in self.pools:
            caller = world.start(lambda pool=pool: self.last_caller(pool), "last caller")
            world.demand(
                world.run(lambda caller=caller: caller.greenlet.dead, 8.0),
                "all is well, and nobody gets a connection",
            )
        world.demand(
            world.run(self.is_whole, 45.0),
            f"it does not come to rest: {[self.rest(s) for s in self.states]}",
        )
        self.look_at_rows()

    def rest(self, state: PoolState) -> tuple[int, ...]:
        kernel = state.kernel
        missing = max(0, min(kernel.min_size, kernel.max_size) - kernel.size)
        busy = kernel.size - len(kernel.idle)
        return (
            len(kernel.in_use),
            len(kernel.resetting),
            len(kernel.waiting),
            kernel.opening,
            state.connectors,
            busy,
            missing,
        )

    def is_whole(self) -> bool:
        """At rest: nobody has anything, nobody waits, all that is open is idle, and the server
        knows of nothing else.
        """
        world = self.world
        ours = [
            s
            for fd, (s, _) in world.net.sessions.items()
            if s.open and self.process_of(fd) is world.process
        ]
        known, sees_all = (
            sum(s.kernel.size for s in self.states),
            all(p._driver.capabilities.fileno for p in self.pools),
        )
        return not any(any(self.rest(s)) for s in self.states) and (
            len(ours) == known or (len(ours) < known and not sees_all)
        )

    def process_of(self, fd: int) -> object:
        return self.world.net.processes[fd]

    def last_caller(self, pool: Pool) -> None:
        begun = self.world.steps
        try:
            with pool.connection(timeout=6.0) as conn:
                self.lent(pool, conn, begun)
        except Exception as error:
            raise self.world.violation(f"all is well, and a caller got {error!r}") from error

    def look_at_rows(self) -> None:
        stored = Counter(self.world.server.rows)
        for row, outcome in self.outcome.items():
            allowed = {"stored": (1,), "unknown": (0, 1), "refused": (0,)}[outcome]
            self.world.demand(
                stored[row] in allowed, f"row {row} was {outcome} and is there {stored[row]} times"
            )


def tell(seed: int) -> Story:
    """One story from beginning to end."""
    world = World(seed)
    gc.disable()  # a collection would come at another moment each time
    try:
        with installed(world):
            story = Story(world)
            story.tell()
            return story
    finally:
        gc.enable()


def tell_all(seeds: Iterable[int]) -> Counter[str]:
    """Many stories: what was seen in them."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        try:
            seen.update(tell(seed).seen)
        except BaseException as failure:
            failure.add_note(f"tell(seed={seed}) shows it again")
            raise
    return seen


def test_seeds_that_broke_a_promise_once_break_none_now() -> None:
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    tell_all(int(line.split()[0]) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_no_story_breaks_a_promise(first: int) -> None:
    seen = tell_all(range(first, first + 250))
    assert {
        "fork",
        "freeze",
        "cancelled",
        "OutageError",
        "PoolTimeoutError",
        "ConnectRejectedError",
    } <= set(seen), "too tame"


@pytest.mark.soak
@pytest.mark.timeout(24 * 3600)
def test_no_story_of_many_breaks_a_promise() -> None:
    tell_all(range(1000, 1_000_000))


def test_one_seed_tells_one_story() -> None:
    first, second = tell(7), tell(7)
    assert first.world.steps == second.world.steps
    assert first.outcome == second.outcome
    assert first.world.server.attempts == second.world.server.attempts


# -- the stories find what they are there to find --------------------------------------------------


def grant_without_taking(self: Kernel) -> list[Ticket]:
    granted = []
    while self.waiting and self.idle:
        mine = self.waiting.popleft()
        mine.entry = list(self.idle)[-1]
        granted.append(mine)
    return granted


def serve_nobody(self: Kernel, now: float = 0.0) -> tuple[list[Ticket], list[Entry]]:
    return [], self.take_stale()


def call_nobody(self: Kernel) -> list[Ticket]:
    return []


def release_looks_first(self: Pool, conn: Any) -> None:
    """It looks whether somebody waits, and puts the connection back afterwards: a wake-up is lost
    in between.
    """
    state = self._state
    entry = state.in_use.pop(conn.address, None)
    if (
        entry is None
        or entry.cause
        or not state.here[0]
        or entry.watched
        or not state.is_clean(conn, entry.traits)
    ):
        self._release_slowly(state, entry, conn)
        return
    is_awaited = bool(state.waiting) or entry.generation != state.kernel.generation
    entry.last_used = state.clock()  # a moment in which another thread may come
    entry.conn = conn
    state.idle.append(entry)
    if is_awaited:
        state.dispatch()


def find_fit_without_a_look(state: PoolState, entry: Entry, until: float) -> Flow[bool]:
    return True
    yield


def take_all_for_good(self: PoolState, entry: Entry, conn: Any) -> bool:
    """Nothing is rolled back, and nothing keeps a connection with an open transaction from going
    back.
    """
    return True


def tell_nobody(state: PoolState, exc: Exception, fault: Fault) -> None:
    with state.lock:
        state.counters.connect_failures += 1


def see_for_oneself(self: Outage, who: object) -> bool:
    return self.since is not None


def always_room(self: Outage, who: object, now: float, workers: int) -> int:
    return 1


def try_at_once(self: Outage, *_who: object, **_how: object) -> float | None:
    return 0.0


def guess(self: Loan, send: Call | None = None) -> Flow[None]:
    """A COMMIT without an answer is taken for one that failed."""
    yield Call("commit", self.conn)
    self.entry.sent, self.entry.settled_at = self.entry.count(), self.entry.uses


def do_nothing(self: Any) -> None:
    pass


def wait_for_no_answer(state: Any, entry: Entry, now: float) -> bool:
    return bool(entry.end_seen and state.pipelines)


#: The story that finds a bug, where many others do not or take long. It is told first.
QUICKEST = {release_looks_first: 244, try_at_once: 6, wait_for_no_answer: 55}


@pytest.mark.parametrize(
    ("where", "name", "planted", "found"),
    [
        (Kernel, "_grant", grant_without_taking, "two owners"),
        (Kernel, "serve", serve_nobody, "waits beside an idle connection"),
        (Kernel, "_call", call_nobody, "waits beside an idle connection"),
        (Pool, "release", release_looks_first, "waits beside an idle connection"),
        (PoolState, "is_good", take_all_for_good, "open transaction"),
        (connect_module, "_reject", tell_nobody, "not told at once|it spins"),
        (Outage, "ask", try_at_once, "after an attempt that ended|it spins|more probe"),
        (Outage, "checks", see_for_oneself, "more probe at the same time"),
        (Outage, "room", always_room, "more attempts at the same time|more probe"),
        (Loan, "commit", guess, "was refused and is there 1 times"),
        (answers, "is_soon", wait_for_no_answer, "whose answer is late"),
        (PoolState, "sever", do_nothing, "goodbye on, its parent's session"),
        (Kernel, "unreserve", do_nothing, "not come to rest|a caller got|nobody gets"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.timeout(900)  # thousands of stories: on a slow and busy machine that may take minutes
def test_the_stories_find_a_planted_bug(
    where: Any, name: str, planted: Any, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, planted)
    with pytest.raises(Violation, match=found):
        tell_all((QUICKEST.get(planted, 0), *range(10_000)))


def test_the_stories_find_an_acquire_that_never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquire_module, "_is_fit", find_fit_without_a_look)
    # either of the two is enough to find a death
    monkeypatch.setattr(PoolState, "close_hung_up", do_nothing)
    with pytest.raises(Violation, match=r"known dead was lent|a caller got|whose answer is late"):
        tell_all(range(500))
