"""A coverage-guided fuzzer on the targets beside this file: ``make fuzz ARGS="--seconds 300
wire"``.

What it finds is written to tests/fuzz/found/TARGET/, where the default suite tries it again for
ever; what it learned goes to .fuzz/TARGET/, where the next run goes on.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEARNED = HERE.parents[1] / ".fuzz"
_RUNS = re.compile(
    r"#(\d+)\s+(?:DONE|pulse|NEW|REDUCE|RELOAD|INITED)|stat::number_of_executed_units:\s+(\d+)"
)


def main() -> int:
    """Fuzz the targets named, or all, one after the other; 1 when something was found."""
    names = re.findall(r'^    "(\w+)": \(', (HERE / "targets.py").read_text(), re.MULTILINE)
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each (default: 60)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.inside, options.seconds)
        return 0
    unknown = set(options.targets) - set(names)
    if unknown:
        parser.error(f"no target {unknown.pop()!r}; there are {', '.join(names)}")
    return max(one(name, options.seconds) for name in options.targets or names)


def one(name: str, seconds: int) -> int:
    """Fuzz one target in a process of its own, and say how it went."""
    command = [sys.executable, str(Path(__file__)), "--inside", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    runs = max((int(a or b) for a, b in _RUNS.findall(said)), default=0)
    print(
        f"{name}: {runs:,} executions, {'a find:' if done.returncode else 'nothing found'}",
        flush=True,
    )
    if done.returncode:
        print("\n".join(said.splitlines()[-40:]))
    return int(done.returncode != 0)


def fuzz(name: str, seconds: int) -> None:
    """In the child: never returns."""
    import atheris

    with atheris.instrument_imports(include=["unbroken"]):
        sys.path.insert(0, str(HERE))
        import targets
    learned, found = LEARNED / name, HERE / "found" / name
    for folder in (learned, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.SEEDS[name]):
        (learned / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}{os.sep}",
        "-max_len=4096",
        "-timeout=20",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(learned), str(found)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
