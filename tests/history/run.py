"""Play histories: clients in a process of their own, faults meanwhile, and in the end the checker.

From a shell: PYTHONPATH=tests python -m history.run pymysql asyncpg --seconds 20 --seed 7
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .cases import CASES, FAMILIES, Case
from .checker import Verdict, check
from .clients import MAX_SIZE
from .faults import Faults
from .journal import History
from .workload import ChangedMindError, Workload

#: How long the clients may take for what they have begun, once all is well again.
AFTERMATH = 150.0


@dataclass
class Report:
    """What came out of one or more histories."""

    name: str
    seconds: float
    acknowledged: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    refused: int = 0
    cuts: int = 0  #: COMMITs that the proxy cut
    replays: int = 0  #: as far as the pools count them
    healed: int = 0  #: statements that were run again
    opened: int = 0
    children: list[int] = field(default_factory=list)  #: their exit statuses
    faults: Counter[str] = field(default_factory=Counter)
    wrongs: dict[str, list[object]] = field(default_factory=dict)
    #: acknowledged writes that asynchronous replication lost: no wrong of the clients'
    lost_by_replication: int = 0
    looks: int = 0  #: of the acknowledged, those that only read
    forgotten: int = 0  #: of the refused, those that were given back without COMMIT

    def __add__(self, other: Report) -> Report:
        total = Report(self.name, self.seconds + other.seconds)
        for name in (
            "acknowledged",
            "unknown",
            "unknown_stored",
            "refused",
            "looks",
            "forgotten",
            "cuts",
            "replays",
            "healed",
            "opened",
            "children",
            "faults",
            "lost_by_replication",
        ):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total.wrongs = {
            name: self.wrongs.get(name, []) + other.wrongs.get(name, [])
            for name in {*self.wrongs, *other.wrongs}
        }
        return total

    def __str__(self) -> str:
        wrong = {
            name: len(self.wrongs.get(name, ()))
            for name in ("lost", "torn", "doubled", "refused", "mixed")
        }
        return (
            f"{self.name}, {self.seconds:.0f} s: {self.acknowledged:,} acknowledged, {self.looks:,}"
            f" of them only read, {self.forgotten:,} given back without COMMIT, {self.unknown}"
            f" unknown ({self.unknown_stored} of them stored), {self.refused:,} refused;"
            f" {self.cuts} COMMITs cut, {self.replays} replays, {self.healed} healed,"
            f" {self.opened} connections, {len(self.children)} forks; lost {wrong['lost']}, torn"
            f" {wrong['torn']}, doubled {wrong['doubled']},"
            f" refused and stored {wrong['refused']}, answers mixed {wrong['mixed']}; faults"
            f" {dict(self.faults)}"
            + f"; lost by asynchronous replication {self.lost_by_replication}"
            * bool(self.lost_by_replication)
        )


def play(case: Case, server: Any, seconds: float, seed: int) -> Report:
    """One history of *case* on *server*, which is running and nobody else's."""
    server.start()  # after a history that broke off
    case.prepare(server)
    with tempfile.TemporaryDirectory() as folder, case.proxy(server) as proxy:
        journal = Path(folder) / "journal"
        with _Clients(case, seed, journal, case.urls(server, proxy)) as clients:
            faults = Faults(server, proxy, lambda: clients.tell("fork"), seed, case.deck)
            faults.play(seconds)
            left = clients.stop()
        history = History.of(journal.read_text().splitlines())
    verdict = check(history, case.stored(server), Workload(seed).unit, replayed=case.replays)
    for number in verdict.wrongs.get("refused", ()):
        print(f"{number} is stored, and was refused: {history.refused.get(number)}", flush=True)
    report = _report(case, seconds, history, verdict, faults, left)
    units = Workload(seed).unit
    report.looks = sum(units(n).kind == "look" for n in history.acknowledged)
    report.forgotten = sum(
        units(n).manner == "forgotten" and why.startswith(ChangedMindError.__name__)
        for n, why in history.refused.items()
    )
    return report


class _Clients:
    """The worker's process, once it works."""

    def __init__(self, case: Case, seed: int, journal: Path, urls: tuple[str, str]) -> None:
        tests = os.pathsep.join(
            filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "history.worker", case.name, str(seed), str(journal), *urls],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": tests},
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said == "going", f"the clients did not begin: {said}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, order: str) -> None:
        """Give an order. One who has ended is found out by :meth:`stop`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()

    def stop(self) -> dict[str, Any]:
        """Have them finish; what is left of them. AssertionError when they do not."""
        try:
            said, _ = self._process.communicate("stop\n", timeout=AFTERMATH)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGUSR1)  # says where its threads are
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            raise AssertionError(
                f"the clients still work {AFTERMATH:.0f} s after all was well again"
            ) from None
        assert self._process.returncode == 0, (
            f"the clients ended with status {self._process.returncode}"
        )
        left: dict[str, Any] = json.loads(said)
        return left


def _report(
    case: Case,
    seconds: float,
    history: History,
    verdict: Verdict,
    faults: Faults,
    left: dict[str, Any],
) -> Report:
    pools = left["pools"]
    wrongs = verdict.wrongs
    lost = len(wrongs.pop("lost", [])) if case.may_lose else 0
    if case.may_lose:
        wrongs.pop("counters", None)  # they are held against what was acknowledged
    most = MAX_SIZE * (3 if case.topology == "set" else 1)  # of each member's connections
    if left["close_wait"] or any(
        p["used"] or p["waiting"] or p["idle"] != p["size"] or p["size"] > most for p in pools
    ):
        wrongs["not at rest"] = [left]
    if any(left["children"]):
        wrongs["children"] = left["children"]
    return Report(
        case.name, seconds, len(history.acknowledged), len(history.unknown), verdict.unknown_stored,
        len(history.refused), faults.cuts, sum(pool["replays"] for pool in pools),
        sum(pool.get("healed", 0) for pool in pools),
        sum(pool["opened"] for pool in pools), left["children"], faults.played, wrongs, lost,
    )  # fmt: skip


def play_family(name: str, seconds: float, seed: int) -> Report:
    """*seconds* divided among the cases of a family, one after the other; each is printed."""
    total = Report(name, 0.0)
    cases = FAMILIES[name]
    for case in cases:
        with case.server() as server:
            report = play(case, server, seconds / len(cases), seed)
        print(
            report,
            *(f"  {what}: {which[:5]}" for what, which in report.wrongs.items()),
            sep="\n",
            flush=True,
        )
        total += report
    total.name = name
    print(total, flush=True)
    return total


def main() -> int:
    """Play what the command line says; 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m history.run", description="Play histories of clients, and check them."
    )
    parser.add_argument(
        "names",
        nargs="+",
        choices=[*CASES, *FAMILIES],
        metavar="NAME",
        help=f"{', '.join([*CASES, *FAMILIES])}",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each name (default: 10)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bad = 0
    for name in options.names:
        if name in FAMILIES:
            bad += bool(play_family(name, options.seconds, options.seed).wrongs)
            continue
        with CASES[name].server() as server:
            report = play(CASES[name], server, options.seconds, options.seed)
        print(
            report,
            *(f"  {what}: {which[:5]}" for what, which in report.wrongs.items()),
            sep="\n",
            flush=True,
        )
        bad += bool(report.wrongs)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
