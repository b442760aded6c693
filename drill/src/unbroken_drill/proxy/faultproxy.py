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

_TLS_REMEDY = "connect without TLS and compression where statements are to be matched"


class FaultProxy:
    """A proxy for TCP and unix sockets that breaks connections as networks, servers and balancers
    do.

    *upstream* is the server: ``(host, port)``, ``"host:port"``, a unix socket's path, or a database
    URL, which tells the protocol as well. *listen* likewise, but no URL (port 0: a free one).
    *protocol*, ``"mysql"`` or ``"postgresql"``, is needed by :meth:`cut_at` only. *seed* makes
    jitter repeatable (default: a new one, in :attr:`seed`).

    A context manager, in ``with`` and in ``async with``: its sockets live in a thread of their own,
    so it serves threads, asyncio and other processes alike. Verbs may be called from any thread or
    task; each returns when it has taken effect, which takes a fraction of a millisecond. It holds
    until :meth:`heal`, for the connections that ``on`` names: ``"all"`` (those there are and those
    to come), ``"existing"``, ``"new"``, or the number of one, from 1. Verbs add up; the same one
    again replaces its setting. ``way`` is ``"both"``, ``"up"`` (client to server) or ``"down"``.
    Times are seconds.

    Raises ConfigurationError for what cannot be meant, ProxyError for what cannot be done.
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
        """Listen; ``with`` does it. ProxyError when that is not possible."""
        if self._engine is not None:
            raise ProxyError(
                PROXY_STATE(
                    f"the proxy on {self._engine.gate.address} was started already: a new"
                    " FaultProxy makes another one"
                )
            )
        self._engine = Engine(self._upstream, self._listen, self.seed, _reader(self.protocol))
        return self

    def close(self) -> None:
        """End all connections with a FIN and listen no more; ``with`` does it.

        What was counted can still be read.
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
        return f"<FaultProxy {where}, before {self._upstream}>"

    # ---- where it is, what it saw

    @property
    def address(self) -> tuple[str, int] | str:
        """Where clients connect: ``(host, port)``, or a unix socket's path."""
        return self._house.gate.address.plain

    @property
    def host(self) -> str:
        """The address listened on; empty for a unix socket."""
        return self._house.gate.address.host

    @property
    def port(self) -> int:
        """The port listened on; 0 for a unix socket."""
        return self._house.gate.address.port

    @property
    def upstream(self) -> str:
        """The server's address, for people: ``127.0.0.1:3306``, or a unix socket's path."""
        return str(self._upstream)

    def url(self, url: str) -> str:
        """The same *url*, through the proxy: only its host and port (or its unix socket) are
        replaced.
        """
        return through(url, self._house.gate.address)

    @property
    def connections(self) -> tuple[ConnectionInfo, ...]:
        """Every connection so far, closed ones too (the last 10,000), as they are now."""
        return self._look(self._house.connections)

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened so far (the last 20,000)."""
        return self._house.log.after()

    def events_after(self, serial: int, timeout: float = 0.0) -> tuple[Event, ...]:
        """The events after the one with that number; waits up to *timeout* seconds for one
        (blocking).
        """
        return self._house.log.wait(serial, timeout)

    @property
    def round_trips(self) -> int:
        """How often a client spoke after its server had (or first), on all connections together."""
        return self._look(self._house.round_trips)

    # ---- ends

    def fin(self, on: Scope = "existing") -> None:
        """End connections in order: a FIN to the client and to the server.

        With "new" or "all", also each one to come, at once.
        """
        self._change("fin", on, lambda conduct: replace(conduct, end="fin"))

    def rst(self, on: Scope = "existing") -> None:
        """Reset connections, idle ones too: a RST to both sides (a unix socket has none: it is
        closed). Else as :meth:`fin`.
        """
        self._change("rst", on, lambda conduct: replace(conduct, end="rst"))

    def half_close(self, on: Scope = "existing") -> None:
        """A FIN to the client only: it reads an end and may go on writing; what the server still
        says is thrown away.
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
        seconds; *how* is "fin" or "rst".
        """
        if (bytes is None) == (seconds is None):
            raise ConfigurationError(
                PROXY_ARGUMENT("cut_after takes bytes= or seconds=, one of them")
            )
        count = None if bytes is None else plan.whole("bytes", bytes)
        after = None if seconds is None else plan.number("seconds", seconds)
        cutoff = Cutoff(count, after, plan.how(how))
        text = f"{count} bytes" if count is not None else f"{after:g} s"
        self._change("cut after", on, lambda conduct: replace(conduct, cutoff=cutoff), text)

    # ---- silence

    def blackhole(self, mode: Hole = "drop", on: Scope = "all", way: Way = "both") -> None:
        """Nothing passes, nobody is told: connections stay open, new ones are accepted and hear
        nothing.

        ``"hold"`` keeps what comes (and reads no further than 256 KiB per direction) and delivers
        it when healed, as TCP's retransmission does after a short loss. ``"drop"`` throws it away
        for good: the proxy has acknowledged it, so neither side's TCP will send it again. A
        connection that lost bytes so can never be in step again; healing resets it.

        ``"lose"`` is the cable that was cut (Linux, TCP, both ways): the kernel throws packets away
        before TCP sees them, so nothing is acknowledged, keepalive probes are not answered, and new
        connects hang as in :meth:`hang_connect`. Healed in time, TCP sends again what was lost.
        Raises ProxyError where the system cannot do it.
        """
        hole: Hole = plan.one_of("mode", mode, ("drop", "hold", "lose"))
        if hole == "lose":
            if way != "both":
                raise ConfigurationError(
                    PROXY_ARGUMENT(f"way={way!r}: blackhole('lose') is for both ways")
                )
            self._do(lambda: self._house.lose_connects(plan.scope(on)))
        self._rule("blackhole", on, way, lambda rules: replace(rules, hole=hole), hole)

    def stall(self, on: Scope = "all", way: Way = "both") -> None:
        """Read nothing: what is sent fills the sender's and the proxy's socket buffers, then the
        sender's window is zero.
        """
        self._rule("stall", on, way, lambda rules: replace(rules, stalled=True))

    def idle_limit(self, seconds: float, reset: bool = False, on: Scope = "all") -> None:
        """Forget each connection on which nothing was sent for so long: silently, as a NAT, or with
        a RST to both, as a balancer.

        TCP's keepalive probes are answered by the proxy's kernel and do not count as traffic, as
        they would for a NAT.
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
        """Hand on so many bytes, counted from now on each connection, and then only *rate* bytes a
        second (0: none at all).

        As a server that falls silent, or nearly so, in the middle of a login. It reads on, and
        keeps the connection open.
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
        """Hand everything on so much later, give or take up to *jitter* (seeded); in order.

        Both ways: a round trip takes it twice.
        """
        delay, spread = plan.number("seconds", seconds), plan.number("jitter", jitter)
        text = f"{delay:g} s{f' ± {spread:g} s' if spread else ''}"
        self._rule(
            "latency", on, way, lambda rules: replace(rules, latency=delay, jitter=spread), text
        )

    def throttle(self, bytes_per_second: float, on: Scope = "all", way: Way = "both") -> None:
        """Hand on so many bytes per second at most, in each direction of each connection."""
        rate = plan.number("bytes_per_second", bytes_per_second, "bytes", above_zero=True)
        self._rule(
            "throttle", on, way, lambda rules: replace(rules, rate=rate), f"{rate:g} bytes/s"
        )

    def slice(self, bytes: int, gap: float = 0.001, on: Scope = "all", way: Way = "both") -> None:  # noqa: A002
        """Hand everything on in pieces of so many bytes at most, each a segment of its own, *gap*
        seconds between them.
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
        """Refuse connects (ECONNREFUSED), as if nobody listened.

        Connections that there are go on.
        """
        self._do(self._house.refuse)

    def hang_connect(self) -> None:
        """Let connects hang: neither accepted nor refused. Once healed, a client's kernel tries
        again after 1, 3, 7 … s.

        On a unix socket a blocking connect hangs; one that does not block gets EAGAIN from the
        kernel.
        """
        self._do(self._house.hang_connect)

    def fail_next(self, n: int = 1) -> None:
        """Accept the next *n* connections and reset them at once; those after them are well."""
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
        """Cut the connection at a statement: after the server has executed it, its answer withheld
        from the client.

        *statement* is its beginning ("COMMIT", "INSERT INTO rows": whole words, any case), or a
        compiled pattern that is searched for in its text (the first 64 KiB). Prepared statements
        count when they are executed. With *before* the statement never reaches the server. So many
        *times*; then all passes again. Both ends get *how*.

        Needs ``protocol=``. Statements inside TLS or compression cannot be read: ProxyError at once
        when a connection that is meant is such a one already; when one becomes such, an event
        ``unreadable``, and :meth:`Cut.wait` raises.
        """
        if self.protocol is None:
            raise ConfigurationError(
                PROXY_CUT(
                    "cut_at must know the protocol: FaultProxy(…, protocol='mysql') or 'postgresql'"
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
        """No fault any more: what was held is delivered, connects are accepted, cuts to come are
        forgotten.

        A connection that lost bytes in a black hole is reset. What has ended stays ended.
        """
        scope = plan.scope(on)
        self._do(lambda: self._house.heal(scope))

    # ---- within

    @property
    def _house(self) -> Engine:
        if self._engine is None:
            raise ProxyError(
                PROXY_STATE("the proxy was not started: use it in a with block, or call start()")
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
