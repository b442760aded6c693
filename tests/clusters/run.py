"""Let events befall clusters under load, and count what the clients met.

From a shell: PYTHONPATH=tests python -m clusters.run read-only pg-frozen --drivers psycopg,pymysql
Without names: every event. ``--after 5`` seconds of load follow each; ``--json FILE`` keeps all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unbroken_drill.servers import Server
from unbroken_drill.servers.cluster import wait_until

from .events import EVENTS, Event, Stage, Window

#: Load before an event, in seconds.
BEFORE = 1.0


@dataclass
class Row:
    """What the clients of one driver met."""

    event: str
    driver: str
    requests: int = 0
    failed: int = 0
    unknown: int = 0
    hung: int = 0
    slowest: float = 0.0
    opened: int = 0  #: sessions, during the window
    refused: int = 0  #: attempts to connect that failed, during the window
    back: float | None = None  #: from the new writer to the first acknowledged write; None: never
    stale: int = 0  #: answers of the old server from a second after the new one took writes
    lost: int = 0  #: acknowledged, and not stored
    doubled: int = 0
    refused_and_stored: int = 0
    said: dict[str, int] = field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether the clients were told the truth about every write."""
        return not (self.lost or self.doubled or self.refused_and_stored)

    def __str__(self) -> str:
        back = "never" if self.back is None else f"+{self.back:.2f} s"
        wrong = (
            ""
            if self.is_exact
            else f"; WRONG lost {self.lost}, doubled {self.doubled},"
            f" refused and stored {self.refused_and_stored}"
        )
        hung = f", {self.hung} hung" if self.hung else ""
        return (
            f"{self.event:16} {self.driver:9} {self.failed}/{self.requests} failed{hung},"
            f" {self.unknown} unknown, slowest {self.slowest:.2f} s, back {back}, opened"
            f" {self.opened} (+{self.refused} refused), stale {self.stale}{wrong}"
        )


class Clients:
    """The process of one driver."""

    def __init__(self, driver: str, stage: Stage, settings: dict[str, Any]) -> None:
        self.driver, self.table = driver, f"told_{driver}"
        plan = {"driver": driver, "url": stage.url(driver), "settings": settings}
        tests = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clusters.worker", json.dumps({**plan, "table": self.table})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **stage.environment, "PYTHONPATH": path},
        )

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, order: str) -> None:
        """Give an order, whose answer :meth:`answer` gives."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the clients of {self.driver} ended with {self._process.wait(5)}"
        return json.loads(line)


def prepare(server: Server, tables: Sequence[str]) -> None:
    """A table for each driver, of the application's; nothing in it is unique."""
    if server.scheme == "mysql":
        for table in tables:
            server.admin(f"CREATE TABLE {table} (id serial PRIMARY KEY, n int NOT NULL)")
        return
    for table in tables:
        server.admin(
            f"CREATE TABLE {table} (n int NOT NULL); GRANT ALL ON {table} TO {server.user}"
        )


def play(
    event: Event, drivers: Sequence[str], after: float, settings: dict[str, Any] | None = None
) -> Iterator[Row]:
    """One event for all *drivers* side by side; *after* seconds of load follow it."""
    with ExitStack() as stack:
        stage: Stage = stack.enter_context(event.open())
        prepare(stage.writer(), [f"told_{driver}" for driver in drivers])
        crew = [stack.enter_context(Clients(each, stage, settings or {})) for each in drivers]
        _ask_all(crew, "begin")
        time.sleep(BEFORE)
        before = _ask_all(crew, "stats")
        window = stage.strike()
        at_end = _ask_all(crew, "stats")
        time.sleep(after)
        found = _ask_all(crew, "stop")
        for clients, first, last, report in zip(crew, before, at_end, found, strict=True):
            row = Row(event.name, clients.driver, said=report["said"], hung=report["hung"])
            row.opened = last["opened"] - first["opened"]
            row.refused = last["refused"] - first["refused"]
            _count(row, report["records"], window)
            _check(row, report["records"], stage.writer(), clients.table)
            yield row


def _ask_all(crew: Sequence[Clients], order: str) -> list[Any]:
    for clients in crew:
        clients.tell(order)
    return [clients.answer() for clients in crew]


def _count(row: Row, records: list[list[Any]], window: Window) -> None:
    row.requests = len(records)
    row.failed = sum(outcome == "failed" for _, _, outcome, *_ in records)
    row.unknown = sum(outcome == "unknown" for _, _, outcome, *_ in records)
    row.slowest = max(end - begin for begin, end, *_ in records)
    writes = [end for _, end, outcome, wrote, *_ in records if outcome == "ok" and wrote]
    later = [end for end in writes if end > window.end]
    row.back = min(later) - window.end if later else None
    row.stale = sum(
        server == window.old and begin > window.end + 1.0
        for begin, _, outcome, _, _, server in records
        if outcome == "ok" and window.old
    )


def _check(row: Row, records: list[list[Any]], writer: Server, table: str) -> None:
    def read() -> bool:
        rows.extend(int(n) for (n,) in writer.admin(f"SELECT n FROM {table}"))
        return True

    rows: list[int] = []
    wait_until(read, f"the table of {row.driver}", 20.0)
    times: dict[int, int] = {}
    for number in rows:
        times[number] = times.get(number, 0) + 1
    row.doubled = sum(count > 1 for count in times.values())
    told = {number: outcome for _, _, outcome, wrote, number, _ in records if wrote}
    row.lost = sum(outcome == "ok" and number not in times for number, outcome in told.items())
    row.refused_and_stored = sum(
        outcome == "failed" and number in times for number, outcome in told.items()
    )


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", nargs="*", default=list(EVENTS), metavar="event")
    parser.add_argument("--drivers", default="", help="with commas between; default: all")
    parser.add_argument("--after", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", default="")
    parser.add_argument("--set", action="append", default=[], help="NAME=JSON, of the pools")
    given = parser.parse_args()
    settings = {each.partition("=")[0]: json.loads(each.partition("=")[2]) for each in given.set}
    rows = []
    for name in given.events:
        event = EVENTS[name]
        wanted = given.drivers.split(",") if given.drivers else event.drivers
        drivers = [driver for driver in event.drivers if driver in wanted]
        for _ in range(given.repeat if drivers else 0):
            for row in play(event, drivers, given.after, settings):
                rows.append(row)
                print(row, flush=True)
                for line, times in sorted(row.said.items(), key=lambda item: -item[1])[:3]:
                    print(f"    {times} x {line}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
