"""What is done to the server, the way to it and the clients: faults whose order, strengths and
pauses a seed decides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Literal

from unbroken_drill import FaultProxy, ProxyError

#: How often each comes up in one deck, which is shuffled and played to its end before the next.
DECK = {
    "kill one": 3, "kill": 1, "restart": 1, "crash": 1, "freeze": 1, "fin": 1, "rst": 1,
    "fin one": 1, "rst one": 1, "black hole": 1, "silent drop": 1, "cut after COMMIT": 8,
    "cut before COMMIT": 4, "fork": 2, "slow": 2,
}  # fmt: skip

#: A short history begins with these, so that each kind of trouble is met.
FIRST = ("cut after COMMIT", "kill", "fork", "cut before COMMIT", "crash")

#: Inside TLS, and MongoDB's protocol, the proxy finds no COMMIT: it loses the answers to whatever
#: is asked, and cuts wherever it is. A handshake takes many round trips: on a busy machine there
#: must be a moment now and then in which one gets through.
_BLIND = {"fin one": 4, "rst one": 6, "lost answers": 8, "rest": 3}
#: MongoDB's server ends no session by itself, and is slow to start.
DECKS = {
    "plain": (DECK, FIRST),
    "tls": (
        {name: times for name, times in DECK.items() if "COMMIT" not in name} | _BLIND,
        ("lost answers", "kill", "fork", "rst", "crash"),
    ),
    "cluster": (
        {name: times for name, times in DECK.items() if name not in ("restart", "crash", "freeze")}
        | {"promote": 3, "switchover": 3},
        ("cut after COMMIT", "promote", "fork", "switchover", "kill"),
    ),
    "lossy": ({"promote behind": 2, "switchover": 1, "kill": 1}, ("promote behind", "switchover")),
    "http": (
        {name: times for name, times in DECK.items() if name != "fork"} | {"kill worker": 1},
        ("cut after COMMIT", "crash", "cut before COMMIT", "kill", "rst"),
    ),
    "mongodb": (
        {
            "restart": 1,
            "crash": 2,
            "freeze": 2,
            "fin": 1,
            "rst": 1,
            "black hole": 1,
            "silent drop": 1,
            "fork": 3,
        }
        | _BLIND,
        ("lost answers", "fork", "rst", "freeze", "crash"),
    ),
    "set": (
        {
            "step down": 3, "kill primary": 2, "freeze primary": 2, "partition": 2, "rst": 2,
            "fork": 2, "rest": 3,
        },
        ("step down", "kill primary", "fork", "freeze primary", "partition"),
    ),
}  # fmt: skip


def order(
    random: Random, deck: dict[str, int] = DECK, first: Sequence[str] = FIRST
) -> Iterator[str]:
    """The names of the faults, one after the other, for ever."""
    yield from first
    while True:
        names = [name for name, times in deck.items() for _ in range(times)]
        random.shuffle(names)
        yield from names


class Faults:
    """Plays faults on *server* and *proxy*, one after the other; *fork* has the clients' process
    make a child, or a web worker end.
    """

    def __init__(
        self,
        server: Any,
        proxy: FaultProxy,
        fork: Callable[[], object],
        seed: int,
        deck: str = "plain",
    ) -> None:
        self.server, self.proxy, self.fork = server, proxy, fork
        self.random = Random(seed)
        self.played: Counter[str] = Counter()
        self._first = DECKS[deck][1]
        self._order = order(Random(seed), *DECKS[deck])
        self._cuts: list[Any] = []

    @property
    def cuts(self) -> int:
        """How many COMMITs were cut so far, before or after they were executed."""
        return sum(cut.hits for cut in self._cuts)

    def play(self, seconds: float) -> None:
        """One after the other, for so long, and each of the first in any case; in the end all is
        well again.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end or self.played.total() < len(self._first):
            self.play_one()
            time.sleep(self.random.uniform(0.02, 0.25))
        self.proxy.heal()

    def play_one(self) -> None:
        """The next one, to its end."""
        name = next(self._order)
        self.played[name] += 1
        if name.startswith("cut"):
            return self._cut(before="before" in name)
        if name in ("black hole", "silent drop", "lost answers"):
            return self._silence(
                "hold" if name == "black hole" else "drop",
                "down" if name == "lost answers" else "both",
            )
        return getattr(self, "_" + name.replace(" ", "_"))()  # type: ignore[no-any-return]

    # ---- the server

    def _kill_one(self) -> None:
        if sessions := self.server.sessions():
            self.server._kill_session(self.random.choice(sessions).id)

    def _kill(self) -> None:
        self.server.kill_sessions()

    def _restart(self) -> None:
        self.server.restart(down=self.random.uniform(0.0, 0.4))

    def _crash(self) -> None:
        self.server.crash(down=self.random.uniform(0.0, 0.4))

    def _freeze(self) -> None:
        self.server.freeze()
        try:
            time.sleep(self.random.uniform(0.05, 0.5))
        finally:
            self.server.thaw()

    # ---- the servers of a topology

    def _promote(self) -> None:
        self.server.promote()
        time.sleep(self.random.uniform(0.5, 1.5))
        self.server.repair()

    def _promote_behind(self) -> None:
        """The server that is promoted was away when the other one did its last writes."""
        cluster = self.server.cluster
        old, new = cluster.writer, cluster.others[0]
        new.stop()
        time.sleep(0.3)
        old.kill()
        new.start()
        self._promote()

    def _switchover(self) -> None:
        self.server.switchover()
        time.sleep(self.random.uniform(0.5, 1.0))

    # ---- the members of a set

    def _step_down(self) -> None:
        self.server.step_down(self.random.uniform(0.2, 1.0))

    def _kill_primary(self) -> None:
        self.server.kill_primary(self.random.uniform(0.2, 1.0))

    def _freeze_primary(self) -> None:
        self.server.freeze_primary(self.random.uniform(0.2, 2.0))

    def _partition(self) -> None:
        self.server.partition(self.random.uniform(0.2, 2.0))

    # ---- the way to it

    def _fin(self) -> None:
        self.proxy.fin()

    def _rst(self) -> None:
        self.proxy.rst()

    def _fin_one(self) -> None:
        self._end_one(self.proxy.fin)

    def _rst_one(self) -> None:
        self._end_one(self.proxy.rst)

    def _end_one(self, end: Callable[..., None]) -> None:
        alive = [each.n for each in self.proxy.connections if each.state == "open"]
        if alive:
            with suppress(ProxyError):  # it has ended meanwhile
                end(on=self.random.choice(alive))

    def _silence(self, mode: Literal["drop", "hold"], way: Literal["both", "down"]) -> None:
        self.proxy.blackhole(mode, way=way)
        time.sleep(self.random.uniform(0.05, 0.5))
        self.proxy.heal()

    def _slow(self) -> None:
        """A network that takes its time: answers that nobody waits for are on their way."""
        self.proxy.latency(self.random.uniform(0.0005, 0.01))
        time.sleep(self.random.uniform(0.1, 0.5))
        self.proxy.heal()

    def _cut(self, *, before: bool) -> None:
        cut = self.proxy.cut_at("COMMIT", before=before, how=self.random.choice(["fin", "rst"]))
        self._cuts.append(cut)
        with suppress(ProxyError):  # it is counted by its hits
            cut.wait(2.0)

    def _rest(self) -> None:
        time.sleep(1.5)

    # ---- the clients

    def _fork(self) -> None:
        self.fork()

    _kill_worker = _fork
