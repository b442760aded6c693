"""The fault proxy's public face."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import PROXY_ARGUMENT, PROXY_CUT, PROXY_STATE
from unbroken_drill.proxy import plan
from unbroken_drill.proxy.addresses import Given, address, of_url, through
from unbroken_drill.proxy.cuts import Cut, Reader
from unbroken_drill.proxy.engine import Engine
from unbroken_drill.proxy.errors import ProxyError
from unbroken_drill.proxy.plan import Conduct, Cutoff, Hole, How, Rules, Scope, Way
from unbroken_drill.proxy.records import ConnectionInfo, Event

T = TypeVar("T")

_TLS_REMEDY = "connect without TLS and compression, so that the proxy can match statements"


class FaultProxy:
    """A proxy for TCP and unix sockets that breaks connections as networks, servers and balancers
    do.

    *upstream* is the server: ``(host, port)``, ``"host:port"``, a unix socket's path, or a database
    URL, which also implies the protocol. *listen* takes the same, except a URL (port 0: a free
    one). *protocol*, ``"mysql"`` or ``"postgresql"``, is only needed by :meth:`cut_at`. *seed*
    makes jitter repeatable (default: a new one, in :attr:`seed`).

    The proxy is a context manager, for ``with`` and ``async with``. Its sockets belong to its own
    thread, so it serves threads, asyncio and other processes alike. Verbs can be called from any
    thread or task. Each returns when it has taken effect, after a fraction of a millisecond.

    A verb holds until :meth:`heal`, for the connections that ``on`` selects: ``"all"`` (existing
    and future ones), ``"existing"``, ``"new"``, or the number of one, from 1. Verbs add up. The
    same verb again replaces its setting. ``way`` is ``"both"``, ``"up"`` (client to server) or
    ``"down"``. Times are seconds.

    Raises ConfigurationError for invalid arguments, ProxyError for an impossible operation.
    """

    def __init__(
        self,
        upstream: Given,
        listen: Given = ("127.0.0.1", 0),
        protocol: str | None = None,
        seed: int | None = None,
    ) -> None:
        spoken = None
        if isinstance(upstream, str) and "://" in upstream:
            self._upstream, spoken = of_url(upstream)
        else:
            self._upstream = address(upstream, "upstream")
        self._listen = address(listen, "listen", least_port=0)
        if protocol not in (None, "mysql", "postgresql"):
            raise ConfigurationError(
                PROXY_ARGUMENT(f"protocol={protocol!r} must be 'mysql', 'postgresql' or None")
            )
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ConfigurationError(
                PROXY_ARGUMENT(f"seed={seed!r} must be a whole number or None")
            )
        self.protocol = protocol or spoken
        self.seed = secrets.randbelow(1_000_000) if seed is None else seed
        self._engine: Engine | None = None

    # ---- its life

    def start(self) -> Self:
        """Listen; ``with`` calls it. Raises ProxyError if that is not possible."""
        if self._engine is not None:
            raise ProxyError(
                PROXY_STATE(
                    f"the proxy on {self._engine.gate.address} was already started; create a new"
                    " FaultProxy"
                )
            )
        self._engine = Engine(self._upstream, self._listen, self.seed, _reader(self.protocol))
        return self

    def close(self) -> None:
        """End all connections with a FIN and stop listening; ``with`` calls it. The counts stay
        readable.
        """
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        where = f"on {self._engine.gate.address}" if self._engine is not None else "not started"
        return f"<FaultProxy {where}, in front of {self._upstream}>"

    # ---- where it is, what it saw

    @property
    def address(self) -> tuple[str, int] | str:
        """The address for clients: ``(host, port)``, or a unix socket's path."""
        return self._house.gate.address.plain

    @property
    def host(self) -> str:
        """The address on which the proxy listens; empty for a unix socket."""
        return self._house.gate.address.host

    @property
    def port(self) -> int:
        """The port on which the proxy listens; 0 for a unix socket."""
        return self._house.gate.address.port

    @property
    def upstream(self) -> str:
        """The server's address, for people: ``127.0.0.1:3306``, or a unix socket's path."""
        return str(self._upstream)

    def url(self, url: str) -> str:
        """Return the same *url* through the proxy: only its host and port (or its unix socket) are
        replaced.
        """
        return through(url, self._house.gate.address)

    @property
    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Every connection so far in its current state, including closed ones (the last 10,000)."""
        return self._look(self._house.connections)

    @property
    def events(self) -> tuple[Event, ...]:
        """The events so far (the last 20,000)."""
        return self._house.log.after()

    def events_after(self, serial: int, timeout: float = 0.0) -> tuple[Event, ...]:
        """Return the events after the one with that number. Waits up to *timeout* seconds for one
        (blocking).
        """
        return self._house.log.wait(serial, timeout)

    @property
    def round_trips(self) -> int:
        """How often a client sent data after its server had (or first), on all connections
        together.
        """
        return self._look(self._house.round_trips)

    # ---- ends

    def fin(self, on: Scope = "existing") -> None:
        """End connections in order: a FIN to the client and to the server. With "new" or "all",
        also each future connection, immediately.
        """
        self._change("fin", on, lambda conduct: replace(conduct, end="fin"))

    def rst(self, on: Scope = "existing") -> None:
        """Reset connections, including idle ones: a RST to both sides. (A unix socket has none: it
        is closed.) Otherwise it works as :meth:`fin`.
        """
        self._change("rst", on, lambda conduct: replace(conduct, end="rst"))

    def half_close(self, on: Scope = "existing") -> None:
        """Send a FIN to the client only. It reads an end of file and can still write. Further data
        of the server is discarded.
        """
        self._change("half close", on, lambda conduct: replace(conduct, end="half"))

    def cut_after(
        self,
        *,
        bytes: int | None = None,  # noqa: A002
        seconds: float | None = None,
        on: Scope = "all",
        how: How = "fin",
    ) -> None:
        """End each connection after so many bytes (both ways together, counted from now) or
        seconds. *how* is "fin" or "rst".
        """
        if (bytes is None) == (seconds is None):
            raise ConfigurationError(PROXY_ARGUMENT("cut_after takes either bytes= or seconds="))
        count = None if bytes is None else plan.whole("bytes", bytes)
        after = None if seconds is None else plan.number("seconds", seconds)
        cutoff = Cutoff(count, after, plan.how(how))
        text = f"{count} bytes" if count is not None else f"{after:g} s"
        self._change("cut after", on, lambda conduct: replace(conduct, cutoff=cutoff), text)

    # ---- silence

    def blackhole(self, mode: Hole = "drop", on: Scope = "all", way: Way = "both") -> None:
        """No data passes and neither side is notified. Connections stay open. New ones are accepted
        and receive nothing.

        ``"hold"`` keeps arriving data (and reads no further than 256 KiB per direction) and
        delivers it after :meth:`heal`, as TCP's retransmission does after a short loss. ``"drop"``
        discards it permanently: the proxy has acknowledged it, so neither side's TCP will send it
        again. A connection that lost bytes in this way can never be in step again, so :meth:`heal`
        resets it.

        ``"lose"`` acts like a cut cable (Linux, TCP, both ways). The kernel discards packets before
        TCP sees them. Nothing is acknowledged, keepalive probes are not answered, and new connects
        hang as in :meth:`hang_connect`. After a :meth:`heal` in time, TCP sends the lost data
        again. Raises ProxyError if the system does not support it.
        """
        hole: Hole = plan.one_of("mode", mode, ("drop", "hold", "lose"))
        if hole == "lose":
            if way != "both":
                raise ConfigurationError(
                    PROXY_ARGUMENT(f"way={way!r}: blackhole('lose') always works both ways")
                )
            self._do(lambda: self._house.lose_connects(plan.scope(on)))
        self._rule("blackhole", on, way, lambda rules: replace(rules, hole=hole), hole)

    def stall(self, on: Scope = "all", way: Way = "both") -> None:
        """Read nothing. Data fills the socket buffers of the sender and of the proxy, then the
        sender's window is zero.
        """
        self._rule("stall", on, way, lambda rules: replace(rules, stalled=True))

    def idle_limit(self, seconds: float, reset: bool = False, on: Scope = "all") -> None:
        """Drop each connection that was idle for so long: silently, like a NAT, or with a RST to
        both, like a balancer.

        The proxy's kernel answers TCP's keepalive probes. They do not count as traffic, unlike in a
        NAT.
        """
        limit, with_rst = (
            plan.number("seconds", seconds, above_zero=True),
            plan.yes_or_no("reset", reset),
        )
        text = f"{limit:g} s{', then reset' if with_rst else ''}"
        self._change(
            "idle limit",
            on,
            lambda conduct: replace(conduct, idle_limit=limit, idle_reset=with_rst),
            text,
        )

    # ---- slowness

    def quiet_after(
        self,
        bytes: int,  # noqa: A002 - the fault's own word
        rate: float = 0.0,
        on: Scope = "all",
        way: Way = "down",
    ) -> None:
        """Pass on so many bytes, counted from now on each connection, and then only *rate* bytes a
        second (0: none at all).

        This is a server that falls silent, or nearly so, in the middle of a login. It still reads,
        and keeps the connection open.
        """
        quota = plan.Quota(plan.whole("bytes", bytes, 0), plan.number("rate", rate, "bytes"))
        self._rule(
            "quiet after",
            on,
            way,
            lambda rules: replace(rules, quota=quota),
            f"{bytes} bytes, then {rate:g} bytes/s",
        )

    def latency(
        self, seconds: float, jitter: float = 0.0, on: Scope = "all", way: Way = "both"
    ) -> None:
        """Delay everything by so much, plus or minus up to *jitter* (seeded), in order.

        It applies to both ways: a round trip takes it twice.
        """
        delay, spread = plan.number("seconds", seconds), plan.number("jitter", jitter)
        text = f"{delay:g} s{f' ± {spread:g} s' if spread else ''}"
        self._rule(
            "latency", on, way, lambda rules: replace(rules, latency=delay, jitter=spread), text
        )

    def throttle(self, bytes_per_second: float, on: Scope = "all", way: Way = "both") -> None:
        """Pass on at most so many bytes per second, in each direction of each connection."""
        rate = plan.number("bytes_per_second", bytes_per_second, "bytes", above_zero=True)
        self._rule(
            "throttle", on, way, lambda rules: replace(rules, rate=rate), f"{rate:g} bytes/s"
        )

    def slice(self, bytes: int, gap: float = 0.001, on: Scope = "all", way: Way = "both") -> None:  # noqa: A002
        """Pass everything on in pieces of at most so many bytes, each in a segment of its own,
        *gap* seconds apart.
        """
        size, pause = plan.whole("bytes", bytes), plan.number("gap", gap)
        self._rule(
            "slice",
            on,
            way,
            lambda rules: replace(rules, piece=size, gap=pause),
            f"{size} bytes, {pause:g} s apart",
        )

    # ---- connecting

    def refuse(self) -> None:
        """Refuse connects (ECONNREFUSED), as an unused port does.

        Existing connections continue.
        """
        self._do(self._house.refuse)

    def hang_connect(self) -> None:
        """Let connects hang: neither accepted nor refused. After :meth:`heal`, a client's kernel
        tries again after 1, 3, 7 … s.

        On a unix socket a blocking connect hangs; a non-blocking one gets EAGAIN from the kernel.
        """
        self._do(self._house.hang_connect)

    def fail_next(self, n: int = 1) -> None:
        """Accept the next *n* connections and reset them immediately. Later ones work."""
        times = plan.whole("n", n, 0)
        house = self._house

        def fail() -> None:
            house.log.add("fail next", None, f"{times} connections")
            house.failing = times

        self._do(fail)

    # ---- at a statement

    def cut_at(
        self,
        statement: str | re.Pattern[str],
        *,
        before: bool = False,
        times: int = 1,
        on: Scope = "all",
        how: How = "fin",
    ) -> Cut:
        """Cut the connection at a statement, after the server has executed it. Its answer is
        withheld from the client. A statement that was sent before this call is not cut.

        *statement* is its beginning ("COMMIT", "INSERT INTO rows": whole words, any case), or a
        compiled pattern that is searched for in its text (the first 64 KiB). Prepared statements
        count when they are executed. With *before* the statement never reaches the server. The cut
        happens so many *times*; then everything passes again. Both ends get *how*.

        Needs ``protocol=``. Statements inside TLS or compression cannot be read. Raises ProxyError
        immediately if a selected connection already uses one of them. If a connection does so
        later, an event ``unreadable`` records it, and :meth:`Cut.wait` raises.
        """
        if self.protocol is None:
            raise ConfigurationError(
                PROXY_CUT(
                    "cut_at needs the protocol: FaultProxy(…, protocol='mysql') or 'postgresql'"
                )
            )
        house, scope = self._house, plan.scope(on)
        count, first, end = (
            plan.whole("times", times),
            plan.yes_or_no("before", before),
            plan.how(how),
        )

        def arm() -> Cut:
            house.expect(scope)
            for link in list(house.links.values()):
                link.catch_up()
            cut = Cut(statement, before=first, times=count, on=scope, how=end, count=house.count)
            for link in house.links.values():
                if link.unreadable and cut.covers(link.n):
                    raise ProxyError(
                        PROXY_CUT(f"connection {link.n}: {link.unreadable}; {_TLS_REMEDY}")
                    )
            house.cuts = [known for known in house.cuts if not known.is_spent] + [cut]
            house.log.add(
                "cut at",
                None,
                f"{cut.statement!r}, {'before' if first else 'after'} it, {count} times",
            )
            return cut

        return self._do(arm)

    def heal(self, on: Scope = "all") -> None:
        """End all faults: held data is delivered, connects are accepted, future cuts are dropped.

        A connection that lost bytes in a black hole is reset. Ended connections stay ended.
        """
        scope = plan.scope(on)
        self._do(lambda: self._house.heal(scope))

    # ---- within

    @property
    def _house(self) -> Engine:
        if self._engine is None:
            raise ProxyError(
                PROXY_STATE("the proxy was not started; use it in a with block, or call start()")
            )
        return self._engine

    def _do(self, work: Callable[[], T]) -> T:
        return self._house.call(work)

    def _look(self, work: Callable[[], T]) -> T:
        try:
            return self._house.call(work)
        except ProxyError:
            return work()  # its thread has ended: nothing changes any more

    def _change(
        self, name: str, on: Scope, change: Callable[[Conduct], Conduct], text: str = ""
    ) -> None:
        scope = plan.scope(on)
        self._do(lambda: self._house.change(scope, change, name, text))

    def _rule(
        self, name: str, on: Scope, way: Way, change: Callable[[Rules], Rules], text: str = ""
    ) -> None:
        direction = plan.way(way)
        more = "" if direction == "both" else f"{', ' if text else ''}{direction} only"
        self._change(name, on, lambda conduct: conduct.on_way(direction, change), text + more)


def _reader(protocol: str | None) -> Callable[[], Reader] | None:
    if protocol is None:
        return None
    from unbroken_drill.proxy import mysql, postgresql

    return mysql.MySQLReader if protocol == "mysql" else postgresql.PostgreSQLReader
