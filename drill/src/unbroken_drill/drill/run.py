"""Every contender through every scenario, a few at a time, each lane with servers of its own."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from unbroken.errors import UnbrokenError
from unbroken_drill.drill.apps.launch import AppError
from unbroken_drill.drill.campaign import Campaign, Watcher
from unbroken_drill.drill.contest import Contender, Ground, Job
from unbroken_drill.drill.measure import version
from unbroken_drill.drill.results import Result, one_line
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.stage import Actor, Stage, perform, seeded
from unbroken_drill.drill.topologies import Site, Topology
from unbroken_drill.servers import Server, ServerError

#: The number of sessions that MariaDB allows by default: PostgreSQL's 100 are too few for a storm.
_OPTIONS: Final[dict[str, dict[str, int]]] = {"postgresql": {"max_connections": 150}}


#: Seconds for a contender's start, its checks and its end, on a usual machine.
_AROUND: Final = 4.0


@dataclass(slots=True)
class Drill:
    """A drill to run. *lanes* contenders run at a time. *seed* decides the times of requests and
    kills.
    """

    contenders: Sequence[Contender]
    scenarios: Sequence[Scenario]
    seed: int
    repeat: int = 1
    lanes: int = 1
    topology: Topology | None = None  #: each lane has a site of it instead of a single server
    versions: dict[str, str] = field(default_factory=dict)  #: of the servers that ran, by backend
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _crew: list[Actor] = field(default_factory=list)

    def jobs(self) -> list[Job]:
        """Contenders of one scenario follow each other: then the machine is equally busy for
        each.
        """
        return [
            Job(contender, scenario, round_)
            for backend in dict.fromkeys(contender.backend for contender in self.contenders)
            for scenario in self.scenarios
            for round_ in range(self.repeat)
            for contender in self.contenders
            if contender.backend == backend
        ]

    def expected(self) -> float:
        """The approximate duration in seconds: the steps' own, and a contender's start and
        end.
        """
        jobs = self.jobs()
        return sum(job.scenario.length + _AROUND for job in jobs) / min(self.lanes, len(jobs) or 1)

    def run(self, watcher: Watcher[Job, Result]) -> list[Result]:
        """Run everything and return one row per contender and scenario. A KeyboardInterrupt ends
        everything first.

        Raises the error that keeps a server from starting.
        """
        wanted = self.jobs()
        rows: dict[tuple[str, str, str], list[Result]] = {}
        for job, result in Campaign(wanted, self._lane, self._stop, self._kill).run(
            self.lanes, watcher
        ):
            rows.setdefault(job.cell, []).append(result)
        return [
            type(rows[cell][0]).combined(rows[cell])
            for cell in dict.fromkeys(job.cell for job in wanted)
            if cell in rows
        ]

    def _kill(self) -> None:
        """End all contenders immediately. Each lane then closes its servers."""
        with self._lock:
            for actor in self._crew:
                actor.kill()

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Callable[[Job], Result]]:
        with Lane(self.topology) as lane:
            yield partial(self._one, lane)

    def _one(self, lane: Lane, job: Job) -> Result:
        contender, result = job.contender, job.contender.result(job.scenario.name)
        ground = lane.ground(contender.backend, contender.db)
        if ground.server is not None and contender.backend not in self.versions:
            self.versions[contender.backend] = version(ground.server)
        try:
            self._play(ground, job, result)
        except (
            UnbrokenError
        ) as error:  # the contender, the server or the proxy: only this row cannot be measured
            result.failure = one_line(error).partition(": ")[2]
            if not isinstance(error, AppError):
                lane.give_up(ground)  # its state is not known: the next job gets another one
        return result

    def _play(self, ground: Ground, job: Job, result: Result) -> None:
        contender, scenario = job.contender, job.scenario
        seed = seeded(self.seed, scenario.name, job.round)
        with contextlib.ExitStack() as exits:
            wanted = (contender.is_proxied and ground.has_one_address) or scenario.needs_proxy
            proxy = ground.proxy if wanted else None
            actor = exits.enter_context(contender.enter(ground, scenario, seed))
            exits.enter_context(self._known(actor))
            stage = Stage(ground.server, proxy, actor, random.Random(seed), self._stop, job.tell)
            exits.callback(stage.make_well)
            # set-up can take longer than the scenario's idle limit, so it comes first
            actor.prepare(stage)
            options = scenario.options(ground.backend)
            if isinstance(ground.server, Server) and options:
                exits.enter_context(ground.server.temporarily(**options))
                exits.callback(stage.make_well)
            perform(stage, scenario.steps, result)

    @contextlib.contextmanager
    def _known(self, actor: Actor) -> Iterator[None]:
        with self._lock:
            self._crew.append(actor)
        try:
            yield
        finally:
            with self._lock:
                self._crew.remove(actor)


class Lane:
    """Servers, each with a proxy before it if necessary, and a folder. A context manager that ends
    them.
    """

    def __init__(self, topology: Topology | None = None) -> None:
        self._topology = topology
        self._grounds: dict[str, Ground] = {}
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Lane:
        self._folder = Path(tempfile.mkdtemp(prefix="unbroken-drill-"))
        self._exits.callback(shutil.rmtree, self._folder, ignore_errors=True)
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            for ground in list(self._grounds.values()):
                self.give_up(ground)
        finally:
            self._exits.close()

    def ground(self, backend: str, db: str | None) -> Ground:
        """Return the ground for this kind of server, with a running server; *db*: the URL of an
        existing one.

        Raises ServerError if the server does not start.
        """
        if backend not in self._grounds:
            self._grounds[backend] = self._made(backend, db)
        ground = self._grounds[backend]
        if ground.server is not None:
            ground.server.start()
        return ground

    def _made(self, backend: str, db: str | None) -> Ground:
        with contextlib.ExitStack() as exits:
            server: Server | Site | None = None
            url = db
            if self._topology is not None:
                server = exits.enter_context(self._topology.site())
                url = server.url()
            elif url is None:
                server = exits.enter_context(Server.kinds[backend](_OPTIONS.get(backend)))
                url = server.url()
            return Ground(backend, server, url, self._folder, exits.pop_all())

    def give_up(self, ground: Ground) -> None:
        """End its server and its proxy."""
        self._grounds.pop(ground.backend, None)
        with contextlib.suppress(ServerError):
            ground.exits.close()
