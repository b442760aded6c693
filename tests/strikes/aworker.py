"""As worker.py, for asyncio: strikes every await of every scene in several ways, and every line of
a task's steps.

The kinds: ``cancel`` cancels the task as soon as it waits; ``late`` once what it waits for is
there, before it has seen it; ``foreign`` raises an exception at the await; ``line`` raises one at a
point of a step, as points.py does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from .abodies import ABODIES, AsyncBody
from .bodies import PATIENCE, Told
from .orders import Order
from .points import HardStrike, Point, Strike, Striker, Where, chosen
from .watchdog import Hang, Watchdog
from .worker import BOUND, Progress, say, summary

KINDS: dict[str, type[BaseException]] = {
    "cancel": asyncio.CancelledError, "late": asyncio.CancelledError, "foreign": Strike,
    "line": HardStrike,
}  # fmt: skip


class Struck:
    """Awaits *work*, struck at its await number *at*, or at a point of a step.

    ``struck`` says where that was, or None.
    """

    def __init__(
        self, work: Awaitable[Any], at: int | Point | None, kind: str, striker: Striker
    ) -> None:
        self._coro: Any = work
        self._at, self._kind, self._striker = at, kind, striker
        self._awaits = 0
        self.struck: str | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        step, argument = self._coro.send, None
        traced = not isinstance(self._at, int)
        while True:
            try:
                waits_for = self._striker.step(step, argument) if traced else step(argument)
            except StopIteration as end:
                return end.value
            finally:
                if traced and self._striker.struck:
                    self.struck = str(self._at)
            step, argument = self._coro.send, None
            if self._awaits == self._at:
                self.struck = _where(self._coro)
                if self._kind == "foreign":
                    if waits_for is not None:
                        waits_for._asyncio_future_blocking = False
                    step, argument = self._coro.throw, KINDS["foreign"]("struck")
                    self._awaits += 1
                    continue
                self._cancel(waits_for)
            self._awaits += 1
            try:
                yield waits_for
            except BaseException as error:
                step, argument = self._coro.throw, error

    def _cancel(self, waits_for: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._kind == "cancel":
            task.cancel()
        elif waits_for is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            waits_for.add_done_callback(lambda _: task.cancel())


async def _run(struck: Struck) -> None:
    await struck


def _where(coro: Any) -> str:
    """The innermost frames of a suspended coroutine."""
    names = []
    inside = coro
    while inside is not None:
        frame = getattr(inside, "cr_frame", None) or getattr(inside, "gi_frame", None)
        if frame is not None:
            names.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        inside = getattr(inside, "cr_await", None) or getattr(inside, "gi_yieldfrom", None)
    return ">".join(names[-4:])


class AsyncSweep:
    """The sweep of one body on one driver."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._kind = ABODIES[order.body][0]
        self.told = Told()
        self.striker = Striker(Where(order.driver))
        self.dog = Watchdog(2 * BOUND, {urlsplit(order.url).port or 0})
        self.progress = Progress(order.progress)
        self.points = self.missed = 0
        self._known: dict[int, set[Any]] = {}  #: by pass
        self.body: AsyncBody | None = None
        self.label = ""
        self.slowest = 0.0

    async def play(self) -> None:
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
                await self._scene(number, index, scene, size, kind, first)
        await self._discard()
        say(points=self.points, missed=self.missed, slowest=self.slowest, told=summary(self.told))

    async def _scene(
        self, number: int, index: int, scene: str, size: int, kind: str, first: int
    ) -> None:
        before, started = self.points, time.monotonic()
        for at, point in await self._points(number, scene, size, kind):
            if at < first or (kind == "line" and at % self.order.step):
                continue
            self.progress.at(number, index, at, f"{scene} {kind} {point}")
            hit = await self._point(await self._body(size), scene, point, kind)
            if kind != "line" and not hit:
                break
            self.points += hit
            self.missed += not hit
            if at % 256 == 0:
                gc.collect()
        say(
            scene=scene,
            size=size,
            kind=kind,
            points=self.points - before,
            seconds=time.monotonic() - started,
        )

    async def _points(
        self, number: int, scene: str, size: int, kind: str
    ) -> Iterable[tuple[int, int | Point]]:
        """Awaits, or the points of *scene*."""
        if kind != "line":
            return enumerate(count())
        await self._survey(await self._body(size), scene)  # what is done once only
        points = await self._survey(await self._body(size), scene)
        if self.order.all:
            return enumerate(points)
        return enumerate(chosen(points, self._known.setdefault(number, set())))

    async def _survey(self, body: AsyncBody, scene: str) -> list[Point]:
        """All points of *scene*."""
        for _ in range(3):
            try:
                async with body.stage(scene) as job:
                    self.striker.look()
                    await asyncio.create_task(_run(Struck(job(), None, "line", self.striker)))
                    return self.striker.points()
            except TimeoutError as error:  # a busy machine may take its time to connect
                print(f"cannot survey {scene}: {error!r}", file=sys.stderr)
        return []

    async def _body(self, size: int) -> AsyncBody:
        if self.body is None or self.body.size != size:
            await self._discard()
            self.body = self._kind(self.order.driver, self.order.url, size, self.told)
            self.body.begin = self.striker.begin
            self.told.point = "none"
            for _ in range(3):
                try:
                    await self._warm(self.body)
                    break
                except Exception as error:  # a busy machine may take its time to connect
                    print(f"cannot begin: {error!r}", file=sys.stderr)
        return self.body

    async def _warm(self, body: AsyncBody) -> None:
        for scene in body.scenes:
            async with body.stage(scene) as job:
                await asyncio.create_task(job())  # type: ignore[arg-type] # a coroutine
        await body.let_go(await body.hold())

    async def _discard(self) -> None:
        body, self.body = self.body, None
        if body is not None:
            self.dog.begin()
            try:
                async with asyncio.timeout(BOUND):
                    await body.close()
            except BaseException as error:
                print(f"cannot close after {self.label}: {error!r}", file=sys.stderr)
            self.dog.end()

    # -- one point ---------------------------------------------------------------------------------

    async def _point(self, body: AsyncBody, scene: str, at: int | Point, kind: str) -> bool:
        """Strike one point and look what came of it. False: the work did not come by there."""
        self.told.point = f"{scene}/{body.size}/{kind}"
        body.limits = (KINDS[kind],)
        self.dog.begin()
        try:
            async with body.stage(scene) as job:
                wrong, struck = await self._struck(job, at, kind)
        except Hang:
            wrong, struck = "hang", "?"
        if struck is None and wrong is None:
            self.dog.end()
            return False
        self.label = self.told.point = f"{self.told.point} {struck}"
        if wrong is not None:
            what = wrong.partition(":")[0]
            self._found(what if what in ("wrong", "hang") else "failed", wrong)
        await self._aftermath(body)
        if self.dog.hung:
            self._found("hang", "the loop stood still")
        self.dog.end()
        return struck is not None

    async def _struck(
        self, job: Callable[[], Awaitable[None]], at: int | Point, kind: str
    ) -> tuple[str | None, str | None]:
        """Run *job*, struck: what is wrong with how it ended, and where it was struck."""
        if isinstance(at, Point):
            self.striker.arm(at, KINDS[kind])
        struck = Struck(job(), at, kind, self.striker)
        task = asyncio.create_task(_run(struck))
        done, _ = await asyncio.wait({task}, timeout=BOUND)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            return f"hang: it did not end in {BOUND:.1f} s", struck.struck or "?"
        if task.cancelled():
            return None, struck.struck
        error = task.exception()
        if isinstance(error, AssertionError):
            return f"wrong: {error}", struck.struck
        if error is not None and struck.struck is None:
            return f"{error!r}"[:500], "nowhere"
        return None, struck.struck

    async def _aftermath(self, body: AsyncBody) -> None:
        """The next jobs, then all places at once."""
        for job in (body.select, body.write, body.select):
            if not await self._innocent(job.__name__, job):
                return
        started = time.monotonic()
        if not await self._innocent("place", lambda: self._all_places(body), "place"):
            return
        took = time.monotonic() - started
        self.slowest = max(self.slowest, took)
        if took > PATIENCE and not self.dog.hung:
            self._found("place", f"back after {took:.2f} s")
            await self._discard()
            return
        stats = body.stats()
        if (stats.idle, stats.size, stats.used) != (body.size, body.size, 0):
            self._found(
                "rest", f"idle {stats.idle}, size {stats.size}, used {stats.used} of {body.size}"
            )

    async def _all_places(self, body: AsyncBody) -> None:
        held = await body.hold()
        try:
            for each in held:
                await body.ask_raw(each)
        finally:
            await body.let_go(held)

    async def _innocent(self, name: str, job: Callable[[], Any], kind: str = "failed") -> bool:
        """Run a job that nothing strikes; what is wrong is told, and the body is made anew."""
        task = asyncio.create_task(job())
        done, _ = await asyncio.wait({task}, timeout=BOUND)
        error = task.exception() if done and not task.cancelled() else None
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            self._found("hang", f"in the next {name}")
        elif error is None and not task.cancelled():
            return True
        elif isinstance(error, AssertionError):
            self._found("wrong", f"the next {name}: {error}")
        else:
            kind = "place" if "TimeoutError" in type(error).__name__ else kind
            self._found(kind, f"the next {name}: {type(error).__name__}: {error}"[:600])
        await self._discard()
        return False

    def _found(self, what: str, detail: str) -> None:
        say(found=what, at=self.label, detail=detail)


def main() -> None:
    """Do what the command line says."""
    order = Order(**json.loads(sys.argv[1]))
    for name in ("unbroken", "sqlalchemy", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # a strike within a finalizer is not raised; what it did is looked at
    sys.unraisablehook = lambda _: None
    asyncio.run(AsyncSweep(order).play())


if __name__ == "__main__":
    main()
