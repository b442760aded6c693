"""One connection through the proxy: two sockets, two lanes, and their faults.

It belongs to the engine's thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from selectors import EVENT_READ, EVENT_WRITE
from typing import Protocol

from unbroken_drill.proxy.cuts import Cut
from unbroken_drill.proxy.direction import Direction
from unbroken_drill.proxy.plan import UNTOUCHED, Conduct, Cutoff, How
from unbroken_drill.proxy.records import ConnectionInfo, Log
from unbroken_drill.proxy.silence import find, lose
from unbroken_drill.proxy.statement_tap import StatementTap

_CHUNK = 64 * 1024
_CAUGHT_UP = 64  #: how many of them are read at once; a client may send all the time
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, on, 0 s: close() sends a RST


class House(Protocol):
    """The engine's services for a link."""

    log: Log
    cuts: list[Cut]

    def now(self) -> float:
        """Return the engine's time, in seconds."""

    def at(self, when: float, work: Callable[[], None], link: Session) -> None:
        """Run *work* at *when*, unless *link* is closed."""

    def watch(self, sock: socket.socket, mask: int, link: Session) -> None:
        """Call *link* when *sock* is ready for the events in *mask*."""

    def connect(self, attempt: int) -> socket.socket | None:
        """Return a socket that is connecting to the *attempt*-th of the server's addresses; None:
        there are no more. Raises OSError.
        """

    def ended(self, link: Session) -> None:
        """Note that *link* is closed."""


class Half:
    """One direction: from *source*, through a lane, to *sink*."""

    def __init__(self, random: Random) -> None:
        self.source: socket.socket | None = None
        self.sink: socket.socket | None = None
        self.lane = Direction(random)
        self.moved = 0  # bytes passed on
        self.ended = False  # the source sent a FIN
        self.broken = False  # … or a RST
        self.finished = False  # the end was passed on to the sink
        self.blocked = False  # the sink accepts no more for now
        self.timer: float | None = None

    def wants_more(self) -> bool:
        """Whether to read from the source."""
        return not self.ended and not self.broken and self.lane.wants_more


class Session:
    """The *n*-th connection."""

    def __init__(
        self,
        house: House,
        n: int,
        client: socket.socket,
        peer: str,
        random: Random,
        tap: StatementTap | None,
    ) -> None:
        self.house, self.n, self.peer = house, n, peer
        self.client, self.server = client, None  # type: socket.socket, socket.socket | None
        self.up, self.down = Half(random), Half(random)
        self.up.source = self.down.sink = client
        self.conduct: Conduct = UNTOUCHED
        self.state = "connecting"
        self.round_trips = 0
        self.reason = ""
        self.opened, self.closed = house.log.now(), None  # type: float, float | None
        self._tap = tap
        self._told_unreadable = False
        self._first_to_close = ""
        self._bytes_left: int | None = None
        self._server_spoke = True  # so that the client's first data is a round trip
        self._attempt = 0  # the number of the server's address that is tried
        self._why = "the server has no address"
        self._is_connecting = False
        self._lost = False  # the kernel discards all packets of both sockets
        self._active = house.now()
        self._masks = {client: 0}
        _no_delay(client)

    # ---- faults

    def obey(self, conduct: Conduct) -> None:
        """Apply *conduct* from now on."""
        if self.closed is not None:
            return
        before, self.conduct = self.conduct, replace(conduct, end=None)
        for half, rules in ((self.up, conduct.up), (self.down, conduct.down)):
            if half.lane.dropped and rules.hole != "drop":
                self.end(
                    "rst",
                    f"{half.lane.dropped} bytes of it were dropped and cannot be sent again",
                )
                return
            half.lane.obey(rules)
        self._lose(conduct.up.hole == "lose")
        if conduct.end == "half":
            self.half_close()
        elif conduct.end is not None:
            self.end(conduct.end, "as told")
            return
        now = self.house.now()
        cutoff = conduct.cutoff
        if cutoff is not before.cutoff:
            self._bytes_left = cutoff.bytes if cutoff is not None else None
            if cutoff is not None and cutoff.seconds is not None:
                self.house.at(now + cutoff.seconds, partial(self._time_is_up, cutoff), self)
        if conduct.idle_limit is not None and conduct.idle_limit != before.idle_limit:
            self.house.at(self._active + conduct.idle_limit, self._look_whether_idle, self)
        if self.server is None and (conduct.up.hole != "drop" or conduct.down.hole != "drop"):
            self._connect()
        self._go_on()

    def _lose(self, wanted: bool) -> None:
        """Discard the packets of both sockets, or let them in again."""
        if wanted == self._lost:
            return
        self._lost = wanted
        for sock in (self.client, self.server):
            if sock is not None:
                (lose if wanted else find)(sock)

    def _time_is_up(self, cutoff: Cutoff) -> None:
        if self.conduct.cutoff is cutoff:
            self.end(cutoff.how, f"cut after {cutoff.seconds:g} s")

    def _look_whether_idle(self) -> None:
        limit = self.conduct.idle_limit
        if limit is None:
            return
        idle = self.house.now() - self._active
        if idle < limit:
            self.house.at(self._active + limit, self._look_whether_idle, self)
        elif self.conduct.idle_reset:
            self.end("rst", f"idle for {idle:.3f} s")
        else:
            self.house.log.add(
                "forgotten",
                self.n,
                f"idle for {idle:.3f} s: dropped silently",
            )
            forgotten = self.conduct.on_way("both", lambda rules: replace(rules, hole="drop"))
            self.obey(replace(forgotten, idle_limit=None))

    def half_close(self) -> None:
        """Send a FIN to the client. Its data is still passed on; the server's data is
        discarded.
        """
        if not self.down.finished:
            self._finish(self.down)
            self.state, self._first_to_close = "half closed", "proxy"
            self.house.log.add("half closed", self.n)

    def end(self, how: How, reason: str, name: str | None = None) -> None:
        """Close both ends, now."""
        if self.closed is not None:
            return
        self.closed, self.state, self.reason = self.house.log.now(), "closed", reason
        if self._tap is not None:
            self._tap.give_back()
        # first, so that a thread that sees the end finds it in the log
        self.house.log.add(name or how, self.n, reason)
        for sock in (self.client, self.server):
            if sock is not None:
                self._watch(sock, 0)
                (_fin if how == "fin" else _rst)(sock)
        self.house.ended(self)

    def abandon(self) -> None:
        """In a forked child: close the parent's sockets, without sending a byte."""
        for sock in (self.client, self.server):
            if sock is not None:
                sock.close()

    def info(self) -> ConnectionInfo:
        """Return its current state."""
        return ConnectionInfo(
            self.n, self.peer, self.state, self.up.moved, self.down.moved,
            self.up.lane.dropped + self.down.lane.dropped,
            self.up.lane.queued + self.down.lane.queued, self.round_trips, self.opened, self.closed,
            self.reason,
        )  # fmt: skip

    # ---- the server's end

    def _connect(self) -> None:
        while self.server is None:
            try:
                server = self.house.connect(self._attempt)
            except OSError as error:
                self._attempt += 1
                self._why = str(error)
                continue
            if server is None:
                self.end("rst", self._why, "connect failed")
                return
            _no_delay(server)
            self._is_connecting = True
            self.server = server
            self._masks[server] = 0
            self.up.sink = self.down.source = server

    def _connected(self) -> None:
        assert self.server is not None
        error = self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._is_connecting = False
        if error == 0:
            if self.state == "connecting":
                self.state = "open"
            self.house.log.add("connected", self.n)
            return
        self._watch(self.server, 0)
        self.server.close()
        self.server = self.up.sink = self.down.source = None
        self._attempt += 1
        self._why = f"the server: {OSError(error, os.strerror(error))}"
        self._connect()

    # ---- bytes

    def handle(self, sock: socket.socket, mask: int) -> None:
        """Handle *sock*, which is ready."""
        if self.closed is not None:
            return
        if sock is self.server and self._is_connecting:
            self._connected()
        else:
            reads, writes = (self.up, self.down) if sock is self.client else (self.down, self.up)
            if mask & EVENT_WRITE:
                writes.blocked = False
            if mask & EVENT_READ and reads.wants_more():
                self._read(reads)
        if self.closed is None:
            self._go_on()

    def catch_up(self) -> None:
        """Read what the client has sent until now: faults that are set next do not apply to it."""
        for _ in range(_CAUGHT_UP):
            if self.closed is not None or not self.up.wants_more() or not _has_data(self.client):
                return
            self.handle(self.client, EVENT_READ)

    def _read(self, half: Half) -> None:
        assert half.source is not None
        try:
            data = half.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            half.broken = True
            return
        if not data:
            half.ended = True
            return
        self._active = self.house.now()
        if half is self.up:
            self.round_trips += self._server_spoke
        self._server_spoke = half is self.down
        if half.finished:  # half closed by the proxy: this data must not be passed on
            return
        if self._tap is not None:
            self._overhear(self._tap, half, data)
        else:
            half.lane.take(data, self._active)

    def _overhear(self, tap: StatementTap, half: Half, data: bytes) -> None:
        """Pass on the allowed part of *data*, and make the cut that is due."""
        data, cut = tap.up(data, self.house.cuts) if half is self.up else tap.down(data)
        half.lane.take(data, self._active)
        if cut is not None:
            self._flush(half)
            cut.done(self.n)
            self.end(cut.how, cut.story, "cut")
        elif tap.unreadable and not self._told_unreadable:
            self._told_unreadable = True
            self.house.log.add("unreadable", self.n, tap.unreadable)
            for cut in self.house.cuts:
                if cut.left and cut.covers(self.n):
                    cut.cannot_read(self.n, tap.unreadable)

    @property
    def unreadable(self) -> str | None:
        """The reason why this connection's statements cannot be read."""
        return self._tap.unreadable if self._tap is not None else None

    def heal(self) -> None:
        """End every fault, and drop the cut to come."""
        if self._tap is not None and not self._tap.is_withholding:
            self._tap.give_back()
        self.obey(UNTOUCHED)

    def _go_on(self) -> None:
        """Pass on all allowed data, and wait for more."""
        for half in (self.up, self.down):
            self._flush(half)
            if self.closed is not None:
                return
        self._interest()

    def _flush(self, half: Half) -> None:
        if half.sink is None or self._is_connecting:
            return
        now = self.house.now()
        while not half.blocked and (data := half.lane.give(now)):
            if self._bytes_left is not None:
                data = data[: self._bytes_left]
            try:
                count = half.sink.send(data)
            except BlockingIOError:
                half.blocked = True
                break
            except OSError as error:
                self.end(
                    "rst",
                    f"the {'server' if half is self.up else 'client'} took no more: {error}",
                    "closed",
                )
                return
            half.lane.gone(count, now)
            half.moved += count
            if self._bytes_left is not None:
                self._bytes_left -= count
                if self._bytes_left == 0:
                    cutoff = self.conduct.cutoff
                    assert cutoff is not None
                    self.end(cutoff.how, f"cut after {cutoff.bytes} bytes")
                    return
        self._pass_on_the_end(half)
        self._set_timer(half)

    def _pass_on_the_end(self, half: Half) -> None:
        if self.closed is not None or half.lane.queued or not half.lane.is_open:
            return
        who = "client" if half is self.up else "server"
        if self._tap is not None and half is self.down and half.ended:
            self._tap.give_back()  # no answer can come any more
        if half.broken:
            self.end("rst", f"the {who} reset it", "closed")
        elif half.ended and not half.finished:
            self._finish(half)
            if self.up.finished and self.down.finished:
                self.end("fin", f"the {self._first_to_close} closed it", "closed")
            else:
                self.state, self._first_to_close = "half closed", who
                self.house.log.add("fin passed on", self.n, f"from the {who}")

    def _finish(self, half: Half) -> None:
        half.finished = True
        if half.sink is not None:
            with contextlib.suppress(OSError):
                half.sink.shutdown(socket.SHUT_WR)

    def _set_timer(self, half: Half) -> None:
        when = half.lane.wake_at()
        if (
            when is None
            or half.blocked
            or self.closed is not None
            or (half.timer is not None and half.timer <= when)
        ):
            return
        half.timer = when

        def ring() -> None:
            half.timer = None
            self._go_on()

        self.house.at(when, ring, self)

    def _interest(self) -> None:
        if self.server is not None:
            reads = EVENT_READ if self.down.wants_more() and not self._is_connecting else 0
            self._watch(
                self.server, reads | (EVENT_WRITE if self.up.blocked or self._is_connecting else 0)
            )
        self._watch(
            self.client,
            (EVENT_READ if self.up.wants_more() else 0) | (EVENT_WRITE if self.down.blocked else 0),
        )

    def _watch(self, sock: socket.socket, mask: int) -> None:
        if self._masks[sock] != mask:
            self._masks[sock] = mask
            self.house.watch(sock, mask, self)


def _fin(sock: socket.socket) -> None:
    """Send a FIN even if there are unread bytes: close() alone would send a RST then."""
    with contextlib.suppress(OSError):
        for _ in range(64):
            if not sock.recv(_CHUNK):
                break
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # sends it even if another process has the descriptor
    sock.close()


def _rst(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _has_data(sock: socket.socket) -> bool:
    """Whether data has arrived that was not read yet."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _no_delay(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
