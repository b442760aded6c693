"""The command: `python scripts/prose [--report | --shrink] [FILE …]`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from prose import readers, rules

ROOT = Path(__file__).parents[2]
BASELINE = Path(__file__).with_name("baseline.json")


def files() -> list[Path]:
    """All that is checked: English pages, and the sources of both distributions."""
    sources = [path for tree in ("src", "drill/src") for path in (ROOT / tree).rglob("*.py")]
    pages = [path for path in ROOT.glob("*.md") if not path.name.endswith(".zh.md")]
    pages += [ROOT / "drill" / "README.md"]
    pages += [path for tree in ("docs", "changes") for path in (ROOT / tree).rglob("*.md")]
    return sorted(pages) + sorted(sources)


def read(path: Path) -> str:
    """The text that counts: of the changelog only what is not released."""
    text = path.read_text()
    if path.name == "CHANGELOG.md":
        text = re.split(r"^## \[\d", text, maxsplit=1, flags=re.MULTILINE)[0]
    return text


def paragraphs(path: Path, text: str) -> Iterator[readers.Paragraph]:
    """The prose of a page or of a source."""
    return readers.page(text) if path.suffix == ".md" else readers.source(text)


def check(path: Path) -> list[tuple[int, str, str]]:
    """(line, rule, excerpt) of each finding in a file."""
    text = read(path)
    prose = list(paragraphs(path, text))
    found = [
        (each.line, *finding)
        for each in prose
        for finding in rules.findings(
            each.text, cell=each.kind == "cell", heading=each.kind == "heading"
        )
    ]
    if path.suffix == ".md":
        for number, length in readers.wide_lines(text, rules.WIDEST):
            found.append((number, "long-line", f"{length} characters"))
        middle = rules.middle([each.text for each in prose if each.kind == "text"])
        if middle > rules.MEDIAN:
            found.append((1, "median", f"half of the sentences are longer than {middle:g} words"))
    return sorted(found)


def name(path: Path) -> str:
    """A file as the baseline names it."""
    return path.resolve().relative_to(ROOT).as_posix()


def baseline() -> dict[str, int]:
    """How many findings each file may have."""
    return dict(json.loads(BASELINE.read_text())) if BASELINE.exists() else {}


def shrink(counts: dict[str, int]) -> None:
    """Lower the baseline to what is found. Without a baseline: write the first one."""
    allowed = baseline()
    lower = {
        each: min(count, allowed.get(each, 0) if allowed else count)
        for each, count in sorted(counts.items())
    }
    kept = {each: count for each, count in lower.items() if count}
    BASELINE.write_text(json.dumps(kept, indent=1) + "\n")


def report(paths: list[Path]) -> None:
    """Print each page's sentences: how many, the median, the longest, findings."""
    print(f"{'page':40} {'sentences':>9} {'median':>6} {'longest':>7} {'findings':>8}")
    for path in paths:
        if path.suffix != ".md":
            continue
        texts = [
            each.text for each in paragraphs(path, read(path)) if each.kind in {"text", "cell"}
        ]
        running = [each.text for each in paragraphs(path, read(path)) if each.kind == "text"]
        lengths = [rules.words(one) for text in texts for one in rules.sentences(text)]
        print(
            f"{name(path):40} {len(lengths):9} {rules.middle(running):6g} "
            f"{max(lengths, default=0):7} {len(check(path)):8}"
        )


def main() -> int:
    """Check, report or shrink. Returns the command's exit code."""
    parser = argparse.ArgumentParser(description="Check the English of pages and sources.")
    parser.add_argument("--report", action="store_true", help="lengths of sentences, per page")
    parser.add_argument(
        "--shrink",
        action="store_true",
        help="lower the baseline to what is found; without a baseline, write the first one",
    )
    parser.add_argument("files", nargs="*", type=Path, help="show all findings of these")
    options = parser.parse_args()
    paths = [path.resolve() for path in options.files] or files()
    if options.report:
        report(paths)
        return 0
    found = {name(path): check(path) for path in paths}
    if options.shrink:
        shrink({each: len(findings) for each, findings in found.items()})
        return 0
    allowed = {} if options.files else baseline()
    failed = {
        each: each_found
        for each, each_found in found.items()
        if len(each_found) > allowed.get(each, 0)
    }
    for each, each_found in failed.items():
        for line, which, excerpt in each_found:
            print(f"{each}:{line}: {which}: {excerpt}")
        if not options.files:
            print(f"{each}: {len(each_found)} findings, {allowed.get(each, 0)} allowed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
