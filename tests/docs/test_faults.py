"""The pages about single errors: each block runs as pasted, in an empty database, and what a page
reproduces is the error in its title.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from unbroken_drill.servers import MariaDB, PostgreSQL

from .blocks import MONGO, PAGES, blocks, name, on_real_servers

FAULTS = [page for page in PAGES if page.parent.name == "faults"]
PARTS = ("Cause", "See it", "Fix without unbroken", "Fix with unbroken")


EACH = [
    pytest.param(page, language, code, id=f"{name(page)}-{number}")
    for page in FAULTS
    for number, (language, code) in enumerate(blocks(page, "python", "sql"))
]


@pytest.mark.parametrize(("page", "language", "code"), EACH)
def test_a_block_runs_as_pasted(
    page: Path, language: str, code: str, mariadb: MariaDB, postgres: PostgreSQL,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if language == "sql":
        is_mysql = "mysql" in page.read_text().lower().partition("## Fix")[0] and "pg_" not in code
        assert (mariadb if is_mysql else postgres).admin(code)
        return
    if MONGO in code:
        port = request.getfixturevalue("mongodb").port
        code = code.replace(MONGO, f"mongodb://127.0.0.1:{port}/shop")
    code = on_real_servers(code, mariadb, postgres)
    if "os.fork" in code or "threading" in code:  # not beside the tests' own threads
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    fills_server = page.stem == "too-many-connections"  # with fewer, that takes less time
    with mariadb.temporarily(max_connections=30) if fills_server else nullcontext():
        exec(compile(code, f"<{name(page)}>", "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("page", FAULTS, ids=name)
def test_a_page_has_the_parts_that_a_reader_looks_for(page: Path) -> None:
    text = page.read_text()
    if page.stem == "index":
        return
    found = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert found == list(PARTS)
    assert f"({page.name})" in (page.parent / "index.md").read_text()
    last = text.partition("## Fix with unbroken")[2]
    assert "unbroken" in "".join(block for block in last.split("```python")[1:])
