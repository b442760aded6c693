"""Faults by name, which a test plays on a server or on the network before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import PROXY_STATE, UNKNOWN_NAME
from unbroken_drill.proxy import FaultProxy
from unbroken_drill.servers import Server

Where = Literal["server", "way"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: the function that begins it, and the function that ends it (None: it takes
    effect only once).

    Both get the server or the proxy.
    """

    where: Where
    begin: Callable[[Any], Any]
    end: Callable[[Any], Any] | None = None


#: Every fault. Faults of the network need a proxy: the test must connect to
#: :meth:`Fault.url`.
KINDS: dict[str, Kind] = {
    "kill": Kind("server", lambda server: server.kill_sessions()),
    "restart": Kind("server", lambda server: server.stop(), lambda server: server.start()),
    "crash": Kind("server", lambda server: server.kill(), lambda server: server.start()),
    "freeze": Kind("server", lambda server: server.freeze(), lambda server: server.thaw()),
    "fin": Kind("way", lambda proxy: proxy.fin()),
    "rst": Kind("way", lambda proxy: proxy.rst()),
    "half_close": Kind("way", lambda proxy: proxy.half_close()),
    "silent_drop": Kind("way", lambda proxy: proxy.blackhole("drop", on="existing")),
    "blackhole": Kind("way", lambda proxy: proxy.blackhole("hold"), lambda proxy: proxy.heal()),
    "refuse": Kind("way", lambda proxy: (proxy.refuse(), proxy.rst()), lambda proxy: proxy.heal()),
    "hang_connect": Kind(
        "way", lambda proxy: (proxy.hang_connect(), proxy.rst()), lambda proxy: proxy.heal()
    ),
    "latency": Kind("way", lambda proxy: proxy.latency(0.05), lambda proxy: proxy.heal()),
    "lost_commit": Kind("way", lambda proxy: proxy.cut_at("COMMIT")),
    "unsent_commit": Kind("way", lambda proxy: proxy.cut_at("COMMIT", before=True)),
}


class Fault:
    """One fault, on *server*: ``fault()`` plays it, ``with fault:`` plays it for the duration of
    the block.

    *seconds* is the duration of a fault that is played by a call; faults that take effect only once
    ignore it. The context manager :meth:`ready` yields it, with a proxy in front of the server if
    the fault needs one, and undoes the fault at the end.
    """

    def __init__(self, name: str, server: Server, seconds: float = 0.3) -> None:
        if name not in KINDS:
            raise ConfigurationError(
                UNKNOWN_NAME(f"unknown fault {name!r}; known: {', '.join(KINDS)}")
            )
        self.name, self.server, self.seconds = name, server, seconds
        self.proxy: FaultProxy | None = (
            None  #: the proxy before the server, for faults of the network
        )
        self.played = 0  #: the number of times it was played so far
        self._kind = KINDS[name]
        self._lasts = False

    def __repr__(self) -> str:
        return f"<fault {self.name} of {self.server!r}, played {self.played} times>"

    # -- where to connect --------------------------------------------------------------------------

    def url(self, driver: str | None = None, **query: Any) -> str:
        """The server's URL, through the proxy if the fault has one."""
        url = self.server.url(driver, **query)
        return url if self.proxy is None else self.proxy.url(url)

    @property
    def host(self) -> str:
        """The address to connect to, for drivers that take no URL."""
        return self.server.host if self.proxy is None else self.proxy.host

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self.server.port if self.proxy is None else self.proxy.port

    # -- playing it --------------------------------------------------------------------------------

    def __call__(self) -> None:
        """Begin the fault. If it is one that lasts, wait for *seconds* and end it.

        Blocks: coroutines ``await asyncio.to_thread(fault)``.
        """
        with self:
            if self._kind.end is not None:
                time.sleep(self.seconds)

    def __enter__(self) -> Self:
        self._kind.begin(self._target)
        self.played += 1
        self._lasts = True
        return self

    def __exit__(self, *_exc: object) -> None:
        self._lasts = False
        if self._kind.end is not None:
            self._kind.end(self._target)

    @property
    def _target(self) -> Any:
        if self._kind.where == "server":
            return self.server
        if self.proxy is None:
            raise ConfigurationError(
                PROXY_STATE(
                    f"the fault {self.name!r} needs the fault proxy: play it inside fault.ready()"
                )
            )
        return self.proxy

    # -- its life ----------------------------------------------------------------------------------

    def ready(self) -> _Ready:
        """``with Fault("rst", server).ready() as fault:``."""
        return _Ready(self)


class _Ready:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def __enter__(self) -> Fault:
        fault = self._fault
        if fault._kind.where == "way":
            fault.proxy = for_server(fault.server).start()
        return fault

    def __exit__(self, *_exc: object) -> None:
        fault = self._fault
        if fault._lasts:
            fault.__exit__()
        if fault.proxy is not None:
            fault.proxy.close()


def for_server(server: Server, **options: Any) -> FaultProxy:
    """Return a proxy in front of *server*, with its protocol; not started. *options*:
    FaultProxy's.
    """
    protocols = {"mysql": "mysql", "mariadb": "mysql", "postgresql": "postgresql"}
    return FaultProxy(
        (server.host, server.port), **{"protocol": protocols.get(server.backend), **options}
    )


class Player:
    """Plays a fault in a thread beside a test: first after *after* seconds, then *every* so many
    (None: once).
    """

    def __init__(self, fault: Fault, after: float, every: float | None) -> None:
        self._fault, self._after, self._every = fault, after, every
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fault {fault.name}", daemon=True)
        self.error: BaseException | None = None

    def _run(self) -> None:
        pause: float | None = self._after
        while pause is not None and not self._enough.wait(pause):
            try:
                self._fault()
            except BaseException as error:
                self.error = error
                return
            pause = self._every

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Wait until a running fault has ended."""
        self._enough.set()
        self._thread.join()
