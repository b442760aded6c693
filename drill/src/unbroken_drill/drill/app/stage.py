"""One app, before one server and one proxy, in one scenario."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from unbroken_drill import FaultProxy
from unbroken_drill.drill.app.launch import App, AppError
from unbroken_drill.drill.app.results import AppResult, Mark
from unbroken_drill.drill.app.steps import Step
from unbroken_drill.drill.app.traffic import OK, Reply, Traffic
from unbroken_drill.drill.campaign import Interrupted
from unbroken_drill.drill.measure import close_wait
from unbroken_drill.servers import Server

#: A request while the app starts: it may answer late, but then it is asked again.
_GLANCE: Final = 2.0
_PACE: Final = 0.05
#: After the last step the app is asked so often, one request after another, whether it is well.
CHECKS: Final = 20
_ENOUGH: Final = 5  #: failures of these say enough
#: How long after the last step CLOSE_WAIT is counted, so that whoever notices at all has noticed.
SETTLED: Final = 1.0


@dataclass(slots=True)
class Scene:
    """What the steps act on. *server* is None where one that is not ours is drilled (``--db``)."""

    server: Server | None
    proxy: FaultProxy
    app: App
    traffic: Traffic
    stop: threading.Event  #: set when the whole drill is to end
    start_timeout: float
    tell: Callable[[str], None]  #: is told what happens now
    marks: list[Mark] = field(default_factory=list)
    #: faults that last: text and beginning
    _open: list[tuple[str, float]] = field(default_factory=list)

    # ---- the app

    def wait(self, seconds: float) -> None:
        """Sleep; raises Interrupted when the drill is told to stop."""
        if self.stop.wait(max(0.0, seconds)):
            raise Interrupted

    def bring_up(self) -> None:
        """Start the app and wait until every URL answers well.

        Raises AppError with what it said instead.
        """
        self.tell("start of the app")
        self.app.start()
        deadline = time.monotonic() + self.start_timeout
        while True:
            replies = self.traffic.ask(1, _GLANCE)
            bad = [reply for reply in replies if reply.outcome != OK]
            if not bad:
                return
            if not self.app.is_running:
                raise AppError(
                    f"the app ended with status {self.app.status} while starting: {self.app.said()}"
                )
            if time.monotonic() > deadline:
                raise AppError(f"{self._refusal(bad[0])}; {self.app.said()}")
            self.wait(_PACE)

    def _refusal(self, reply: Reply) -> str:
        target = self.traffic.targets[reply.target]
        answer = f"status {reply.status} ({reply.line})" if reply.status else reply.line
        return (
            f"before any fault, {target.method} {target.url} does not work within"
            f" {self.start_timeout:.0f} s: {answer}"
        )

    def settle(self) -> None:
        """End the traffic, and wait for what is under way."""
        self.traffic.pause()
        while self.traffic.is_busy:
            self.wait(_PACE)

    # ---- the steps

    def play(self, step: Step) -> None:
        """Do one step, and note on the timeline what it was."""
        self.tell(step.text)
        now = time.monotonic()
        if step.verb.begins:
            self._open.append((step.text, now))
        _DO.get(step.verb.name, Scene._on_proxy)(self, step)
        if step.verb.ends:
            self.end_marks()
        if step.verb.strikes:
            self.marks.append(Mark(step.text, now, now))

    def _run(self, step: Step) -> None:
        self.traffic.start()
        self.wait(step.values["seconds"])

    def _quiet(self, step: Step) -> None:
        self.settle()
        self.wait(step.values["seconds"])

    @property
    def _ours(self) -> Server:
        assert self.server is not None, "a scenario that needs a private server"
        return self.server

    def _stop(self, _: Step) -> None:
        self._ours.stop()
        # what nobody listens on refuses; the proxy alone would accept, and then hang up
        self.proxy.refuse()

    def _crash(self, _: Step) -> None:
        self._ours.kill()
        self.proxy.refuse()

    def _start(self, _: Step) -> None:
        self._ours.start()
        self.proxy.heal()

    def _freeze(self, _: Step) -> None:
        self._ours.freeze()

    def _thaw(self, _: Step) -> None:
        self._ours.thaw()

    def _kill(self, _: Step) -> None:
        self._ours.kill_sessions()

    def _on_proxy(self, step: Step) -> None:
        values: dict[str, Any] = dict(step.values)
        first = [values.pop(value.name) for value in step.verb.values if value.name in _POSITIONAL]
        getattr(self.proxy, step.verb.name)(*first, **values)

    def end_marks(self) -> None:
        """What lasts until the end of the scenario ends now."""
        now = time.monotonic()
        self.marks += [Mark(text, begin, now) for text, begin in self._open]
        self._open.clear()

    def make_well(self) -> None:
        """Whatever happened: the server answers and the network lets everything through."""
        if self.server is not None:
            if self.server.is_running:
                self.server.thaw()
            self.server.start()
        self.proxy.heal()


#: What the proxy's verbs take by place; the rest by name.
_POSITIONAL: Final = frozenset({"mode", "connections", "statement"})

_DO: Final[dict[str, Callable[[Scene, Step], None]]] = {
    "run": Scene._run, "quiet": Scene._quiet, "stop": Scene._stop, "crash": Scene._crash,
    "start": Scene._start, "freeze": Scene._freeze, "thaw": Scene._thaw, "kill": Scene._kill,
}  # fmt: skip


def perform(scene: Scene, steps: tuple[Step, ...], result: AppResult) -> None:
    """Play *steps* for an app that is not running yet, and write down in *result* what came of
    it.
    """
    first = next(at for at, step in enumerate(steps) if step.verb.name == "run")
    for step in steps[:first]:
        scene.play(step)  # how the network is set up, before anything connects
    scene.bring_up()
    began = time.monotonic()
    try:
        for step in steps[first:]:
            scene.play(step)
        scene.settle()
    finally:
        scene.traffic.pause()
        scene.make_well()
    scene.end_marks()
    result.take(scene.traffic.replies, scene.marks, began)
    scene.wait(SETTLED)
    _see_connections(scene, result)
    _see_health(scene, result)


def _see_connections(scene: Scene, result: AppResult) -> None:
    result.close_wait = close_wait(*scene.app.pids, port=scene.proxy.port)
    if scene.server is not None:
        result.sessions = len(scene.server.sessions())
    else:
        result.sessions = sum(each.state == "open" for each in scene.proxy.connections)


def _see_health(scene: Scene, result: AppResult) -> None:
    """Is all well by itself? If not, an administrator would restart the app now: so do we, and say
    whether it helped.
    """
    scene.tell("is it well?")
    if not scene.app.is_running:
        result.ended = f"status {scene.app.status}: {scene.app.said()}"
    for _ in range(CHECKS):
        scene.wait(0.0)
        result.unwell += sum(reply.outcome != OK for reply in scene.traffic.ask(1, _GLANCE))
        if result.unwell >= _ENOUGH:
            break
    if result.unwell:
        result.needed_restart = True
        scene.app.stop()
        try:
            scene.bring_up()
        except AppError:
            result.restart_helped = False
        else:
            result.restart_helped = True


def seeded(seed: int, scenario: str) -> int:
    """The seed of one scenario's traffic: the same for every app, so that each meets the same
    requests.
    """
    return random.Random(f"{seed} {scenario}").randrange(2**32)
