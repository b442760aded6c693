"""The whole drill: every contender through every scenario, a few at a time, each lane with servers of its own."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from unbroken_drill.drill.contenders import Entrant
from unbroken_drill.drill.lanes import run_lanes
from unbroken_drill.drill.process import WorkerError, WorkerProcess
from unbroken_drill.drill.results import Contestant, Named, Result, combined
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.stage import Interrupted, Stage, conclude, prepare
from unbroken_drill.drill.traffic import one_line
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


class AnyJob(Protocol):
    """A contender (of any kind) in a scenario (of any kind)."""

    @property
    def entrant(self) -> Contestant:
        """Who."""

    @property
    def scenario(self) -> Named:
        """In what."""

    @property
    def cell(self) -> tuple[str, str, str]:
        """Where its result belongs: server, scenario, contender."""

    @property
    def detail(self) -> str:
        """What happens in it now, in a word; empty: nothing to tell."""


class Watcher(Protocol):
    """Is told how the drill goes, from its lanes' threads; :meth:`tick` from the main thread."""

    def began(self, job: AnyJob) -> None:
        """*job* is under way."""

    def ended(self, job: AnyJob, result: Result, done: int, total: int) -> None:
        """*job* gave *result*."""

    def tick(self) -> None:
        """A moment has passed."""


@dataclass(slots=True)
class Drill:
    """What is to be run. *lanes* contenders run at a time; *seed* decides when requests and kills come."""

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
    _jobs: deque[Job] = field(default_factory=deque)
    _results: dict[tuple[str, str, str], list[Result]] = field(default_factory=dict)
    _total: int = 0
    _done: int = 0

    def run(self, watcher: Watcher) -> list[Result]:
        """Run it all and give one row per contender and scenario. A KeyboardInterrupt ends everything first."""
        # contenders of the same scenario run at about the same time, so that the machine's mood is the same for them
        for backend in dict.fromkeys(entrant.backend for entrant in self.entrants):
            for scenario in self.scenarios:
                for round_ in range(self.repeat):
                    self._jobs.extend(Job(e, scenario, round_) for e in self.entrants if e.backend == backend)
        self._total = len(self._jobs)
        run_lanes(min(self.lanes, self._total), partial(self._lane, watcher), watcher.tick, self._end_all)
        return [combined(rows) for rows in self._results.values()]

    def _end_all(self) -> None:
        """Everything that was started ends: workers at once, each lane then closes its servers."""
        self._stop.set()
        with self._lock:
            for worker in self._crew:
                worker.kill()

    def _lane(self, watcher: Watcher) -> None:
        servers: dict[str, Server] = {}
        try:
            while not self._stop.is_set():
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    return
                watcher.began(job)
                result = self._one(job, servers)
                with self._lock:
                    self._results.setdefault(job.cell, []).append(result)
                    self._done += 1
                    done = self._done
                watcher.ended(job, result, done, self._total)
        finally:
            for server in servers.values():
                with contextlib.suppress(ServerError):
                    server.close()

    def _one(self, job: Job, servers: dict[str, Server]) -> Result:
        entrant, scenario = job.entrant, job.scenario
        result = Result(entrant.backend, scenario.name, entrant.key, entrant.title, entrant.is_ours)
        try:
            server = self._server(entrant.backend, servers)
            options = scenario.options.get(entrant.backend)
            with server.temporarily(**options) if options else contextlib.nullcontext():
                self._play(job, server, result)
        except (WorkerError, ServerError, Interrupted) as error:
            result.failure = one_line(error)
            broken = servers.pop(entrant.backend, None)  # who knows in which state: the next job gets a new one
            if broken is not None:
                broken.close()
        return result

    def _server(self, backend: str, servers: dict[str, Server]) -> Server:
        if backend not in servers:
            server = Server.kinds[backend]({"max_connections": 150})  # MariaDB's default: 100 are PostgreSQL's
            servers[backend] = server.start()
            self.versions.setdefault(backend, version(server))
        servers[backend].start()
        return servers[backend]

    def _play(self, job: Job, server: Server, result: Result) -> None:
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


def version(server: Server) -> str:
    """The running server's version, without the words around it."""
    text = server.admin("SELECT version()")[0][0]
    return text.removeprefix("PostgreSQL ").split("-")[0].split()[0]
