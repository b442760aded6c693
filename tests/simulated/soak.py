"""Tell stories by the million: ``make simulate ARGS="--count 1000000"``.

Goes on where the log ends; a broken promise is logged with its seed (to be kept in seeds.txt) and
the telling goes on.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from pathlib import Path

from .test_pool_machine import tell

CHUNK = 1000
_DONE = re.compile(r"^told (\d+)\.\.(\d+): (\d+) broken")


def told_before(log: Path) -> tuple[int, int]:
    """Where *log* ends: the next seed, and how many promises were broken until there."""
    lines = (
        [match for line in log.read_text().splitlines() if (match := _DONE.match(line))]
        if log.exists()
        else []
    )
    return max((int(line[2]) + 1 for line in lines), default=0), sum(int(line[3]) for line in lines)


def tell_chunk(first: int, last: int) -> list[str]:
    """The stories of these seeds: a line for each that broke a promise."""
    broken = []
    for seed in range(first, last + 1):
        try:
            tell(seed)
        except Exception as failure:
            broken.append(f"BROKEN seed {seed}: {failure!r}")
    return broken


def main() -> int:
    """Tell what is still to be told; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="make simulate", description="Tell many stories of the simulated world."
    )
    parser.add_argument(
        "--count", type=int, default=1_000_000, help="seeds 0 to COUNT - 1 (default: a million)"
    )
    parser.add_argument(
        "--log",
        type=Path,
        default=Path("simulation.log"),
        help="progress, and where to go on (default: simulation.log)",
    )
    options = parser.parse_args()
    first, failures = told_before(options.log)
    gc.freeze()
    while first < options.count:
        last, began = min(first + CHUNK, options.count) - 1, time.monotonic()
        broken = tell_chunk(first, last)
        failures += len(broken)
        with options.log.open("a") as log:
            log.writelines(f"{line}\n" for line in broken)
            log.write(
                f"told {first}..{last}: {len(broken)} broken, {time.monotonic() - began:.1f} s\n"
            )
        first = last + 1
    print(f"{first} stories told, {failures} broke a promise; see {options.log}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
