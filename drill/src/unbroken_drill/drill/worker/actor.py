"""A small app as a contender: it works in a process of its own, where its requests begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from unbroken_drill.drill.contenders import Entrant
from unbroken_drill.drill.contenders.base import OK, Settings
from unbroken_drill.drill.contest import Ground
from unbroken_drill.drill.measure import journal, sessions_left
from unbroken_drill.drill.results import Result
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.stage import Stage
from unbroken_drill.drill.steps import Step
from unbroken_drill.drill.topologies import Site
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker import workload
from unbroken_drill.drill.worker.load import WATCHDOG, Record
from unbroken_drill.drill.worker.process import WorkerProcess
from unbroken_drill.drill.worker.results import SmallResult, recoveries
from unbroken_drill.servers import Server

THREADS: Final = 4
EVERY: Final = (
    0.02  #: seconds between a thread's requests: 50 a second, so an outage of 1.5 s meets up to 300
)

#: Commands that wait for requests in progress.
_PATIENCE: Final = WATCHDOG + 15.0


@dataclass(frozen=True, slots=True)
class Small:
    """A :class:`~unbroken_drill.drill.contest.Contender`. *green*: greenlets instead of threads."""

    entrant: Entrant
    green: bool = False

    @property
    def key(self) -> str:
        """Its spelling for ``--contenders``."""
        return self.entrant.key

    @property
    def title(self) -> str:
        """Its name in the table."""
        return self.entrant.title

    @property
    def backend(self) -> str:
        """The kind of its server."""
        return self.entrant.backend

    @property
    def is_ours(self) -> bool:
        """Whether it must keep unbroken's contract."""
        return self.entrant.is_ours

    @property
    def db(self) -> None:
        """Always None: it gets a private server."""

    @property
    def is_proxied(self) -> bool:
        """Always false: it uses the proxy only where a step needs it."""
        return False

    def result(self, scenario: str) -> SmallResult:
        """Return an empty row."""
        return SmallResult(self.backend, scenario, self.key, self.title, self.is_ours)

    @contextmanager
    def enter(self, ground: Ground, scenario: Scenario, seed: int) -> Iterator[SmallActor]:
        """Yield a new process, before a server without sessions and with fresh tables."""
        server = ground.server
        assert server is not None
        server.kill_sessions()
        server.admin(workload.tables(server.backend, server.user))
        where = ground.where(self.entrant.driver, proxied=scenario.needs_proxy)
        with WorkerProcess(green=self.green) as worker:
            yield SmallActor(worker, self.entrant, server, where, scenario.pool, seed)


@dataclass(slots=True)
class SmallActor:
    """An :class:`~unbroken_drill.drill.stage.Actor`: one small app in its worker process."""

    worker: WorkerProcess
    entrant: Entrant
    server: Server | Site
    where: Where
    settings: Settings
    seed: int
    threads: int = THREADS  #: one of them writes
    every: float = EVERY
    is_sending: bool = False

    @property
    def pids(self) -> list[int]:
        """The worker's process."""
        return [self.worker.pid]

    @property
    def port(self) -> None:
        """Always None: each of its sockets leads to the database."""

    def prepare(self, stage: Stage) -> None:
        """Let it make its pool."""
        del stage
        self.worker.setup(self.entrant, self.where, self.settings, self.seed)

    def bring_up(self, stage: Stage) -> None:
        """Do nothing: it is running already."""

    def start(self) -> None:
        """Begin steady traffic."""
        if not self.is_sending:
            self.is_sending = True
            self.worker.ask("start", readers=self.threads - 1, writers=1, every=self.every)

    def settle(self, stage: Stage) -> None:
        """End it, and wait for the requests in progress up to the watchdog's bound."""
        del stage
        if self.is_sending:
            self.is_sending = False
            self.worker.ask("pause", _PATIENCE)

    def do(self, step: Step, stage: Stage) -> None:
        """Do a step that happens inside the app."""
        values: dict[str, Any] = dict(step.values)
        match step.verb.name:
            case "users":
                self.threads, self.every = values["threads"], values["every"]
            case "burst":
                self.worker.ask("burst", 60.0, **values)
            case "fork":
                self.settle(stage)
                self.worker.ask("fork", 90.0, children=values["children"], times=values["asks"])
            case name:
                self.worker.ask("careless", requests=values["requests"], keep=name == "hold")
                stage.wait(0.3)
                self.worker.ask("collect")

    def conclude(self, stage: Stage, result: Result, began: float) -> None:
        """Check whether the app works, read its records, and compare them with the journal."""
        del began
        assert isinstance(result, SmallResult)
        stuck = stage.count_stuck()
        before = len(self.worker.ask("report")["records"])
        self.worker.ask("burst", _PATIENCE, threads=4, each=2)
        report = self.worker.ask("report")
        records = [Record(*fields) for fields in report["records"]]
        result.count(records[:before])
        result.unwell = sum(record.outcome != OK for record in records[before:])
        result.sessions = len(self.server.sessions())
        result.hung = report["hung"]
        if result.hung:
            result.slowest = max(result.slowest, WATCHDOG)
        result.samples = report["samples"]
        result.recoveries = recoveries(records, stage.marks)
        result.close_wait = stuck
        result.check_journal(records, journal(self.server))
        self.worker.ask("close", 10.0)
        result.left = sessions_left(self.server)

    def kill(self) -> None:
        """End the worker immediately. Its lane, which waits for an answer, gets a WorkerError."""
        self.worker.kill()
