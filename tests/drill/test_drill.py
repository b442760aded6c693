"""The command as a whole, on real servers, kept short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unbroken import cli
from unbroken.errors import ConfigurationError
from unbroken_drill.drill import contenders


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unbroken", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_a_short_drill_shows_who_noticed(tmp_path: Path) -> None:
    file = tmp_path / "drill.json"
    chosen = ["--contenders", "unbroken/psycopg,one", "--scenarios", "kill,restart", "--seed", "5"]
    done = run("drill", *chosen, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unbroken kept its contract in all 2 rows" in done.stdout
    assert "[4/4] PostgreSQL" in done.stdout
    document = json.loads(file.read_text())
    rows = {(row["scenario"], row["key"]): row for row in document["results"]}
    assert len(rows) == 4
    for scenario in ("kill", "restart"):
        ours, theirs = rows[scenario, "unbroken/psycopg"], rows[scenario, "one"]
        assert (ours["errors"], ours["wrong"], ours["hung"], ours["unwell"]) == (0, 0, 0, 0)
        assert ours["requests"] > 100
        assert theirs["errors"] > 10
        assert theirs["unwell"] == 8
    assert len(rows["kill", "unbroken/psycopg"]["recoveries"]) == 5
    assert document["seed"] == 5
    assert document["breaches"] == []
    assert document["command"].startswith("unbroken drill --contenders")


def test_an_interrupted_drill_leaves_nothing_running() -> None:
    drill = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "unbroken",
            "drill",
            "--contenders",
            "one,sqlalchemy",
            "--scenarios",
            "freeze",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 30
        while len(family := descendants(drill.pid)) < 8:  # workers and servers, at work
            assert time.monotonic() < deadline, family
            time.sleep(0.05)
        family = descendants(drill.pid)
        os.kill(drill.pid, signal.SIGINT)
        _, errors = drill.communicate(timeout=30)
    finally:
        drill.kill()
    assert drill.returncode == 130
    assert errors.strip() == "unbroken: interrupted"
    deadline = time.monotonic() + 10
    while left := [pid for pid in family if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    psutil = pytest.importorskip("psutil")
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["drill", "--scenarios", "kil"],
            "unknown scenario 'kil' (did you mean 'kill'?); known: idle, kill,",
        ),
        (
            ["drill", "--contenders", "pgbouncer"],
            "unknown contender 'pgbouncer'; known: unbroken,",
        ),
        (
            ["drill", "--servers", "oracle"],
            "unknown server 'oracle'; known: postgresql, mariadb",
        ),
        (["drill", "--repeat", "0"], "0 is not in the range"),
        (["drill", "--json", "/no/such/folder/x"], "no such folder /no/such/folder"),
        (["drill", "--bogus"], "unknown option '--bogus'"),
        (["dril"], "unknown command 'dril'"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert said in errors
    assert errors.startswith("unbroken: ")
    assert errors.count("\n") == 1


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run("drill", env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 2
    assert done.stderr == (
        'unbroken: the command needs click and rich. Install them: pip install "unbroken[drill]"\n'
    )


def test_a_contender_whose_package_is_missing_is_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contenders.Entrant, "missing", property(lambda self: list(self.needs)))
    monkeypatch.setenv("COLUMNS", "40")  # as it is in a narrow terminal
    with pytest.raises(SystemExit) as caught:
        cli.main(["drill", "--contenders", "dbutils"])
    assert caught.value.code == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert "no contender is available" in errors
    assert "DBUtils is skipped on PostgreSQL: pip install psycopg dbutils" in errors


def test_names_choose_contenders_ours_by_one_name() -> None:
    ours = ["unbroken/psycopg", "unbroken/asyncpg", "unbroken/peewee"]
    assert [e.key for e in contenders.choose(["unbroken", "peewee"], ["postgresql"])] == [
        *ours,
        "peewee",
    ]
    assert [e.key for e in contenders.choose(["unbroken"], ["mariadb"])] == [
        "unbroken/pymysql",
        "unbroken/mysqlclient",
        "unbroken/peewee",
    ]
    with pytest.raises(ConfigurationError):
        contenders.choose(["unbroke"], ["postgresql"])


def test_every_entrant_can_be_loaded() -> None:
    for entrant in contenders.ENTRANTS:
        assert entrant.missing == []
        assert issubclass(entrant.load(), contenders.SmallApp)
