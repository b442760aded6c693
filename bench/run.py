"""What unbroken costs, beside other pools: all contenders in one run, on a real private server.

make bench                        everything (some minutes)
make bench ARGS="--quick"         a first impression
make bench ARGS="checkout flat"   these subjects only
make bench ARGS="--write"         and put the tables into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import importlib
import sys

import report
from measure import Effort, Result

SUBJECTS = (
    "checkout", "checkout_async", "flat", "connecting", "round_trips", "latency", "recovery",
    "at_rest", "web", "share",
    "engine", "peewee_pools", "django_views", "fleet", "mongo", "proxy",
)  # fmt: skip


def main() -> int:
    """Run the subjects; 1 when a promise about the cost is not kept."""
    parser = argparse.ArgumentParser(description="Measure unbroken beside other pools.")
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first impression")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--write", action="store_true", help="put the tables into docs/benchmarks.md"
    )
    options = parser.parse_args()
    unknown = [name for name in options.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    effort = Effort.of(quick=options.quick)
    results: dict[str, Result] = {}
    for name in options.subjects or SUBJECTS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        results[name] = importlib.import_module(name).run(effort)
        if not options.json:
            print(report.as_text(results[name]), flush=True)
    print(report.as_json(results, effort) if options.json else report.footer(effort))
    if options.write:
        report.write(results, effort)
    return 0 if all(target.kept for result in results.values() for target in result.targets) else 1


if __name__ == "__main__":
    sys.exit(main())
