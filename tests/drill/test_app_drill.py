"""The whole drill of an app, as somebody would run it: a real server, a real web server, real
faults.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from unbroken_drill.servers import MariaDB

EXAMPLES = Path(__file__).parents[2] / "examples" / "drill"
BIN = Path(sys.executable).parent

#: Short stories: what takes seconds in the usual ones takes half of that here.
SHORT = """
[[scenario]]
name = "kill"
steps = ["run 1", "kill", "run 1.5"]

[[scenario]]
name = "restart"
steps = ["run 1", "stop", "run 0.5", "start", "run 2"]
"""

SERVE = "gunicorn --workers 1 --threads 4 --bind 127.0.0.1:{port} flask_app:app"


def unbroken(*arguments: str, folder: Path = EXAMPLES, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-m", "unbroken", "drill", *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=folder, env=environment, start_new_session=True,
        **options,
    )  # fmt: skip


def finish(drill: subprocess.Popen[str], timeout: float = 150.0) -> str:
    """What it printed; it is ended if it takes longer."""
    try:
        out, errors = drill.communicate(timeout=timeout)
    finally:
        drill.kill()
    return out + errors


def short(tmp_path: Path) -> Path:
    """The example's own drill.toml with short stories."""
    config = tmp_path / "drill.toml"
    config.write_text((EXAMPLES / "drill.toml").read_text().partition("[compare]")[0] + SHORT)
    return config


def test_one_global_connection_fails_where_unbroken_does_not(tmp_path: Path) -> None:
    commands = (f"one: VARIANT=one {SERVE}", f"unbroken: VARIANT=unbroken {SERVE}")
    files = ("--json", str(tmp_path / "drill.json"), "--html", str(tmp_path / "drill.html"))
    drill = unbroken(
        "--config",
        str(short(tmp_path)),
        "--scenarios",
        "kill,restart",
        "--seed",
        "5",
        *files,
        "--compare",
        *commands,
    )
    said = finish(drill)
    assert drill.returncode == 0, said  # only unbroken is judged: the file says so
    assert "limits kept in all 2 rows of unbroken" in said
    document = json.loads((tmp_path / "drill.json").read_text())
    rows = {(row["scenario"], row["key"]): row for row in document["results"]}
    assert len(rows) == 4
    for scenario in ("kill", "restart"):
        ours, theirs = rows[scenario, "unbroken"], rows[scenario, "one"]
        assert (ours["errors"], ours["hung"], ours["unwell"], ours["close_wait"], ours["left"]) == (
            0,
            0,
            0,
            0,
            0,
        ), ours["samples"]
        assert ours["requests"] > 100
        assert ours["recovery"] is not None
        assert theirs["errors"] > 30
        assert (theirs["needed_restart"], theirs["restart_helped"]) == (True, True)
        assert any(line.startswith("500 InterfaceError") for line in theirs["samples"]), theirs[
            "samples"
        ]
    assert document["seed"] == 5
    assert document["breaches"] == []
    assert [mark["text"] for mark in rows["restart", "one"]["marks"]] == ["stop"]
    assert "<!doctype html>" in (tmp_path / "drill.html").read_text()


#: An app of the standard library and PyMySQL: a connection for each request, and every note is
#: stored.
NOTES = """
import http.server, os, pymysql
def connect():
    get = os.environ.get
    return pymysql.connect(host=get("DB_HOST"), port=int(get("DB_PORT")), user=get("DB_USER"), password=get("DB_PASSWORD"), database="shop")
class Notes(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        number = int(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            with connect() as conn, conn.cursor() as cursor:
                cursor.execute("INSERT INTO drill_notes VALUES (%s)", (number,))
                conn.commit()
            self.answer(200, "stored")
        except pymysql.Error as error:
            self.answer(500, f"{error.args[0]}")
    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())
if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Notes).serve_forever()
"""  # noqa: E501


def test_a_server_of_somebodys_own_is_drilled_on_its_network_only(
    tmp_path: Path, mariadb: MariaDB
) -> None:
    (tmp_path / "notes.py").write_text(NOTES)
    create = (
        "with notes.connect() as c, c.cursor() as s: s.execute('CREATE TABLE IF NOT EXISTS"
        " drill_notes (n INT)')"
    )
    (tmp_path / "migrate.py").write_text(f"import notes\n{create}\n")
    parts = [f"--env=DB_{name.upper()}={{{name}}}" for name in ("host", "port", "user", "password")]
    story = '[[scenario]]\nname = "lost"\nsteps = ["run 0.5", "cut_at COMMIT", "run 1"]\n'
    (tmp_path / "drill.toml").write_text(f"max_errors = 1\n{story}")
    where = (
        "--db",
        mariadb.url("pymysql"),
        "--harm",
        *parts,
        "--url",
        "http://127.0.0.1:{port}/",
        "--body",
        "{n}",
    )
    # each connects anew, which a slow machine cannot do fifty times a second
    where += ("--rate", "10")
    rest = (
        "--scenarios",
        "lost",
        "--json",
        "drill.json",
        "--setup",
        f"{sys.executable} migrate.py",
        "--",
        sys.executable,
        "notes.py",
    )
    try:
        drill = unbroken(*where, *rest, folder=tmp_path)
        said = finish(drill)
        assert drill.returncode == 0, said
        (row,) = json.loads((tmp_path / "drill.json").read_text())["results"]
        assert row["statuses"].pop("500") == 1
        assert list(row["samples"]) == ["500 2013"]
        stored, different = mariadb.admin("SELECT COUNT(*), COUNT(DISTINCT n) FROM drill_notes")[0]
        assert stored == different
        # the one whose answer was lost, and those before and after the traffic
        assert int(stored) > row["statuses"]["200"]
        assert mariadb.password not in said
    finally:
        mariadb.admin("DROP TABLE IF EXISTS drill_notes")


def test_a_slow_migration_does_not_die_of_a_scenarios_idle_limit(tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(NOTES)
    (tmp_path / "migrate.py").write_text(
        "import notes, time\n"
        "with notes.connect() as c, c.cursor() as s:\n"
        "    time.sleep(2.5)\n"
        "    s.execute('CREATE TABLE drill_notes (n INT)')\n"
    )
    (tmp_path / "drill.toml").write_text(
        '[[scenario]]\nname = "short"\nserver_idle_limit = 1\nsteps = ["run 1"]\n'
    )
    parts = [f"--env=DB_{name.upper()}={{{name}}}" for name in ("host", "port", "user", "password")]
    drill = unbroken(
        *parts, "--servers", "mariadb", "--url", "http://127.0.0.1:{port}/", "--body", "{n}",
        "--rate", "10", "--scenarios", "short", "--setup", f"{sys.executable} migrate.py",
        "--", sys.executable, "notes.py",
        folder=tmp_path,
    )  # fmt: skip
    said = finish(drill)
    assert drill.returncode == 0, said
    assert "limits kept in all 1 rows" in said
    assert "1 run, 1 at a time: about 5 s" in said
    assert "unbroken drill --clean removes it" in said


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_a_drill_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    drill = unbroken(
        "--config",
        str(short(tmp_path)),
        "--scenarios",
        "kill",
        "--compare",
        f"unbroken: {SERVE}",
        f"b: {SERVE}",
    )
    try:
        deadline = time.monotonic() + 30
        family: list[psutil.Process] = []
        while sum("gunicorn" in " ".join(each.cmdline()) for each in family) < 3:
            # the keeper's line has it too
            assert time.monotonic() < deadline, family
            assert drill.poll() is None
            time.sleep(0.05)
            family = [
                each
                for each in psutil.Process(drill.pid).children(recursive=True)
                if each.status() != psutil.STATUS_ZOMBIE
            ]
        os.kill(drill.pid, number)
        said = finish(drill, 30.0)
    finally:
        drill.kill()
    if number != signal.SIGKILL:
        assert drill.returncode == 130
        assert said.strip().endswith("unbroken: interrupted")
    deadline = time.monotonic() + 10
    while left := [
        each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


APP = ("--url", "http://127.0.0.1:{port}/", "--env", "X")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--env", "X", "--", "python3"), "the drill of an app needs --url"),
        ((*APP, "--", "no-such"), "no-such: no such program"),
        ((*APP, "--html", "/no/such/x.html", "--", "python3"), "no such folder /no/such"),
        (("--config", "no-such.toml"), "no-such.toml: No such file or directory"),
        (
            (*APP, "--scenarios", "reset", "--", "python3", "-c", "print('no module named shop')"),
            "no row was measured: the app ended with status 0 while starting: no module named shop",
        ),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_status_2(
    arguments: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    drill = unbroken(*arguments, folder=tmp_path)
    _, errors = drill.communicate(timeout=60)
    assert drill.returncode == 2, errors
    assert problem in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_four_ways_to_use_a_database_in_flask_stand_as_they_should(tmp_path: Path) -> None:
    drill = unbroken("--json", str(tmp_path / "drill.json"), "--html", str(tmp_path / "drill.html"))
    said = finish(drill, 1400.0)
    print(said)
    assert drill.returncode == 0, said
    rows = json.loads((tmp_path / "drill.json").read_text())["results"]
    totals = {
        key: sum(row["errors"] + row["hung"] for row in rows if row["key"] == key)
        for key in {row["key"] for row in rows}
    }
    assert totals["unbroken"] == 0
    assert 0 < totals["pre_ping"] < totals["one connection"]
    assert 0 < totals["SQLAlchemy"] < totals["one connection"]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_an_app_in_another_language_is_drilled_the_same_way(tmp_path: Path) -> None:
    assert shutil.which("npm"), "no npm here: install nodejs and npm"
    folder = tmp_path / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=300
    )
    drill = unbroken("--json", str(tmp_path / "drill.json"), folder=folder)
    said = finish(drill, 800.0)
    print(said)
    assert drill.returncode == 1, said
    rows = {
        (row["scenario"], row["key"]): row
        for row in json.loads((tmp_path / "drill.json").read_text())["results"]
    }
    assert rows["kill", "connection"]["needed_restart"]
    assert not rows["kill", "pool"]["needed_restart"]
