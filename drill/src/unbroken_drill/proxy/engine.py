"""The thread of a proxy: one selector loop over all its sockets, its timers, and the requests of
other threads.
"""

from __future__ import annotations

import heapq
import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any, TypeVar

from unbroken_drill.messages import PROXY_CANNOT_LISTEN, PROXY_STATE
from unbroken_drill.proxy.addresses import Address
from unbroken_drill.proxy.cuts import Cut, Reader
from unbroken_drill.proxy.errors import ProxyError
from unbroken_drill.proxy.gate import Gate
from unbroken_drill.proxy.plan import UNTOUCHED, Change, Conduct, Scope, Standing
from unbroken_drill.proxy.precise import PreciseSelector
from unbroken_drill.proxy.records import ConnectionInfo, Log
from unbroken_drill.proxy.session import Session
from unbroken_drill.proxy.silence import find, lose
from unbroken_drill.proxy.statement_tap import StatementTap

T = TypeVar("T")

#: The number of closed connections whose counts are kept.
REMEMBERED = 10_000
_LONGEST_NAP = 3600.0  # the system's calls do not accept every float
_PAUSE = 0.1  # after a connection that could not be accepted
_PATIENCE = 30.0  #: seconds for another thread's request: it takes well under a millisecond

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Every object with a socket belongs to this one thread; :meth:`call` runs a function
    there.
    """

    def __init__(
        self, upstream: Address, listen: Address, seed: int, reader: Callable[[], Reader] | None
    ) -> None:
        self.log = Log()
        self.cuts: list[Cut] = []
        self.links: dict[int, Session] = {}
        self.standing = Standing()
        self.count = 0  # accepted so far
        self.failing = 0  # number of new connections that must fail
        self._past: deque[ConnectionInfo] = deque(maxlen=REMEMBERED)
        self._past_trips = 0
        self._seed, self._new_reader = seed, reader
        self._servers = upstream.resolve()
        self.gate = Gate(listen)
        self._selector = PreciseSelector()
        self._bell, self._ringer = socket.socketpair()
        for sock in (self._bell, self._ringer):
            sock.setblocking(False)
        self._asked: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None], Session | None]] = []
        self._order = count()
        self._owner = os.getpid()
        self._running, self._has_ended = True, False
        self._gate_is_watched = False
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._watch_gate(True)
        self._thread = threading.Thread(
            target=self._run, name=f"fault proxy {self.gate.address}", daemon=True
        )
        _engines.add(self)
        self.log.add(
            "listening", None, f"on {self.gate.address}, in front of {upstream}, seed {seed}"
        )
        self._thread.start()

    # ---- for other threads

    def call(self, work: Callable[[], T]) -> T:
        """Run *work* in the engine's thread and return its result. Raises ProxyError if closed."""
        if threading.current_thread() is self._thread:
            return work()
        if os.getpid() != self._owner:
            raise ProxyError(
                PROXY_STATE(
                    f"this proxy runs in process {self._owner}, not in its forked child"
                    f" {os.getpid()}; call it in that process"
                )
            )
        future: Future[T] = Future()
        self._asked.append((future, work))
        self._ring()
        # This is read after the append, and set before the last look at the requests: one of the
        # two threads sees the other's change.
        if self._has_ended:
            self._refuse_what_is_asked()
        return future.result(_PATIENCE)

    @property
    def is_running(self) -> bool:
        """Whether it still accepts requests."""
        return self._running and os.getpid() == self._owner

    def close(self) -> None:
        """End every connection, stop listening, end the thread. A second call does nothing."""
        if os.getpid() != self._owner:
            return
        if self._running:
            self._running = False
            self._ring()
        self._thread.join(_PATIENCE)

    def _ring(self) -> None:
        try:
            self._ringer.send(b"!")
        except OSError:
            pass  # enough wake-ups are pending, or it is closed

    # ---- services for the links (see session.House)

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()

    def at(self, when: float, work: Callable[[], None], link: Session | None = None) -> None:
        """Run *work* at *when*, unless *link* is closed."""
        if len(self._timers) > 1000 + 8 * len(self.links):
            # most timers belong to closed links: remove these
            self._timers = [
                each for each in self._timers if each[3] is None or each[3].closed is None
            ]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (when, next(self._order), work, link))

    def watch(self, sock: socket.socket, mask: int, link: Session) -> None:
        """Call *link* when *sock* is ready."""
        if sock in self._selector.get_map():
            if mask:
                self._selector.modify(sock, mask, link)
            else:
                self._selector.unregister(sock)
        elif mask:
            self._selector.register(sock, mask, link)

    def connect(self, attempt: int) -> socket.socket | None:
        """Return a socket that is connecting to the server's *attempt*-th address; None: there are
        no more addresses.
        """
        if attempt >= len(self._servers):
            return None
        family, name = self._servers[attempt]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(name)
        except BlockingIOError:
            pass
        except OSError as error:
            sock.close()
            raise OSError(f"the server: {error}") from None
        return sock

    def ended(self, link: Session) -> None:
        """Remove *link*, which is closed: only its counts stay."""
        if self.links.pop(link.n, None) is not None:
            if len(self._past) == REMEMBERED:
                self._past_trips += self._past[0].round_trips
            self._past.append(link.info())

    # ---- a proxy's requests, by call()

    def change(self, on: Scope, change: Change, name: str, text: str) -> None:
        """Apply *change* to the selected connections."""
        self.expect(on)
        self.log.add(
            name,
            None,
            f"on {on if isinstance(on, str) else f'connection {on}'}{': ' if text else ''}{text}",
        )
        self.standing.add(on, change)
        for link in self._meant(on):
            link.obey(change(link.conduct))

    def expect(self, on: Scope) -> None:
        """Raise ProxyError if *on* is a connection that has ended."""
        if isinstance(on, int) and on <= self.count and on not in self.links:
            raise ProxyError(
                PROXY_STATE(
                    f"connection {on} is already closed; open connections:"
                    f" {', '.join(map(str, self.links)) or 'none'}"
                )
            )

    def heal(self, on: Scope) -> None:
        """End every fault of the selected connections."""
        self.log.add("healed", None, "" if on == "all" else f"on {on}")
        if on in ("all", "new"):
            self.standing.clear()
            self.cuts.clear()
            self.failing = 0
            self.open_gate()
            find(self.gate.sock)
        elif isinstance(on, int):
            self.standing.add(on, _untouched)
        for link in self._meant(on):
            link.heal()

    def lose_connects(self, on: Scope) -> None:
        """Discard the packets of future connects, if *on* selects them.

        Raises ProxyError if the system does not support it.
        """
        if on in ("all", "new"):
            lose(self.gate.sock)

    def _meant(self, on: Scope) -> list[Session]:
        """Return the existing connections that *on* selects."""
        if isinstance(on, int):
            return [self.links[on]] if on in self.links else []
        return [] if on == "new" else list(self.links.values())

    def open_gate(self) -> None:
        """Accept connections again."""
        self._regate(self.gate.reopen)

    def refuse(self) -> None:
        """Refuse connects."""
        self.log.add("refuse")
        self._regate(self.gate.refuse)

    def hang_connect(self) -> None:
        """Let connects hang."""
        self.log.add("hang connect")
        self._regate(self.gate.hang)

    def _regate(self, change: Callable[[], None]) -> None:
        self._watch_gate(False)
        try:
            change()
        except OSError as error:
            raise ProxyError(
                PROXY_CANNOT_LISTEN(f"cannot listen on {self.gate.address} again: {error}")
            ) from None
        finally:
            self._watch_gate(self.gate.is_open)

    def _watch_gate(self, wanted: bool) -> None:
        if wanted != self._gate_is_watched:
            if wanted:
                self._selector.register(self.gate.sock, selectors.EVENT_READ)
            else:
                self._selector.unregister(self.gate.sock)
            self._gate_is_watched = wanted

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Return all known connections, in order."""
        return tuple(
            sorted(
                (*self._past, *(link.info() for link in self.links.values())),
                key=lambda info: info.n,
            )
        )

    def round_trips(self) -> int:
        """Return the round trips of all connections so far."""
        past = sum(info.round_trips for info in self._past)
        return self._past_trips + past + sum(link.round_trips for link in self.links.values())

    # ---- the loop

    def _run(self) -> None:
        try:
            while self._running:
                for key, mask in self._selector.select(self._until_next()):
                    self._serve(key, mask)
                self._do_timers()
                self._do_asked()
        finally:
            self._end()

    def _until_next(self) -> float | None:
        if self._asked:
            return 0.0
        return (
            min(max(0.0, self._timers[0][0] - self.now()), _LONGEST_NAP) if self._timers else None
        )

    def _serve(self, key: selectors.SelectorKey, mask: int) -> None:
        link = key.data
        if isinstance(link, Session):
            sock: Any = key.fileobj
            self._guarded(link, lambda: link.handle(sock, mask))
        elif key.fileobj is self._bell:
            try:
                while self._bell.recv(4096):
                    pass
            except OSError:
                pass
        else:
            self._accept()

    def _guarded(self, link: Session, work: Callable[[], None]) -> None:
        """Run *work*: an error in it ends that connection, not the proxy."""
        try:
            work()
        except Exception as error:
            link.end("rst", f"the proxy failed: {type(error).__name__}: {error}", "failed")

    def _accept(self) -> None:
        for _ in range(64):
            try:
                found = self.gate.accept()
            except OSError as error:  # for example without free descriptors: it would fail again
                self.log.add("accept failed", None, str(error))
                self._watch_gate(False)
                self.at(self.now() + _PAUSE, lambda: self._watch_gate(self.gate.is_open))
                return
            if found is None:
                return
            self._welcome(*found)

    def _welcome(self, client: socket.socket, peer: str) -> None:
        self.count += 1
        n = self.count
        tap = StatementTap(n, self._new_reader()) if self._new_reader is not None else None
        link = Session(self, n, client, peer, Random(f"{self._seed}:{n}"), tap)
        self.links[n] = link
        self.log.add("accepted", n, f"from {peer}" if peer else "")
        conduct: Conduct = self.standing.conduct(n)
        if self.failing:
            self.failing -= 1
            conduct = replace(conduct, end="rst")
        self._guarded(link, lambda: link.obey(conduct))

    def _do_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            _, _, work, link = heapq.heappop(self._timers)
            if link is None:
                work()
            elif link.closed is None:
                self._guarded(link, work)

    def _do_asked(self) -> None:
        while self._asked:
            future, work = self._asked.popleft()
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def _refuse_what_is_asked(self) -> None:
        while self._asked:
            try:
                future, _ = self._asked.popleft()
            except IndexError:
                return
            future.set_exception(
                ProxyError(
                    PROXY_STATE(f"the proxy on {self.gate.address} is closed; create a new one")
                )
            )

    def _end(self) -> None:
        self._running = False
        for link in list(self.links.values()):
            link.end("fin", "the proxy was closed")
        self._selector.close()
        self.gate.close()
        self._bell.close()
        self._ringer.close()
        self.log.add("closed", None, "the proxy")
        self._has_ended = True
        self._refuse_what_is_asked()

    def abandon(self) -> None:
        """In a forked child: close everything inherited, without sending a byte."""
        self._running = False
        self.log.renew()
        for link in list(self.links.values()):
            link.abandon()
        self.gate.abandon()
        self._bell.close()
        self._ringer.close()
        self._selector.close()


def _untouched(_: Conduct) -> Conduct:
    return UNTOUCHED


def _abandon_all() -> None:
    for engine in list(_engines):
        try:
            engine.abandon()
        except Exception:
            pass


os.register_at_fork(after_in_child=_abandon_all)
