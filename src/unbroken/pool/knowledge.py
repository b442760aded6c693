"""What one process (and, for asyncio, one event loop) knows of one pool.

The fields stand here once, with what can be told from them: of a connection in use, of the server,
in the words of messages. Nothing here changes who has a connection.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from unbroken.abc import BaseDriver, Connection, Fault, address
from unbroken.brain import stats
from unbroken.brain.entry import Entry
from unbroken.brain.health import Policy
from unbroken.brain.kernel import Kernel, Ticket
from unbroken.brain.line import Line
from unbroken.brain.refusals import Refusals
from unbroken.brain.tries import Try
from unbroken.drivers._login import Opener
from unbroken.errors import (
    E,
    NotYoursError,
    PoolClosedError,
    UnbrokenError,
    for_driver,
)
from unbroken.ledger.scope import testify
from unbroken.logs import Part
from unbroken.messages.pool import NOT_YOURS, POOL_CLOSED
from unbroken.messages.processes import AT_THE_END
from unbroken.net import liveness
from unbroken.net.ending import Guarded, NoThreadError
from unbroken.net.hangups import HangUps
from unbroken.pool import budget
from unbroken.pool.answers import has_traits, may_leave
from unbroken.pool.bounds import limits_of
from unbroken.pool.ending import no_connection, refuse_at_the_end
from unbroken.pool.names import names_of
from unbroken.pool.registry import every, registry
from unbroken.pool.rejections import verdict
from unbroken.pool.runtime import Runtime
from unbroken.pool.secrets import NO_SECRETS, Secrets
from unbroken.pool.servers import Server, server_of
from unbroken.pool.share import share_of
from unbroken.pool.steps import Flow
from unbroken.pool.undone import REMEDY
from unbroken.pool.wording import load, outage
from unbroken.settings import Settings

log = Part("pool")

#: Seconds for a driver that keeps the time to connect itself, and says better why it failed, before
#: it is ended from outside.
AT_THE_LIMIT = 0.1


class Start:
    """A worker that was ordered."""

    __slots__ = ("is_called_off",)

    def __init__(self) -> None:
        self.is_called_off = False


#: The drivers (each pool has one of its own) by which a connection was opened. A forked child knows
#: those of its parent.
_served: WeakSet[BaseDriver] = WeakSet()


class Knowledge(Guarded):
    """The fields of a pool in one process, and what can be told from them."""

    #: what to write so that work outside of any unit is run again
    remedy = REMEDY
    #: what a body keeps of a connection, if it is more than an Entry
    entry_kind: type[Entry] = Entry

    def __init__(
        self,
        driver: BaseDriver,
        settings: Settings,
        runtime: Runtime,
        name: str,
        emit: Callable[[str, Mapping[str, Any]], None],
        here: Any,
        connector: Callable[..., Flow[None]],
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        refuse_at_the_end(driver.target.label, driver.errors[0])
        self.here = here
        self.pid = os.getpid()
        self.driver = driver
        self.settings = settings
        self.runtime = runtime
        runtime.limits = limits_of(settings)
        self.name = name
        self.secrets = secrets
        self.emit = emit
        self.server: Server = server_of(driver, settings)
        self.hidden = self.server.hidden(driver.target.database)
        self._guard = runtime.new_lock()
        self.kernel = Kernel(settings.max_size, settings.min_size)
        self.line = Line()
        self.share = share_of(driver, settings, self.kernel)
        #: for the hot paths
        self.idle, self.in_use, self.waiting = (
            self.kernel.idle,
            self.kernel.in_use,
            self.kernel.waiting,
        )
        self.sockets = HangUps()
        #: ``hung_up()`` is false: no connection of this pool is known dead
        self.hung_up = self.sockets.look
        #: of the last tick: near enough to note when a connection was used last
        self.now = time.monotonic()
        self.counters = stats.Counters()
        self.random = Random()
        self.clock = time.monotonic
        self.connector = connector  #: the flow that opens connections
        self.at_work = 0  #: how many of them have begun and not ended
        self.ordered: set[Start] = set()  #: those that were ordered and have not begun
        self.tries: dict[Try, Any] = {}  #: their attempts under way, and what can end each of these
        self.no_thread: NoThreadError | None = (
            None  #: why no worker could be started: callers connect by themselves
        )
        self.stuck = 0  #: workers that are given up: their attempts still block, and count no more
        self.refusals = Refusals()  #: of logins, where they are asked for
        #: when an attempt is ended from outside
        self.connect_limit = settings.connect_timeout + AT_THE_LIMIT
        self.oversight: Any = None  #: the timer for the next look at these
        self.oversee: Callable[[Any], None] = (
            _look_away  #: has that look not be later than it must be
        )
        #: it was not let in while others were: what it meets is its own
        self.is_apart = False
        #: what was last heard from something else than a server of this kind, and when it was asked
        self.stranger: tuple[Fault | None, float] = (None, -math.inf)
        self.scouting = False  #: whether one looks for another host: see :mod:`.scouting`
        self.next_scout = 0.0  #: when the place may be looked at again
        self.prober_wakeup: Any = None  #: the sleeping prober's signal
        self.rejected_at = -math.inf  #: when the server last said no: see :meth:`wants`
        #: finalizers append here; they must not take the lock
        self.forgotten: deque[Entry] = deque()
        #: since when: see :mod:`unbroken.pool.windows`
        self.borne: WeakKeyDictionary[Entry, float] = WeakKeyDictionary()
        self.suspects: dict[tuple[Entry, int], float] = {}  #: strays, and since when they are one
        self.next_look, self.next_wide_look = 0.0, 0.0  #: when to look for those again
        self.unseen: set[tuple[Entry, int]] = set()  #: uses that nobody was seen to be inside of
        #: Of flows that wait for an entry, were granted one and do not have it yet, or own one
        #: while they wait for the server. Weak: a ticket goes with its flow, wherever an exception
        #: strikes.
        self.tickets: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self.next_look_around = 0.0  #: when a caller in line looks around again
        self.last_collect = 0.0
        self.collect_took = (
            0.1  #: seconds; a caller with less time left than twice that does not collect
        )
        self.collect_cost = 0.0  #: seconds of the processor's that it took
        self.upkeep_timer: Any = None
        self.upkeep_running = False
        self.follows = settings.reset == "session"  #: what a use leaves on its session is followed
        #: a lease need not begin a transaction itself
        self.plain = driver.capabilities.implicit_begin
        self.is_clean = self._end_check()
        self.look_at_answers()
        self.heard_goodbye: Callable[[Connection], bool] = getattr(driver, "has_ended", _not_known)
        self.is_tcp = driver.target.unix_socket is None
        #: whose addresses are followed
        self.names = names_of(driver.target) if settings.follow_dns else ()
        self.decide_policy()
        with self.server.lock:
            # last: from now on other pools' threads come here with news
            self.server.pools.add(self)
        registry.add(self)

    def look_at_answers(self) -> None:
        """What the driver can leave for later."""
        driver = self.driver
        #: whether a COMMIT or ROLLBACK can be sent now and its answer read later
        self.defers = hasattr(driver, "send_end")
        #: … and how much was written does not count: PostgreSQL undoes nothing, it forgets
        self.undoes_at_once = getattr(
            driver, "undoes_at_once", driver.target.backend == "postgresql"
        )
        #: … as far as it is known what the answer says
        self.may_leave = may_leave(driver)
        #: … as long as all else is as it was opened
        self.has_traits = has_traits(driver)
        #: … and is that of a session on which nothing ran that may have changed what it will be
        self.ran_code: Callable[[Connection], bool] = getattr(driver, "ran_code", _not_known)
        #: … and a statement be sent before that answer has come
        self.pipelines = getattr(driver, "pipelines", False)
        #: … once that was tried with what answers at the server's address
        self.tries_flights = hasattr(driver, "let_fly")

    def _end_check(self) -> Callable[[Connection, Any], bool]:
        """What to ask of a connection when it comes back: True means nothing has to be done."""
        return _never if callable(self.settings.reset) or self.follows else self.driver.is_clean

    def follow_sessions(self, wanted: bool) -> None:
        """Whether what a use leaves on its session is followed here; else the body does it."""
        self.follows = wanted
        self.is_clean = self._end_check()

    def decide_policy(self) -> None:
        """Fill in the automatic settings with what is known of the server by now."""
        limit = self.server.limit.limit
        self.policy = Policy.decide(
            self.settings, self.driver.capabilities, is_tcp=self.is_tcp, idle_limit=limit
        )
        self.fresh_for = self.policy.fresh_for

    def forgot_limit(self) -> None:
        """A learned idle limit was outlived, or is too old to be believed."""
        log.info(
            "idle limit forgotten",
            f"{self.name}: the learned idle limit is forgotten: it does not hold, or is old",
            pool=self.name,
        )
        self.limit_changed()

    def limit_changed(self) -> None:
        """The server's idle limit was told or learned, or taken back: that concerns all its
        pools.
        """
        with self.server.lock:
            pools = every(self.server.pools)
        for pool in pools:
            pool.decide_policy()

    # -- of a connection in use --------------------------------------------------------------------

    @property
    def knows_status(self) -> bool:
        """Whether the driver's own word on a connection counts.

        Where it does not, the kernel's count of bytes does.
        """
        return self.driver.capabilities.transaction_status and self.driver.blindness is None

    def is_settled(self, entry: Entry, conn: Connection) -> bool:
        """Whether it is certain, without a round trip, that no transaction is open.

        Either the driver knows, or nothing has been sent since it was certain last.
        """
        status = self.driver.is_in_transaction(conn)
        return status is False if status is not None else self._is_untouched(entry)

    def is_due(self, entry: Entry, conn: Connection) -> bool:
        """Whether the answer to the COMMIT or ROLLBACK that the pool sent is still to be read."""
        if entry.due is not None and not self.driver.owes_answer(conn):  # type: ignore[attr-defined] # the driver that sent it has it
            entry.due = None  # it was read with the answer to the next statement
        return entry.due is not None

    def is_in_step(self, entry: Entry, conn: Connection) -> bool:
        """Whether it is certain that every answer was read: a statement sent now gets its own."""
        return self.driver.is_quiet(conn) or (not self.knows_status and self._is_untouched(entry))

    def is_streaming(self, conn: Connection) -> bool:
        """Whether nothing but a result that the application left half read is missing, and the
        driver can read the rest.
        """
        ask = getattr(self.driver, "is_streaming", None)
        return ask is not None and bool(ask(conn))

    def is_good(self, entry: Entry, conn: Connection) -> bool:
        """Whether *conn* is known to be fit for the next user just as it is."""
        driver = self.driver
        if self.settings.reset is None:
            return self.is_in_step(entry, conn)
        if driver.is_clean(conn, entry.traits):
            return True
        if self.knows_status or driver.traits(conn) != entry.traits:
            return False
        return self._is_untouched(entry) or (
            driver.is_quiet(conn) and entry.settled_at == entry.uses
        )

    def note_settled(self, entry: Entry, conn: Connection) -> None:
        """Our own COMMIT, ROLLBACK or reset on *conn* was answered.

        A driver whose insides are not known may have read another answer instead. Its connection
        serves nobody after its holder.
        """
        driver = self.driver
        if driver.blindness is None or driver.is_quiet(conn):
            entry.sent, entry.settled_at = entry.count(), entry.uses

    def _is_untouched(self, entry: Entry) -> bool:
        """Whether nothing was sent since the connection was known to be well: the kernel counts."""
        return entry.sent is not None and entry.count() == entry.sent

    def has_ended(self, entry: Entry) -> bool:
        """Whether the other side is known to have ended a quiet *entry*: hung up, or said something
        unasked.
        """
        looks = liveness.judge(entry.poll(0))
        return (
            entry.cause is not None
            or looks is liveness.Liveness.DEAD
            # else it may be the answer that is due
            or (looks is liveness.Liveness.UNDECIDED and entry.due is None)
        )

    # -- of the server -----------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``."""
        return self.driver.target.backend

    @property
    def asks_login(self) -> bool:
        """Whether another attempt may have another login: then a refusal is not final at once."""
        return self.secrets.are_asked or self.driver.login_may_change

    @property
    def may_hide_writes(self) -> bool:
        """Whether a SELECT may store something here, as far as the server said."""
        return self.backend != "sqlite" and self.hidden.answer != ""

    def looked(self) -> None:
        """A SELECT was committed that may have stored something: what the server says of that
        should be kept new.
        """
        self.hidden.wanted = True

    def meaning(self, exc: BaseException) -> Fault | None:
        """What *exc* means if it is the driver's own, else None."""
        return (
            self.classify(exc)
            if isinstance(exc, self.driver.errors) and not isinstance(exc, UnbrokenError)
            else None
        )

    def classify(self, exc: BaseException) -> Fault:
        """What the driver (or the system) means by *exc*."""
        return self.driver.classify(exc)

    def stats(self) -> stats.Stats:
        """The numbers of this moment."""
        with self.lock, self.server.lock:
            return stats.snapshot(
                self.kernel,
                self.counters,
                self.server.outage,
                self.server.limit,
                self.clock(),
                name=self.name,
                target=self.driver.target,
                pid=self.pid,
                replays_left=budget.left(self),
                share=None if self.share is None else self.share.seen(),
            )

    # -- in words ----------------------------------------------------------------------------------

    def where(self, entry: Entry) -> str:
        """The host that *entry* goes to and the database, for messages about one connection."""
        target = self.driver.target
        if entry.address is None:
            return target.label
        host = address(*entry.address)
        return f"{host}/{target.database}" if target.database else host

    def error(self, kind: type[E], message: str, **attributes: Any) -> E:
        """One of our errors that the callers of this driver catch too."""
        error = for_driver(kind, self.driver.errors[0], message, **attributes)
        testify(error)
        return error

    def closed_error(self) -> PoolClosedError:
        """What an acquire from a closed pool gets."""
        return self.error(
            PoolClosedError,
            POOL_CLOSED(f"pool {self.name} is closed; make a new one to connect again"),
        )

    def not_lent_error(self) -> NotYoursError:
        """What a release of a connection gets that this pool does not know as lent."""
        return NotYoursError(
            NOT_YOURS(
                f"pool {self.name} has not given out this connection, or it was released before;"
                " release each connection once, to the pool that it came from"
            )
        )

    def ending_error(self, why: object) -> PoolClosedError:
        """What an acquire gets when the interpreter is shutting down, for the reason *why*."""
        return self.error(PoolClosedError, AT_THE_END(no_connection(self.driver.target.label, why)))

    @property
    def is_opened_outside(self) -> bool:
        """Whether the application's own code opens the connections: what it reads is not known."""
        connect = getattr(self.driver, "_connect", None)
        return connect is not None and not isinstance(connect, Opener)

    @property
    def has_served(self) -> bool:
        """Whether a connection has come about, here, before a fork or on another event loop: the
        settings are right.
        """
        return self.counters.opened > 0 or self.driver in _served

    def count_opened(self) -> None:
        """Count a connection that was opened."""
        self.counters.opened += 1
        self.counters.most = max(self.counters.most, self.kernel.size)
        with suppress(TypeError):  # of somebody's own driver that has no room for it
            _served.add(self.driver)

    def rejection(self, exc: Exception, fault: Fault) -> BaseException:
        """What each caller in the line gets when the server (or its driver) rejects a connect with
        *exc*.
        """
        what = f"cannot connect to {self.driver.target.label}"
        told = self.error(*verdict(exc, fault, what, is_opened_outside=self.is_opened_outside))
        told.__cause__ = exc.__cause__ if hasattr(exc, "fault") else exc
        return told

    def describe_load(self) -> str:
        """``in use 10, idle 0, waiting 14`` for messages."""
        return load(self)

    def describe_outage(self, now: float) -> str:
        """``the server has been away for 7.2 s: [Errno 111] Connection refused``, or nothing."""
        return outage(self, now)


def _not_known(_conn: Connection) -> bool:
    return False


def _never(_conn: Connection, _traits: Any) -> bool:
    return False


def _look_away(_state: Any) -> None:
    pass
