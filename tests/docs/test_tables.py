"""Tables that a script writes, and figures that are told twice, are those of today."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import ROOT

SCRIPTS = ROOT / "scripts"


def test_the_support_page_is_what_the_project_declares() -> None:
    text = (ROOT / "docs" / "support.md").read_text()
    generator = runpy.run_path(str(SCRIPTS / "support-page"))
    assert text == generator["page"](text), "run scripts/support-page"
    assert re.search(r"\| PostgreSQL \| \d", text), "run scripts/support-page --servers"


def test_the_comparison_tells_the_figures_of_the_benchmarks() -> None:
    _, _, measured = (ROOT / "docs" / "benchmarks.md").read_text().partition("one thread, pool")
    _, _, told = (ROOT / "docs" / "comparison.md").read_text().partition("## Speed, measured")
    figures = re.findall(r"^\| (.+) \| (\d+\.\d+) \|$", told, re.MULTILINE)
    assert len(figures) > 5
    table = measured.partition("### ")[0]
    assert [figure for _, figure in figures if f"| {figure} |" not in table] == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that have the version, and the script that writes it."""
    for name in ("pyproject.toml", "drill/pyproject.toml", "src/unbroken/__init__.py",
                 "scripts/set-version"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def set_version(folder: Path, word: str) -> int:
    command = [sys.executable, str(folder / "scripts" / "set-version"), word]
    return subprocess.run(command, capture_output=True).returncode


def test_the_version_is_the_same_everywhere() -> None:
    assert set_version(ROOT, "--check") == 0


def test_a_releases_tag_becomes_the_version_of_both_distributions(copy: Path) -> None:
    assert set_version(copy, "v0.9.1rc1") == 0
    assert set_version(copy, "--check") == 0
    assert (copy / "drill" / "pyproject.toml").read_text().count("0.9.1rc1") == 2
    assert (copy / "pyproject.toml").read_text().count("0.9.1rc1") == 3
    assert '__version__ = "0.9.1rc1"' in (copy / "src" / "unbroken" / "__init__.py").read_text()


def test_two_versions_are_noticed_and_words_are_refused(copy: Path) -> None:
    page = copy / "drill" / "pyproject.toml"
    page.write_text(page.read_text().replace('"unbroken==', '"unbroken==9.'))
    assert set_version(copy, "--check") == 1
    assert set_version(copy, "latest") == 1
