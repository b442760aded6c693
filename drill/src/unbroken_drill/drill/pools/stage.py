"""One contender in front of one server, and what a scenario may do with both."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from unbroken_drill.drill.campaign import Interrupted
from unbroken_drill.drill.measure import Probe, close_wait, journal, sessions_left
from unbroken_drill.drill.pools import workload
from unbroken_drill.drill.pools.contenders.base import OK
from unbroken_drill.drill.pools.process import WorkerProcess
from unbroken_drill.drill.pools.results import PoolResult, recovery
from unbroken_drill.drill.pools.traffic import WATCHDOG, Record
from unbroken_drill.servers import Server

READERS: Final = 3
WRITERS: Final = 1
EVERY: Final = (
    0.02  #: each thread's requests: 50 a second, so that an outage of 1.5 s meets up to 300
)
WARM: Final = 0.4  #: steady traffic before each fault
AFTER: Final = 1.0  #: and after it; also when CLOSE_WAIT is counted

#: Commands that wait for requests under way.
_PATIENCE: Final = WATCHDOG + 15.0


@dataclass(slots=True)
class Fault:
    """When nothing could succeed any more, and when it could again (``time.monotonic()``)."""

    down: float
    up: float


@dataclass(slots=True)
class Stage:
    """What a scenario acts with: it drives *server* and *worker*, and marks its faults."""

    server: Server
    worker: WorkerProcess
    random: random.Random
    stop: threading.Event  #: set when the whole drill is to end
    faults: list[Fault] = field(default_factory=list)
    close_waits: list[int | None] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        """Sleep; raises Interrupted when the drill is told to stop."""
        if self.stop.wait(max(0.0, seconds)):
            raise Interrupted

    def wait_until(self, moment: float) -> None:
        """Sleep until *moment* (``time.monotonic()``)."""
        self.wait(moment - time.monotonic())

    def traffic(self, readers: int = READERS, writers: int = WRITERS, every: float = EVERY) -> None:
        """Begin steady traffic."""
        self.worker.ask("start", readers=readers, writers=writers, every=every)

    def pause(self) -> None:
        """Stop it; waits for what is under way."""
        self.worker.ask("pause", _PATIENCE)

    def fault(self, down: float, up: float) -> None:
        """Mark a fault: recovery is measured from *up* to the first success that ended after
        *down*.
        """
        self.faults.append(Fault(down, up))

    def come_back(self, down: float) -> None:
        """Start the server, which was down since *down*, and mark when the drill's own probe was
        accepted.
        """
        probe = Probe(self.server)
        probe.start()
        self.server.start()
        up = probe.result()
        # an answer that came before the fault may be written down a little after it: it is no
        # recovery
        self.fault(max(down, up - 0.05), up)

    def count_close_wait(self) -> None:
        """Count the contender's sockets in CLOSE_WAIT now."""
        self.close_waits.append(close_wait(self.worker.pid))


def prepare(server: Server) -> None:
    """A server that runs, has no session of the application's, and fresh tables."""
    server.start()
    server.kill_sessions()
    server.admin(workload.tables(server.backend, server.user))


def conclude(stage: Stage, result: PoolResult) -> None:
    """After the scenario: see whether the contender is well, read its records, and hold them
    against the journal.
    """
    server, worker = stage.server, stage.worker
    before = _count(worker.ask("report"))
    worker.ask("burst", _PATIENCE, threads=4, each=2)
    report = worker.ask("report")
    records = [Record(*fields) for fields in report["records"]]
    result.count(records[:before])
    result.unwell = sum(record.outcome != OK for record in records[before:])
    result.sessions = len(server.sessions())
    result.hung = report["hung"]
    if result.hung:
        result.slowest = max(result.slowest, WATCHDOG)
    result.samples = report["samples"]
    result.recoveries = [recovery(records, fault.down, fault.up) for fault in stage.faults]
    result.close_wait = _most(stage.close_waits)
    result.check_journal(records, journal(server))
    worker.ask("close", 10.0)
    result.left = sessions_left(server)


def _count(report: dict[str, Any]) -> int:
    return len(report["records"])


def _most(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return max(known) if known else None
