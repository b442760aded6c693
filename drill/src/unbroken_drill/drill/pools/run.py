"""The drill of pools: every contender through every scenario, each lane with servers of its own."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from unbroken_drill.drill.campaign import Campaign, Interrupted, Watcher
from unbroken_drill.drill.measure import version
from unbroken_drill.drill.pools.contenders import Entrant
from unbroken_drill.drill.pools.process import WorkerError, WorkerProcess
from unbroken_drill.drill.pools.results import PoolResult, combined
from unbroken_drill.drill.pools.scenarios import Scenario
from unbroken_drill.drill.pools.stage import Stage, conclude, prepare
from unbroken_drill.drill.results import one_line
from unbroken_drill.servers import Server, ServerError


@dataclass(frozen=True, slots=True)
class Job:
    """One contender in one scenario, for the n-th time."""

    entrant: Entrant
    scenario: Scenario
    round: int = 0

    @property
    def cell(self) -> tuple[str, str, str]:
        """Where its result belongs: server, scenario, contender."""
        return self.entrant.backend, self.scenario.name, self.entrant.key

    @property
    def detail(self) -> str:
        """Nothing: it is over in seconds."""
        return ""


@dataclass(slots=True)
class Drill:
    """What is to be run. *lanes* contenders run at a time; *seed* decides when requests and kills
    come.
    """

    entrants: Sequence[Entrant]
    scenarios: Sequence[Scenario]
    seed: int
    repeat: int = 1
    lanes: int = 1
    green: bool = False  #: greenlets for threads
    versions: dict[str, str] = field(default_factory=dict)  #: of the servers that ran, by backend
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _crew: list[WorkerProcess] = field(default_factory=list)

    def jobs(self) -> list[Job]:
        """Contenders of the same scenario follow each other, so that the machine's mood is the same
        for them.
        """
        return [
            Job(entrant, scenario, round_)
            for backend in dict.fromkeys(entrant.backend for entrant in self.entrants)
            for scenario in self.scenarios
            for round_ in range(self.repeat)
            for entrant in self.entrants
            if entrant.backend == backend
        ]

    def run(self, watcher: Watcher) -> list[PoolResult]:
        """Run it all and give one row per contender and scenario.

        A KeyboardInterrupt ends everything first.
        """
        campaign = Campaign(self.jobs(), self._lane, self._stop, self._kill)
        rows: dict[tuple[str, str, str], list[PoolResult]] = {}
        for job, result in campaign.run(self.lanes, watcher):
            rows.setdefault(job.cell, []).append(result)
        return [combined(each) for each in rows.values()]

    def _kill(self) -> None:
        """Workers end at once; each lane then closes its servers."""
        with self._lock:
            for worker in self._crew:
                worker.kill()

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Callable[[Job], PoolResult]]:
        servers: dict[str, Server] = {}
        try:
            yield lambda job: self._one(job, servers)
        finally:
            for server in servers.values():
                with contextlib.suppress(ServerError):
                    server.close()

    def _one(self, job: Job, servers: dict[str, Server]) -> PoolResult:
        entrant, scenario = job.entrant, job.scenario
        result = PoolResult(
            entrant.backend, scenario.name, entrant.key, entrant.title, entrant.is_ours
        )
        try:
            server = self._server(entrant.backend, servers)
            options = scenario.options.get(entrant.backend)
            with server.temporarily(**options) if options else contextlib.nullcontext():
                self._play(job, server, result)
        except (WorkerError, ServerError, Interrupted) as error:
            result.failure = one_line(error)
            # nobody knows in which state: the next job gets a new one
            broken = servers.pop(entrant.backend, None)
            if broken is not None:
                broken.close()
        return result

    def _server(self, backend: str, servers: dict[str, Server]) -> Server:
        if backend not in servers:
            # MariaDB's default: 100 are PostgreSQL's
            server = Server.kinds[backend]({"max_connections": 150})
            servers[backend] = server.start()
            self.versions.setdefault(backend, version(server))
        servers[backend].start()
        return servers[backend]

    def _play(self, job: Job, server: Server, result: PoolResult) -> None:
        seed = random.Random(f"{self.seed} {job.scenario.name} {job.round}").randrange(2**32)
        prepare(server)
        with WorkerProcess(green=self.green) as worker:
            with self._lock:
                self._crew.append(worker)
            try:
                worker.setup(job.entrant, server, job.scenario.plan, seed)
                stage = Stage(server, worker, random.Random(seed), self._stop)
                job.scenario.act(stage)
                conclude(stage, result)
            finally:
                with self._lock:
                    self._crew.remove(worker)
