"""The scenario engine: it plays one scenario with one contender, before one server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from unbroken_drill import FaultProxy
from unbroken_drill.drill.campaign import Interrupted
from unbroken_drill.drill.measure import Probe, close_wait
from unbroken_drill.drill.results import Mark, Result
from unbroken_drill.drill.steps import Step
from unbroken_drill.drill.topologies import Site
from unbroken_drill.servers import Server

#: Seconds between the last step and the count of CLOSE_WAIT. A contender that notices lost
#: connections at all has noticed by then.
SETTLED: Final = 1.0

#: The probe logs in again each millisecond, and a contender can be a little earlier: its answer
#: counts too.
_PROBE_LAG: Final = 0.05


class Actor(Protocol):
    """A contender at work. A Stage plays a scenario with it."""

    @property
    def pids(self) -> Sequence[int]:
        """Its processes."""

    @property
    def port(self) -> int | None:
        """The port of its database connections. None: count all of its sockets."""

    def prepare(self, stage: Stage) -> None:
        """Set up the things that it needs, while the network works."""

    def bring_up(self, stage: Stage) -> None:
        """Make it ready for requests."""

    def start(self) -> None:
        """Begin to send requests, unless they are being sent already."""

    def settle(self, stage: Stage) -> None:
        """Stop sending requests, and wait for those in progress."""

    def do(self, step: Step, stage: Stage) -> None:
        """Do a step that only this kind of contender supports."""

    def conclude(self, stage: Stage, result: Result, began: float) -> None:
        """After the end of all faults, write in *result* the outcome since *began*."""

    def kill(self) -> None:
        """End it immediately if it could keep its lane waiting. Called from another thread."""


@dataclass(slots=True)
class Stage:
    """The objects that the steps act on.

    *server* is None if the user's own server is drilled (``--db``), and a site if there are
    several. *proxy* is None if there is none in between.
    """

    server: Server | Site | None
    proxy: FaultProxy | None
    actor: Actor
    random: random.Random
    stop: threading.Event  #: set when the whole drill must end
    tell: Callable[[str], None] = lambda _: None  #: gets the current step
    marks: list[Mark] = field(default_factory=list)
    stuck: list[int | None] = field(default_factory=list)  #: the counts of the steps ``look``
    _open: list[tuple[str, float]] = field(
        default_factory=list
    )  #: faults that last: text and beginning

    def wait(self, seconds: float) -> None:
        """Sleep. Raises Interrupted if the drill must end."""
        if self.stop.wait(max(0.0, seconds)):
            raise Interrupted

    def play(self, step: Step) -> None:
        """Do one step, and note it on the timeline."""
        self.tell(step.text)
        now = time.monotonic()
        if step.verb.begins:
            self._open.append((step.text, now))
        since, until = _DO.get(step.verb.name, _BY_ACTOR.get(step.verb.actor, Stage._on_proxy))(
            self, step
        ) or (None, None)
        if step.verb.ends:
            self.end_marks(since, until)
        if step.verb.strikes:
            now = time.monotonic()
            self.marks.append(Mark(step.text, now, now))

    def end_marks(self, since: float | None = None, until: float | None = None) -> None:
        """End the lasting faults now, or at *until*."""
        end = time.monotonic() if until is None else until
        self.marks += [Mark(text, begin, max(begin, end), since) for text, begin in self._open]
        self._open.clear()

    def make_well(self) -> None:
        """Let the server answer and the network pass everything, at whichever step the scenario
        ended.
        """
        if self.server is not None:
            if self.server.is_running:
                self.server.thaw()
            self.server.start()
        if self.proxy is not None:
            self.proxy.heal()

    def count_stuck(self) -> int | None:
        """Return the most sockets in CLOSE_WAIT that the scenario's looks found, or the current
        number after a moment.
        """
        if not self.stuck:
            self.wait(SETTLED)
            self._look_now()
        known = [count for count in self.stuck if count is not None]
        return max(known) if known else None

    # ---- the steps

    def _run(self, step: Step) -> None:
        self.actor.start()
        self.wait(step.values["seconds"] + step.values["jitter"] * self.random.random())

    def _quiet(self, step: Step) -> None:
        self.actor.settle(self)
        self.wait(step.values["seconds"])

    def _look(self, step: Step) -> None:
        self.wait(step.values["seconds"])
        self._look_now()

    def _look_now(self) -> None:
        self.stuck.append(close_wait(*self.actor.pids, port=self.actor.port))

    @property
    def _ours(self) -> Server:
        assert isinstance(self.server, Server), "a scenario that needs a private server"
        return self.server

    @property
    def _site(self) -> Site:
        assert isinstance(self.server, Site), "a scenario that needs a topology"
        return self.server

    def _stop(self, _: Step) -> None:
        self._ours.stop()
        self._refuse()

    def _crash(self, _: Step) -> None:
        self._ours.kill()
        self._refuse()

    def _refuse(self) -> None:
        if self.proxy is not None:
            # like a port on which nobody listens; the proxy alone would accept, then hang up
            self.proxy.refuse()

    def _start(self, _: Step) -> tuple[float, float] | None:
        """Return when an answer counts as a recovery, and when the server accepted. None: now."""
        if self.proxy is not None:
            self._ours.start()
            self.proxy.heal()
            return None
        down = time.monotonic()
        probe = Probe(self._ours)
        probe.start()
        self._ours.start()
        up = probe.result()
        return max(down, up - _PROBE_LAG), up

    def _freeze(self, _: Step) -> None:
        self._ours.freeze()

    def _thaw(self, _: Step) -> None:
        self._ours.thaw()

    def _kill(self, _: Step) -> None:
        assert self.server is not None, "a scenario that needs a private server"
        self.server.kill_sessions()

    def _by_site(self, step: Step) -> None:
        getattr(self._site, step.verb.name)(**step.values)

    def _demote(self, step: Step) -> None:
        following = self._site.demote()
        self.wait(step.values["seconds"])
        self._site.elect(following)

    def _rotate(self, step: Step) -> None:
        self._site.rotate()
        self.wait(step.values["seconds"])
        self._site.publish()

    def _by_contender(self, step: Step) -> None:
        self.actor.do(step, self)

    def _on_proxy(self, step: Step) -> None:
        assert self.proxy is not None, "a scenario that needs a proxy"
        values: dict[str, Any] = dict(step.values)
        first = [values.pop(value.name) for value in step.verb.values if value.name in _POSITIONAL]
        getattr(self.proxy, step.verb.name)(*first, **values)


#: The arguments that the proxy's verbs take by position; the rest by name.
_POSITIONAL: Final = frozenset({"mode", "connections", "statement"})

_Doing = Callable[[Stage, Step], tuple[float, float] | None]
_DO: Final[dict[str, _Doing]] = {
    "run": Stage._run, "quiet": Stage._quiet, "look": Stage._look, "stop": Stage._stop,
    "crash": Stage._crash, "start": Stage._start, "freeze": Stage._freeze, "thaw": Stage._thaw,
    "kill": Stage._kill, "demote": Stage._demote,
    "rotate": Stage._rotate,
}  # fmt: skip
_BY_ACTOR: Final[dict[str, _Doing]] = {
    "contender": Stage._by_contender, "proxy": Stage._on_proxy, "site": Stage._by_site,
}  # fmt: skip


def perform(stage: Stage, steps: Sequence[Step], result: Result) -> None:
    """Play *steps* for a contender that is prepared and not started yet. Write the outcome in
    *result*.
    """
    first = next(at for at, step in enumerate(steps) if step.verb.is_traffic)
    for step in steps[:first]:
        stage.play(step)  # the setup of the network, before anything connects
    stage.actor.bring_up(stage)
    began = time.monotonic()
    try:
        for step in steps[first:]:
            stage.play(step)
        stage.actor.settle(stage)
    finally:
        stage.make_well()
    stage.end_marks()
    stage.actor.conclude(stage, result, began)


def seeded(seed: int, scenario: str, round_: int = 0) -> int:
    """Return the seed of one scenario's traffic. It is the same for every contender, so that each
    gets the same requests.
    """
    return random.Random(f"{seed} {scenario} {round_}").randrange(2**32)
