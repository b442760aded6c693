"""Sweeps one body on one driver, in a process of its own: strikes every point of every scene, one
point per run.

Run by run.py: python -m strikes.worker ORDER, a JSON object (see orders.py). It says what it found
as lines of JSON. The file of *progress* says which point it is at, for the case that the process
dies there.
"""

from __future__ import annotations

import contextvars
import gc
import json
import logging
import mmap
import os
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from unbroken.ledger.scope import current, enter, leave
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Fate

from .bodies import BODIES, PATIENCE, Body, DjangoPyMySQLBody, Told
from .orders import PROGRESS, Order
from .points import KEPT, KINDS, Point, Striker, Where, chosen
from .watchdog import Hang, Watchdog

#: Seconds for one point and all that is asked afterwards.
BOUND = 5.0 * PATIENCE


class Blind(Exception):  # noqa: N818 - it is told already
    """The ledger does not see what is sent."""


class Progress:
    """Where the sweep is, in a file that outlives the process."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), PROGRESS)

    def at(self, number: int, scene: int, point: int, label: object) -> None:
        """The sweep is about to strike there."""
        self._map[:] = (
            f"{number} {scene} {point} {label}"[:PROGRESS]
            .ljust(PROGRESS)
            .encode("ascii", "replace")
        )


class Sweep:
    """The sweep of one body on one driver."""

    def __init__(self, order: Order) -> None:
        self.order = order
        kind = BODIES[order.body][0]
        self._kind = (
            DjangoPyMySQLBody if (order.body, order.driver) == ("django", "pymysql") else kind
        )
        self.told = Told()
        self.striker = Striker(Where(order.driver))
        self.dog = Watchdog(BOUND, {urlsplit(order.url).port or 0})
        self.progress = Progress(order.progress)
        self.points = self.missed = 0
        self._fates: dict[str, Fate] = {}  #: what the ledger says of a job
        self._known: dict[int, set[Any]] = {}  #: by pass
        self.body: Body | None = None
        self.label = ""
        self.slowest = 0.0

    def play(self) -> None:
        """All passes."""
        scenes = self.order.scenes or list(self._kind.scenes)
        skip = self.order.skip
        for number, (size, kind) in enumerate(self.order.passes):
            for index, scene in enumerate(scenes):
                first = 0
                if skip is not None:
                    if [number, index] < skip[:2]:
                        continue
                    first = skip[2] + 1 if [number, index] == skip[:2] else 0
                self._scene(number, index, scene, size, kind, first)
        self._discard()
        say(points=self.points, missed=self.missed, slowest=self.slowest, told=summary(self.told))

    def _scene(self, number: int, index: int, scene: str, size: int, kind: str, first: int) -> None:
        before, started = self.points, time.monotonic()
        self._survey(self._body(size), scene)  # what is done once only
        known = set() if self.order.all else self._known.setdefault(number, set())
        points = self._survey(self._body(size), scene)
        points = points if self.order.all else chosen(points, known)
        shares = len(self.order.passes) if self.order.share else 1
        for at in range(number % shares, len(points), self.order.step * shares):
            if at < first:
                continue
            self.progress.at(number, index, at, f"{scene} {points[at]}")
            # In a context of its own, so that a unit of work that a strike left open is not open at
            # the next point.
            context = contextvars.copy_context()
            hit = context.run(self._point, self._body(size), scene, points[at], kind)
            self.points += hit
            self.missed += not hit
            if not hit:
                print(f"missed {scene} {points[at]}", file=sys.stderr)
            if at % 256 == 0:
                gc.collect()
        say(
            scene=scene,
            size=size,
            kind=kind,
            points=self.points - before,
            seconds=time.monotonic() - started,
        )

    def _survey(self, body: Body, scene: str) -> list[Point]:
        """All points of *scene*."""
        for _ in range(3):
            try:
                with body.stage(scene) as job:
                    return self.striker.survey(lambda: self._request(body, job))
            except TimeoutError as error:  # a busy machine may take its time to connect
                print(f"cannot survey {scene}: {error!r}", file=sys.stderr)
        return []

    def _body(self, size: int) -> Body:
        if self.body is None or self.body.size != size:
            self._discard()
            self.body = self._kind(self.order.driver, self.order.url, size, self.told)
            self.body.begin = self.striker.begin
            self.told.point = "none"
            for _ in range(3):
                try:
                    self._warm(self.body)
                    break
                except Exception as error:  # a busy machine may take its time to connect
                    print(f"cannot begin: {error!r}", file=sys.stderr)
        return self.body

    def _warm(self, body: Body) -> None:
        """All connections open, all code loaded."""
        for scene in body.scenes:
            with body.stage(scene) as job:
                body.end()
                job()
                body.end()
        body.let_go(body.hold())
        for job in (body.select, body.write):
            self._seen(body, job)

    def _discard(self) -> None:
        body, self.body = self.body, None
        if body is not None:
            self.dog.begin()
            try:
                body.close()
            except BaseException as error:
                print(f"cannot close after {self.label}: {error!r}", file=sys.stderr)
            self.dog.end()

    # -- one point ---------------------------------------------------------------------------------

    def _point(self, body: Body, scene: str, point: Point, kind: str) -> bool:
        """Strike one point and look what came of it.

        False: the work did not come by there this time.
        """
        self.label = self.told.point = f"{scene}/{body.size}/{kind} {point}"
        body.limits = (KINDS[kind],)
        self.dog.begin()
        try:
            with body.stage(scene) as job:
                self._struck(body, job, point, kind)
        except Hang:
            pass
        if self.striker.struck and kind not in KEPT:
            self._aftermath(body)
        if self.dog.hung:
            self._found("hang", "")
        self.dog.end()
        return self.striker.struck

    def _struck(self, body: Body, job: Callable[[], Any], point: Point, kind: str) -> None:
        """Run *job*, struck, and look how it ended."""
        try:
            self.striker.run(lambda: self._request(body, job), point, KINDS[kind])
        except Hang:
            return
        except AssertionError as wrong:
            if is_ours(wrong) or not self.striker.struck:
                # else it is what a library made of the strike
                self._found("wrong", f"in the job itself: {wrong!r}")
        except BaseException as raised:
            # The strike itself, or what a library made of it.
            if not self.striker.struck:
                self._found("failed", f"with no strike: {raised!r}"[:500])
            elif kind in KEPT:
                self._aftermath(body)
                return
        if self.striker.struck and kind in KEPT:
            self._aftermath(body)

    def _aftermath(self, body: Body) -> None:
        """The next jobs of the same thread, then all places at once."""
        if current() is not None:
            self._found("unit", "the thread is still in a unit of work")
        for job in (body.select, body.write, body.select):
            if not self._innocent(job.__name__, lambda job=job: self._seen(body, job)):
                return
        started = time.monotonic()
        if not self._innocent("place", lambda: self._all_places(body), "place"):
            return
        took = time.monotonic() - started
        self.slowest = max(self.slowest, took)
        if took > PATIENCE and not self.dog.hung:
            self._found("place", f"back after {took:.2f} s")
            self._discard()
            return
        stats = body.stats()
        if (stats.idle, stats.size, stats.used) != (body.size, body.size, 0):
            self._found(
                "rest", f"idle {stats.idle}, size {stats.size}, used {stats.used} of {body.size}"
            )

    def _seen(self, body: Body, job: Callable[[], Any]) -> None:
        """Run *job* as a web request is run; its ledger must know whether something was stored."""
        unit = Unit(observing=True)
        token = enter(unit, id(sys._getframe()))
        try:
            self._request(body, job)
        finally:
            leave(token)
        due = self._fates.setdefault(job.__name__, unit.fate())  # the first time without a strike
        if unit.fate() is not due:
            self._found(
                "blind",
                f"after the next {job.__name__} the ledger says {unit.fate().value!r}, not"
                f" {due.value!r}",
            )
            raise Blind

    def _request(self, body: Body, job: Callable[[], Any]) -> None:
        body.end()
        try:
            job()
        finally:
            body.end()

    def _all_places(self, body: Body) -> None:
        held = body.hold()
        try:
            for conn in held:
                body.ask_raw(conn)
        finally:
            body.let_go(held)

    def _innocent(self, name: str, job: Callable[[], Any], kind: str = "failed") -> bool:
        """Run a job that nothing strikes; what is wrong is told, and the body is made anew."""
        try:
            job()
            return True
        except Hang:
            self._found("hang", f"in the next {name}")
        except Blind:
            pass
        except AssertionError as wrong:
            self._found("wrong", f"the next {name}: {wrong}")
        except BaseException as error:
            kind = "place" if "TimeoutError" in type(error).__name__ else kind
            self._found(kind, f"the next {name}: {type(error).__name__}: {error}"[:600])
        self._discard()
        return False

    def _found(self, what: str, detail: str) -> None:
        say(found=what, at=self.label, detail=detail)


def is_ours(error: BaseException) -> bool:
    """Whether a job raised *error*, and no library that it uses."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and os.path.dirname(
        trace.tb_frame.f_code.co_filename
    ) == os.path.dirname(__file__)


def summary(told: Told) -> dict[str, Any]:
    """What was told, for run.py to compare with what is stored."""
    return {
        "acknowledged": sorted(told.acknowledged), "given_up": sorted(told.given_up),
        "begun": told.begun,
    }  # fmt: skip


def say(**words: Any) -> None:
    """One line of JSON."""
    os.write(1, (json.dumps(words) + "\n").encode())


def main() -> None:
    """Do what the command line says."""
    order = Order(**json.loads(sys.argv[1]))
    logging.getLogger("unbroken").setLevel(logging.CRITICAL)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    logging.getLogger("django").setLevel(logging.CRITICAL)
    # a strike within a finalizer is not raised; what it did is looked at
    sys.unraisablehook = lambda _: None
    Sweep(order).play()
    os._exit(0)  # at its end the interpreter would run finalizers of what is broken


if __name__ == "__main__":
    main()
