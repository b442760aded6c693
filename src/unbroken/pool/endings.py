"""The end of connections: its causes, and its effects on other connections and on waiting
callers.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from unbroken.abc import Cause, Connection
from unbroken.backends import fault as faults
from unbroken.brain.entry import Entry
from unbroken.errors import NotYoursError
from unbroken.logs import Fields, Part
from unbroken.messages.pool import CONNECTION_ENDED
from unbroken.messages.processes import PARENTS_CONNECTION
from unbroken.messages.units import NOT_RUN_AGAIN
from unbroken.net import fork_guard, last_words, liveness, sent_bytes
from unbroken.pool.supply import Supply
from unbroken.pool.wording import connection, counted

log = Part("pool")

#: Seconds until the second check of a dead connection that had no owner at the first.
LOOK_AGAIN = 0.05
#: Seconds by which ``last_used`` may be too early, and a little more.
TICK = 1.2
#: Causes on the other side: worth a log line, and a check of the other connections.
THEIR_DOING = frozenset(
    {
        Cause.IDLE_LIMIT,
        Cause.KILLED,
        Cause.SHUTDOWN,
        Cause.CRASHED,
        Cause.FAILOVER,
        Cause.CANNOT_SERVE,
        Cause.TRANSACTION_LIMIT,
        Cause.CLOSED_BY_PEER,
        Cause.CONNECTION_RESET,
        Cause.SILENT_DROP,
        Cause.LOST,
    }
)


class Endings(Supply):
    """The handling of connections that have ended, or must end."""

    def discard(self, entry: Entry, cause: Cause, words: str = "") -> None:
        """End an entry that the caller owns (it is neither idle nor in use) and make room for
        another.
        """
        entry.condemn(cause, words)
        with self.lock:
            self.kernel.forget(entry)
        self.close_entry(entry)
        self.ensure_connecting()

    def close_entry(self, entry: Entry) -> None:
        """Close an entry that has left the kernel; count and log its cause."""
        if entry.fd is not None and fork_guard.identity(entry.fd) == entry.identity:
            # Otherwise its driver has closed it, and the number may belong to another connection by
            # now.
            self.sockets.forget(entry.fd)
            self.runtime.watcher.unwatch(entry.fd)
            if sent_bytes.has_unsent(entry.fd):
                # the goodbye would wait behind data that the server does not accept
                self.shutdown_socket(entry)
        if entry.conn is not None:
            self.driver.close(entry.conn)
        cause = entry.cause or Cause.DISCARDED
        with self.lock:
            self.counters.closed[cause.value] += 1
            self.counters.retire(entry)
        self._log_end(entry, cause)
        self.emit(
            "closed",
            {
                "pool": self.name,
                "cause": cause.value,
                "session": entry.session,
                "words": entry.words,
            },
        )
        entry.conn = entry.anchor = entry.ref = None
        if self.share is not None and self.kernel.closed:
            self.share.end(self)

    def tell_lost(self, entry: Entry, ending: Any) -> None:
        """Log that work was lost with *entry*, which is closed already."""
        entry.ending = ending
        self._log_end(entry, entry.cause or Cause.LOST)

    def _log_end(self, entry: Entry, cause: Cause) -> None:
        """Log each end at DEBUG. Ends caused by the other side are also logged at INFO, or at
        WARNING if they ended a caller's work.
        """
        ending = entry.ending if cause in THEIR_DOING else None
        is_noticed = ending is not None and ending.note is not None
        level = logging.WARNING if is_noticed else logging.INFO
        if not log.wants(level if cause in THEIR_DOING else logging.DEBUG):
            return
        now, said = self.clock(), f': "{entry.words}"' if entry.words else ""
        age, idle = now - entry.born, now - entry.last_used
        text = f"{self.name}: {connection(entry.session)} ended: {cause.value}{said}"
        fields: Fields = {
            "pool": self.name, "server": self.driver.target.server, "cause": cause.value,
            "session": entry.session, "age": age, "idle": idle, "uses": entry.uses,
        }  # fmt: skip
        log.debug(
            "closed", f"{text} (after {age:.1f} s and {counted(entry.uses, 'use')})", **fields
        )
        if cause not in THEIR_DOING:
            return
        text = f"{text}, {age:.1f} s old"
        if ending is None:
            text = f"{text}, idle for {idle:.1f} s"
            log.info("connection ended", CONNECTION_ENDED(text), about="idle", **fields)
            return
        fields["idle"] = idle = min(age, max(0.0, entry.taken_at - entry.last_used))
        fields["function"], fields["request"] = ending.function, ending.request
        fields["place"] = place = None if entry.place is None else str(entry.place)
        text = f"{text}, idle for {idle:.1f} s before this use"
        if ending.note is None:
            by = ending.who or place
            text = f"{text} by {by}" if by else text
            log.info("connection ended", CONNECTION_ENDED(text), about=place, **fields)
        else:
            log.warning("work lost", NOT_RUN_AGAIN(f"{text}: {ending.note}"), about=place, **fields)

    def discard_dead(self, entry: Entry) -> None:
        """End an entry that was found dead while idle, and check all other idle ones
        immediately.
        """
        cause, words = self.explain(entry)
        self.discard(entry, cause, words)
        self.sweep()

    def sweep(self) -> int:
        """Check every idle socket in one poll and close the dead ones. Return their number."""
        by_fd = {e.fd: e for e in self.kernel.all_idle() if e.fd is not None}
        if not by_fd:
            return 0
        dead = [
            by_fd[fd]
            for fd, look in liveness.sweep(by_fd).items()
            if look is liveness.Liveness.DEAD
        ]
        return self._evict(dead, self.explain)

    def drop_silent(self, idle: float) -> int:
        """A connection that was idle for *idle* seconds does not answer. Drop those that were idle
        as long, or that need a ping.

        A NAT or balancer that dropped one has dropped the others too, and a caller must not wait
        for a timeout of each.
        """
        since = self.clock() - min(idle, self.fresh_for)
        return self._evict(
            [e for e in self.kernel.all_idle() if e.last_used <= since],
            lambda _: (Cause.SILENT_DROP, ""),
        )

    def drop_unanswered(self, since: float) -> int:
        """A statement that was sent at *since* on a returned connection got no answer in time. Drop
        the idle ones that have been due for as long, and have no answer either.
        """
        owing = {
            e.fd: e
            for e in self.kernel.all_idle()
            if e.fd is not None and e.due is not None and e.due <= since
        }
        answered = liveness.sweep(owing) if owing else {}
        read: Any = getattr(self.driver, "unread", None)  # by an event loop, meanwhile
        return self._evict(
            [
                entry
                for fd, entry in owing.items()
                if fd not in answered and not (read is not None and read(entry.conn))
            ],
            lambda _: (Cause.SILENT_DROP, ""),
        )

    def _evict(self, entries: list[Entry], why: Callable[[Entry], tuple[Cause, str]]) -> int:
        with self.lock:
            taken = self.kernel.take(entries)
        for entry in taken:
            entry.condemn(*why(entry))
            self.close_entry(entry)
        if taken:
            self.ensure_connecting()
        return len(taken)

    def close_hung_up(self) -> None:
        """A check saw a hang-up among all connections: find out which one it was, and handle it."""
        with self.lock:
            dead = self.sockets.dead()
            owners = {e.fd: e for e in list(self.kernel.entries.values())}
            # A descriptor without an owner may be a connection that is being opened and becomes
            # idle soon: keep checking it.
            leftovers = [] if self.kernel.opening else [fd for fd in dead if fd not in owners]
            for fd in leftovers:
                self.sockets.forget(fd)
        for fd in dead:
            if fd in owners:
                self.ended(owners[fd])
        if not dead and self.hung_up():
            self.sockets.renew()
            self.hung_up = self.sockets.look

    def explain(self, entry: Entry, *, in_use: bool = False) -> tuple[Cause, str]:
        """The cause by which the other side ended *entry*: from its last words, or from its idle
        time. An end without a message is recorded, so that a limit can be learned from it.

        *in_use*: a caller had it, but may have left it idle as well.
        """
        if entry.cause is not None:
            return entry.cause, entry.words
        backend = self.driver.target.backend
        words = self.last_words(entry, entry.conn)
        now = self.clock()
        idle = sent_bytes.quiet_for(entry.fd) if in_use and entry.fd is not None else None
        if not in_use:
            idle = self.idle_for(entry, now)
        with self.server.lock:
            limit = self.server.limit
            if words is not None:
                cause = faults.cause_of_words(words.code, words.text, backend)
                if cause is not Cause.IDLE_LIMIT:
                    limit.broke(now)
                return cause, f"{words.code} {words.text}"
            explained = idle is not None and limit.explains(idle)
            if not in_use and idle is not None:
                limit.died(now, idle, entry.born, entry.address)
            elif not explained:
                limit.broke(now)
        return (Cause.IDLE_LIMIT if explained else Cause.CLOSED_BY_PEER), ""

    def idle_for(self, entry: Entry, now: float) -> float:
        """How long *entry* has been idle. ``last_used`` is as old as the last tick. The kernel's
        value is better, unless a TLS goodbye was the last data that came.
        """
        noted = now - entry.last_used
        quiet = sent_bytes.quiet_for(entry.fd) if entry.fd is not None else None
        if quiet is not None and noted - TICK <= quiet <= noted + 0.1:
            return quiet
        return noted

    def last_words(
        self, entry: Entry, conn: Connection | None, *, arrived: bool = True
    ) -> last_words.Words | None:
        """The server's unsolicited message on *entry*'s connection. *arrived*: there may be data on
        its socket.
        """
        backend = self.driver.target.backend
        words = last_words.peek(entry.fd, backend) if arrived and entry.fd is not None else None
        if (
            words is None
            and conn is not None
            and (unread := getattr(self.driver, "unread", None)) is not None
        ):
            # an event loop reads the socket immediately
            words = last_words.parse(unread(conn), backend)
        return words

    def ended(self, entry: Entry) -> None:
        """The watcher detected that the other side ended *entry*. Evict it if it is idle; otherwise
        wake its holder immediately.
        """
        if self._evict([entry], self.explain):
            return
        if self.kernel.is_out(entry):
            entry.condemn(*self.explain(entry, in_use=True))
            if self._evict([entry], self.explain):
                return  # it was returned before it was condemned
            # Otherwise the socket stays in CLOSE_WAIT while its holder computes.
            self.shutdown_socket(entry)
            if entry.fd is not None and self.kernel.is_out(entry):
                # If it is returned from here on, its cause is seen, so no other caller gets it. It
                # must not hide the hang-up of another connection. If it were removed earlier, it
                # could become idle in between and would never be checked again.
                self.sockets.forget(entry.fd)
        elif entry.cause is None:
            # Between two owners, or owned by a worker: soon it is idle or in use.
            this, state = weakref.ref(entry), weakref.ref(self)
            self.runtime.watcher.at(self.clock() + LOOK_AGAIN, lambda: on_end(state, this))

    def shutdown_socket(self, entry: Entry) -> None:
        """Shut an entry's socket down, even while it is in use. Never closes it."""
        if entry.fd is not None and entry.identity is not None:
            fork_guard.abort(entry.fd, entry.identity)

    def abort(self, entry: Entry, uses: int, cause: Cause) -> bool:
        """End use number *uses* of an entry from outside. Return False if that use is over
        already.
        """
        if entry.uses != uses or not self.kernel.is_out(entry):
            return False
        before = entry.generation
        entry.condemn(cause)
        if entry.uses != uses or not self.kernel.is_out(entry):
            if entry.cause is cause and entry.uses == uses:
                # it was returned in between and no caller has it
                entry.generation, entry.cause = before, None
            return False
        self.shutdown_socket(entry)
        return True

    def sever(self) -> None:
        """In a forked child: replace every inherited descriptor with a dead socket. Takes no lock,
        because a lock may be held for ever.

        A driver that hides its descriptors has a method ``abandon`` for that (see
        :class:`unbroken.abc.Capabilities`).
        """
        if self.share is not None:
            self.share.leave_behind()
        abandon = getattr(self.driver, "abandon", None)
        for entry in (
            *self.kernel.entries.values(),
            *self.kernel.reclaimed.values(),
            *self.forgotten,
        ):
            if entry.fd is not None and entry.identity is not None:
                fork_guard.sever(entry.fd, entry.identity)
            elif abandon is not None:
                conn = entry.conn if entry.conn is not None or entry.ref is None else entry.ref()
                if conn is not None:
                    abandon(conn)

    def left_in_child(self, exc: BaseException | None) -> None:
        """A use that began before the fork ends in the child, with *exc* if it failed: nothing may
        be sent. Raises NotYoursError unless *exc* is raised.
        """
        self.sever()
        if exc is None:
            raise NotYoursError(
                PARENTS_CONNECTION(
                    f"this connection of pool {self.name} belongs to the parent process; acquire"
                    " a new one after the fork"
                )
            )


def on_end(state_ref: Callable[[], Endings | None], entry_ref: Callable[[], Entry | None]) -> None:
    """The watcher detected that the other side ended a connection: see :meth:`Endings.ended`."""
    state, entry = state_ref(), entry_ref()
    if state is not None and entry is not None:
        state.ended(entry)
