"""The state of one pool in one process (and, for asyncio, on one event loop).

This file defines the fields, and methods that derive facts from them: about a connection in use,
about the server, and for messages. Nothing here changes the owner of a connection.
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

#: Seconds for a driver that limits its connect itself, and reports the failure better, before the
#: pool ends the connect from outside.
AT_THE_LIMIT = 0.1


class Start:
    """A worker that was ordered."""

    __slots__ = ("is_called_off",)

    def __init__(self) -> None:
        self.is_called_off = False


#: The drivers (each pool has its own) that have opened a connection. A forked child also knows
#: those of its parent.
_served: WeakSet[BaseDriver] = WeakSet()


class Knowledge(Guarded):
    """The fields of a pool in one process, and the facts derived from them."""

    #: Advice for getting work outside of any unit run again.
    remedy = REMEDY
    #: The body's record of a connection, if it is more than an Entry.
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
        self.kernel = Kernel(settings.max_size, settings.min_size, runtime.patience)
        self.line = Line()
        self.share = share_of(driver, settings, self.kernel)
        #: Aliases for the hot paths.
        self.idle, self.in_use, self.waiting = (
            self.kernel.idle,
            self.kernel.in_use,
            self.kernel.waiting,
        )
        self.sockets = HangUps()
        #: If ``hung_up()`` is false, no connection of this pool is known to be dead.
        self.hung_up = self.sockets.look
        #: Time of the last tick: precise enough to record when a connection was last used.
        self.now = time.monotonic()
        self.counters = stats.Counters()
        self.random = Random()
        self.clock = time.monotonic
        self.connector = connector  #: the flow that opens connections
        self.at_work = 0  #: workers that have begun and not ended
        self.ordered: set[Start] = set()  #: workers that were ordered and have not begun
        self.tries: dict[Try, Any] = {}  #: attempts in progress, and the objects that can end them
        self.no_thread: NoThreadError | None = (
            None  #: why no worker could be started: callers connect by themselves
        )
        self.stuck = 0  #: given-up workers, whose attempts still block; they do not count
        self.refusals = Refusals()  #: of logins that are asked for at each attempt
        #: Seconds after which an attempt is ended from outside.
        self.connect_limit = settings.connect_timeout + AT_THE_LIMIT
        self.oversight: Any = None  #: the timer for the next check of the attempts
        self.oversee: Callable[[Any], None] = (
            _look_away  #: schedules that check no later than necessary
        )
        #: Whether this pool was rejected while others were accepted: its errors concern it alone.
        self.is_apart = False
        #: The last answer from something other than a server of this kind, and when it was asked.
        self.stranger: tuple[Fault | None, float] = (None, -math.inf)
        self.scouting = False  #: whether a search for another host runs: see :mod:`.scouting`
        self.next_scout = 0.0  #: when the place may be checked again
        self.prober_wakeup: Any = None  #: the sleeping prober's signal
        self.rejected_at = -math.inf  #: when the server last rejected us: see :meth:`wants`
        #: Finalizers append here; they must not take the lock.
        self.forgotten: deque[Entry] = deque()
        #: Start times: see :mod:`unbroken.pool.windows`.
        self.borne: WeakKeyDictionary[Entry, float] = WeakKeyDictionary()
        self.suspects: dict[tuple[Entry, int], float] = {}  #: strays, and since when
        self.next_look, self.next_wide_look = 0.0, 0.0  #: when to check for those again
        self.unseen: set[tuple[Entry, int]] = set()  #: uses that no stack was seen inside of
        #: The tickets of flows that wait for an entry, that were granted one and do not have it
        #: yet, or that own one while they wait for the server. Weak: a ticket disappears with its
        #: flow, wherever an exception strikes.
        self.tickets: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self.next_look_around = 0.0  #: when a waiting caller checks again
        self.last_collect = 0.0
        self.collect_took = (
            0.1  #: seconds; a caller with less than twice that left does not collect
        )
        self.collect_cost = 0.0  #: seconds of processor time that it took
        self.upkeep_timer: Any = None
        self.upkeep_running = False
        self.follows = settings.reset == "session"  #: whether session residue is tracked
        #: A lease does not need to begin a transaction itself.
        self.plain = driver.capabilities.implicit_begin
        self.is_clean = self._end_check()
        self.look_at_answers()
        self.heard_goodbye: Callable[[Connection], bool] = getattr(driver, "has_ended", _not_known)
        self.is_tcp = driver.target.unix_socket is None
        #: The host names whose addresses are followed.
        self.names = names_of(driver.target) if settings.follow_dns else ()
        self.decide_policy()
        with self.server.lock:
            # last: from now on other pools' threads call methods here
            self.server.pools.add(self)
        registry.add(self)

    def look_at_answers(self) -> None:
        """Determine the work that the driver can postpone."""
        driver = self.driver
        #: Whether a COMMIT or ROLLBACK can be sent now and its answer read later …
        self.defers = hasattr(driver, "send_end")
        #: … for any amount of writes: PostgreSQL does not undo writes, it ignores them …
        self.undoes_at_once = getattr(
            driver, "undoes_at_once", driver.target.backend == "postgresql"
        )
        #: … if the answer is known in advance …
        self.may_leave = may_leave(driver)
        #: … if everything else is as it was opened …
        self.has_traits = has_traits(driver)
        #: … if no code ran on the session that may have changed the answer …
        self.ran_code: Callable[[Connection], bool] = getattr(driver, "ran_code", _not_known)
        #: … and whether a statement can be sent before that answer has come …
        self.pipelines = getattr(driver, "pipelines", False)
        #: … once that was tested with the server at this address.
        self.tries_flights = hasattr(driver, "let_fly")

    def _end_check(self) -> Callable[[Connection, Any], bool]:
        """The check of a returned connection: True means that nothing has to be done."""
        return _never if callable(self.settings.reset) or self.follows else self.driver.is_clean

    def follow_sessions(self, wanted: bool) -> None:
        """*wanted*: track the residue of uses on sessions here. Otherwise the body does it."""
        self.follows = wanted
        self.is_clean = self._end_check()

    def decide_policy(self) -> None:
        """Resolve the automatic settings with the current knowledge about the server."""
        limit = self.server.limit.limit
        self.policy = Policy.decide(
            self.settings, self.driver.capabilities, is_tcp=self.is_tcp, idle_limit=limit
        )
        self.fresh_for = self.policy.fresh_for

    def forgot_limit(self) -> None:
        """A learned idle limit was outlived, or is too old to be trusted."""
        log.info(
            "idle limit forgotten",
            f"{self.name}: dropped the learned idle limit: a connection outlived it, or it is old",
            pool=self.name,
        )
        self.limit_changed()

    def limit_changed(self) -> None:
        """The server's idle limit was reported, learned or cancelled: update all its pools."""
        with self.server.lock:
            pools = every(self.server.pools)
        for pool in pools:
            pool.decide_policy()

    # -- facts about a connection in use -----------------------------------------------------------

    @property
    def knows_status(self) -> bool:
        """Whether the driver's own report on a connection is used.

        If not, the kernel's count of bytes is.
        """
        return self.driver.capabilities.transaction_status and self.driver.blindness is None

    def is_settled(self, entry: Entry, conn: Connection) -> bool:
        """Whether it is certain, without a round trip, that no transaction is open.

        Either the driver knows, or nothing was sent since that was last certain.
        """
        status = self.driver.is_in_transaction(conn)
        return status is False if status is not None else self._is_untouched(entry)

    def is_due(self, entry: Entry, conn: Connection) -> bool:
        """Whether the answer to the COMMIT or ROLLBACK that the pool sent is still unread."""
        if entry.due is not None and not self.driver.owes_answer(conn):  # type: ignore[attr-defined] # the driver that sent it has it
            entry.due = None  # it was read with the answer to the next statement
        return entry.due is not None

    def is_in_step(self, entry: Entry, conn: Connection) -> bool:
        """Whether all answers were certainly read: a statement that is sent now gets its own."""
        return self.driver.is_quiet(conn) or (not self.knows_status and self._is_untouched(entry))

    def is_streaming(self, conn: Connection) -> bool:
        """Whether only a result that the application left half read is missing, and the driver can
        read the rest.
        """
        ask = getattr(self.driver, "is_streaming", None)
        return ask is not None and bool(ask(conn))

    def is_good(self, entry: Entry, conn: Connection) -> bool:
        """Whether *conn* is known to be fit for the next user without any clean-up."""
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

        A driver with unknown internals may have read another answer instead. Its connection serves
        no caller after its holder.
        """
        driver = self.driver
        if driver.blindness is None or driver.is_quiet(conn):
            entry.sent, entry.settled_at = entry.count(), entry.uses

    def _is_untouched(self, entry: Entry) -> bool:
        """Whether the kernel counts no bytes sent since the connection was known to be good."""
        return entry.sent is not None and entry.count() == entry.sent

    def has_ended(self, entry: Entry) -> bool:
        """Whether the other side is known to have ended a quiet *entry*: it hung up, or sent an
        unsolicited message.
        """
        looks = liveness.judge(entry.poll(0))
        return (
            entry.cause is not None
            or looks is liveness.Liveness.DEAD
            # else it may be the answer that is due
            or (looks is liveness.Liveness.UNDECIDED and entry.due is None)
        )

    # -- facts about the server --------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``."""
        return self.driver.target.backend

    @property
    def asks_login(self) -> bool:
        """Whether another attempt may use another login: then a refusal is not yet final."""
        return self.secrets.are_asked or self.driver.login_may_change

    @property
    def may_hide_writes(self) -> bool:
        """Whether a SELECT may store something here, as far as the server reported."""
        return self.backend != "sqlite" and self.hidden.answer != ""

    def looked(self) -> None:
        """A SELECT was committed that may have stored something: the server's answer about that
        should be kept up to date.
        """
        self.hidden.wanted = True

    def meaning(self, exc: BaseException) -> Fault | None:
        """The meaning of *exc* if it is the driver's own, else None."""
        return (
            self.classify(exc)
            if isinstance(exc, self.driver.errors) and not isinstance(exc, UnbrokenError)
            else None
        )

    def classify(self, exc: BaseException) -> Fault:
        """The meaning of *exc*, by the driver or the system."""
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

    # -- texts -------------------------------------------------------------------------------------

    def where(self, entry: Entry) -> str:
        """The host and database of *entry*, for messages about one connection."""
        target = self.driver.target
        if entry.address is None:
            return target.label
        host = address(*entry.address)
        return f"{host}/{target.database}" if target.database else host

    def error(self, kind: type[E], message: str, **attributes: Any) -> E:
        """Make one of our errors that the callers of this driver catch too."""
        error = for_driver(kind, self.driver.errors[0], message, **attributes)
        testify(error)
        return error

    def closed_error(self) -> PoolClosedError:
        """The error for an acquire from a closed pool."""
        return self.error(
            PoolClosedError,
            POOL_CLOSED(f"pool {self.name} is closed; create a new pool to connect again"),
        )

    def not_lent_error(self) -> NotYoursError:
        """The error for releasing a connection that is not in use in this pool."""
        return NotYoursError(
            NOT_YOURS(
                f"this connection is not in use in pool {self.name}: it was already released, or"
                " belongs to another pool; release each connection once, to the pool that it came"
                " from"
            )
        )

    def ending_error(self, why: object) -> PoolClosedError:
        """The error for an acquire while the interpreter is shutting down, for the reason *why*."""
        return self.error(PoolClosedError, AT_THE_END(no_connection(self.driver.target.label, why)))

    @property
    def is_opened_outside(self) -> bool:
        """Whether the application's own code opens the connections: its input is unknown."""
        connect = getattr(self.driver, "_connect", None)
        return connect is not None and not isinstance(connect, Opener)

    @property
    def has_served(self) -> bool:
        """Whether a connection was ever opened here, before a fork or on another event loop: if so,
        the settings are right.
        """
        return self.counters.opened > 0 or self.driver in _served

    def count_opened(self) -> None:
        """Count a connection that was opened."""
        self.counters.opened += 1
        self.counters.most = max(self.counters.most, self.kernel.size)
        with suppress(TypeError):  # a foreign driver without room for a weak reference
            _served.add(self.driver)

    def rejection(self, exc: Exception, fault: Fault) -> BaseException:
        """The error for each caller in the line when the server (or its driver) rejects a connect
        with *exc*.
        """
        what = f"cannot connect to {self.driver.target.label}"
        told = self.error(*verdict(exc, fault, what, is_opened_outside=self.is_opened_outside))
        told.__cause__ = exc.__cause__ if hasattr(exc, "fault") else exc
        return told

    def describe_load(self) -> str:
        """The load, for messages: ``in use 10, idle 0, waiting 14``."""
        return load(self)

    def describe_outage(self, now: float) -> str:
        """The outage or "": ``the server has been down for 7.2 s: [Errno 111] Connection
        refused``.
        """
        return outage(self, now)


def _not_known(_conn: Connection) -> bool:
    return False


def _never(_conn: Connection, _traits: Any) -> bool:
    return False


def _look_away(_state: Any) -> None:
    pass
