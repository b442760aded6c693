"""Sweep bodies and drivers, each pair in a process of its own, and compare what was told with what
is stored.

From a shell: PYTHONPATH=tests python -m strikes.run pool-pymysql django --kinds exception base
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from .abodies import ABODIES
from .bodies import BODIES
from .orders import PROGRESS, How, Order

#: After so many deaths of its process a pair is given up.
DEATHS = 25
#: What a report is about. All of them must be 0.
WRONGS = (
    "wrong",
    "lost",
    "doubled",
    "undead",
    "failed",
    "place",
    "rest",
    "unit",
    "blind",
    "hang",
    "crash",
    "strange",
)


@dataclass
class Report:
    """What came of the sweep of one body on one driver."""

    name: str
    points: int = 0
    missed: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    found: list[tuple[str, str, str]] = field(default_factory=list)  #: what, where, detail
    scenes: list[dict[str, Any]] = field(default_factory=list)
    stderr: str = ""

    @property
    def counts(self) -> Counter[str]:
        """How often each wrong was found."""
        return Counter(what for what, _, _ in self.found)

    @property
    def wrongs(self) -> dict[str, list[str]]:
        """What is wrong, by its kind; empty when nothing is."""
        out: dict[str, list[str]] = {}
        for what, where, detail in self.found:
            out.setdefault(what, []).append(f"{where}: {detail}")
        return out

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{self.name:28s} {self.points:6d} points, {self.missed} missed, {self.seconds:5.0f} s "
            f" slowest place {self.slowest:4.2f} s  "
            + "  ".join(f"{name} {counts[name]}" for name in WRONGS)
        )


def pairs() -> dict[str, tuple[str, str]]:
    """Every body and driver, by name."""
    every: dict[str, tuple[Any, tuple[str, ...]]] = {**BODIES, **ABODIES}
    return {
        f"{body}-{driver}": (body, driver)
        for body, (_, drivers) in every.items()
        for driver in drivers
    }


def is_postgresql(driver: str) -> bool:
    """Whether a driver speaks to PostgreSQL."""
    return driver.startswith(("psycopg", "pg8000", "asyncpg"))


def url_of(driver: str, servers: dict[str, Server], folder: Path) -> str:
    """Where a driver's pool leads."""
    if driver == "sqlite":
        return f"sqlite:///{folder / 'strikes.db'}"
    spelled = driver.removesuffix("_async")
    if is_postgresql(driver):
        return servers["postgresql"].url(
            spelled, **({"sslmode": "disable"} if driver.startswith("psycopg") else {})
        )
    return servers["mariadb"].url(spelled)


def sweep(name: str, servers: dict[str, Server], how: How) -> Report:
    """Strike the pair *name*, on a server of its kind among *servers*, which is nobody else's."""
    body, driver = pairs()[name]
    module = "signals" if how.signals else "aworker" if body in ABODIES else "worker"
    report, started = Report(name), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store, progress = _Store(driver, servers, Path(folder)), Path(folder) / "progress"
        url = url_of(driver, servers, Path(folder))
        order = Order(**asdict(how), body=body, driver=driver, url=url, progress=str(progress))
        for _ in range(DEATHS):
            progress.write_bytes(b" " * PROGRESS)
            store.prepare()
            status, told = _run(module, order, report)
            if told is not None:
                _compare(told, store.rows(), report)
            if status == 0:
                break
            where = progress.read_bytes().decode().split(maxsplit=3)
            report.found.append(
                ("crash", " ".join(where).strip(), f"the process ended with status {status}")
            )
            if how.signals or not where or order.skip == (skip := [int(n) for n in where[:3]]):
                break
            order.skip = skip
    report.seconds = time.monotonic() - started
    return report


def _run(module: str, order: Order, report: Report) -> tuple[int, dict[str, Any] | None]:
    """One process: its status, and what was told in it, if it came to its end."""
    tests = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        f"strikes.{module}",
        json.dumps(asdict(order)),
    ]
    told = None
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": tests},
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                told = _take(json.loads(line), order.loud, report) or told
            status = process.wait()
        finally:  # a test's time limit
            process.kill()
            process.wait()
        errors.seek(0)
        report.stderr += errors.read()
    return status, told


def _take(said: dict[str, Any], loud: bool, report: Report) -> dict[str, Any] | None:
    """Enter a line into the *report*. Gives what was told of the rows, with the last line."""
    if "found" in said:
        report.found.append((said["found"], said["at"], said["detail"]))
        if loud:
            print(f"    {said['found']}: {said['at']}: {said['detail']}", flush=True)
        return None
    if "scene" in said:
        report.scenes.append(said)
        report.points += said["points"]
        return None
    report.missed += said["missed"]
    report.slowest = max(report.slowest, said["slowest"])
    told: dict[str, Any] = said["told"]
    return told


class _Store:
    """The tables that the jobs write to."""

    def __init__(self, driver: str, servers: dict[str, Server], folder: Path) -> None:
        self._path = folder / "strikes.db" if driver == "sqlite" else None
        self._server = (
            None
            if driver == "sqlite"
            else servers["postgresql" if is_postgresql(driver) else "mariadb"]
        )

    def prepare(self) -> None:
        """Empty tables."""
        if isinstance(self._server, PostgreSQL):
            self._server.kill_sessions()
        for statement in (
            "DROP TABLE IF EXISTS strikes", "DROP TABLE IF EXISTS strike_counter", "CREATE TABLE strikes (id BIGINT)",  # noqa: E501
            "CREATE TABLE strike_counter (id INT PRIMARY KEY, v BIGINT)", "INSERT INTO strike_counter VALUES (1, 0)",  # noqa: E501
        ):  # fmt: skip
            self._do(statement)
        if isinstance(self._server, PostgreSQL):
            for table in ("strikes", "strike_counter"):
                self._do(f'GRANT ALL ON {table} TO "{self._server.user}"')

    def rows(self) -> Counter[int]:
        """How often each row is stored."""
        if self._server is not None:
            self._server.kill_sessions()
        return Counter(int(row[0]) for row in self._do("SELECT id FROM strikes"))

    def _do(self, sql: str) -> Any:
        if self._server is not None:
            return self._server.admin(sql)
        import sqlite3

        with sqlite3.connect(str(self._path), isolation_level=None) as conn:
            return conn.execute(sql).fetchall()


def _compare(told: dict[str, Any], rows: Counter[int], report: Report) -> None:
    begun = {int(n): point for n, point in told["begun"].items()}
    for n in told["acknowledged"]:
        if not rows[n]:
            report.found.append(
                ("lost", begun.get(n, "?"), f"row {n} was acknowledged and is not stored")
            )
    for n, times in rows.items():
        if times > 1:
            report.found.append(("doubled", begun.get(n, "?"), f"row {n} is stored {times} times"))
    for n in told["given_up"]:
        if rows[n]:
            report.found.append(
                ("undead", begun.get(n, "?"), f"row {n} was rolled back and is stored")
            )


def main() -> int:
    """Sweep what the command line says; 1 when something is wrong."""
    known = pairs()
    parser = argparse.ArgumentParser(
        prog="python -m strikes.run", description="Strike every point of every scene."
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=", ".join([*known, *BODIES, *ABODIES, "all"])
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["exception", "base"],
        help="of exceptions, in blocking bodies",
    )
    parser.add_argument(
        "--akinds",
        nargs="+",
        default=["cancel", "late", "foreign", "line"],
        help="in those of asyncio",
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--scenes", nargs="+", default=[])
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--show", type=int, default=3, help="places that are shown of each wrong")
    parser.add_argument(
        "--signals",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="real signals at random moments, so long for each",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument(
        "--all", action="store_true", help="each time that the work comes by a point"
    )
    parser.add_argument(
        "--share", action="store_true", help="strike each point by one of the kinds only, in turns"
    )
    parser.add_argument("--loud", action="store_true", help="print each wrong as it is found")
    options = parser.parse_args()
    names = [n for given in options.names for n in known if given in ("all", n, known[n][0])]
    bad = 0
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        if any(is_postgresql(known[n][1]) for n in names):
            servers["postgresql"] = stack.enter_context(PostgreSQL())
        if any(not is_postgresql(known[n][1]) and known[n][1] != "sqlite" for n in names):
            servers["mariadb"] = stack.enter_context(MariaDB())
        for name in names:
            kinds = options.akinds if known[name][0] in ABODIES else options.kinds
            how = How(
                passes=[(size, kind) for size in options.sizes for kind in kinds],
                scenes=options.scenes, step=options.step, share=options.share, all=options.all,
                signals=options.signals, seed=options.seed, loud=options.loud,
            )  # fmt: skip
            report = sweep(name, servers, how)
            print(report, flush=True)
            if options.loud:
                print(
                    *(
                        f"    {s['scene']} {s['size']} {s['kind']}: {s['points']} points,"
                        f" {s['seconds']:.1f} s"
                        for s in report.scenes
                    ),
                    sep="\n",
                )
            for what, places in report.wrongs.items():
                print(
                    *(f"    {what}: {place}" for place in places[: options.show]),
                    sep="\n",
                    flush=True,
                )
            if options.loud or "hang" in report.wrongs or "crash" in report.wrongs:
                print(report.stderr[-40000:], flush=True)
            bad += bool(report.wrongs)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
