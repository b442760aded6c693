"""The drill with peewee's models, on threads and on greenlets: nobody notices; beside it, who uses
playhouse's pools.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SERVERS = ("mariadb", "postgresql")


def drill(file: Path, contenders: str, scenarios: str, *how: str) -> list[dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "unbroken",
        "drill",
        "--servers",
        ",".join(SERVERS),
        "--json",
        str(file),
        *how,
    ]
    done = subprocess.run(
        [*command, "--contenders", contenders, "--scenarios", scenarios],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(file.read_text())["results"]
    return rows


def bad(row: dict[str, Any]) -> int:
    return int(row["errors"] + row["wrong"] + row["hung"] + row["unwell"])


@pytest.mark.parametrize("how", [(), ("--gevent",)], ids=["threads", "greenlets"])
def test_nobody_notices_sessions_that_are_killed_nor_a_fork(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    rows = drill(tmp_path / "drill.json", "unbroken/peewee", "kill,fork", *how)
    assert {(row["server"], row["scenario"]) for row in rows} == {
        (server, what) for server in SERVERS for what in ("kill", "fork")
    }
    assert all(row["requests"] > 50 for row in rows)
    assert [bad(row) for row in rows] == [0] * len(rows)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [(), ("--gevent",)], ids=["threads", "greenlets"])
def test_nobody_notices_anything(tmp_path: Path, how: tuple[str, ...]) -> None:
    rows = drill(
        tmp_path / "drill.json",
        "unbroken/peewee,peewee",
        "idle,kill,restart,crash,fork,forget,hold",
        *how,
    )
    assert len(rows) == 2 * 2 * 7
    for row in rows:
        print(f"{row['server']} {row['scenario']} {row['key']}: {bad(row)}")
    assert not [row for row in rows if row["key"] == "unbroken/peewee" and bad(row)]
    for server in SERVERS:
        noticed = {
            row["scenario"]
            for row in rows
            if row["server"] == server and row["key"] == "peewee" and bad(row)
        }
        assert {"restart", "forget", "hold"} <= noticed
