"""Closed unless proven open: a library that does not work as its driver file knows it is used as before, but never replayed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unbroken import Pool
from unbroken.drivers._psycopg_watch import real_pgconn
from unbroken.drivers._seams import Seam, is_within

PROGRAM = Path(__file__).with_name("renamed.py")
renamed = runpy.run_path(str(PROGRAM))["renamed"]

#: Private names of each library that its driver file relies on.
RENAMED = {
    "psycopg": [
        "_start_query", "_exec_command", "_autocommit", "_commit_gen", "_execute_gen", "_connect_gen", "_fetch_gen", "_stream_send_gen",
    ],
    "pg8000": [
        "execute_simple", "execute_unnamed", "execute_named", "handle_messages", "prepare_statement", "close_prepared_statement",
        "_transaction_status", "_usock", "_sock", "_backend_key_data",
    ],
    "asyncpg": ["_protocol", "_transport", "_top_xact", "_stmt_exclusive_section"],
}  # fmt: skip
#: Methods of asyncpg's protocol, which is written in C.
ROUTED = ["query", "bind_execute", "is_in_transaction", "_is_cancelling"]
HIDDEN = [
    ("psycopg2.extensions:connection", "commit"), ("psycopg2.extensions:connection", "cursor"),
    ("psycopg2.extensions:connection", "tpc_begin"), ("psycopg2.extensions:cursor", "execute"),
    ("psycopg2.extensions:cursor", "copy_expert"), ("psycopg2.extensions:cursor", "statusmessage"),
]  # fmt: skip
KINDS = {"psycopg": [False, True], "pg8000": [False], "asyncpg": [True], "psycopg2": [False]}


@pytest.fixture
def table(postgres: Any) -> Any:
    postgres.admin("CREATE TABLE seams (n INT)")
    postgres.admin("GRANT ALL ON seams TO PUBLIC")
    yield "seams"
    postgres.admin("DROP TABLE seams")


@pytest.fixture
def use(postgres: Any, table: str) -> Callable[..., dict[str, Any]]:
    """Uses a pool in a process of its own, and gives what became of it."""

    def run(driver: str, is_async: bool, folder: Path | None = None, **job: Any) -> dict[str, Any]:
        path = [*([] if folder is None else [str(folder)]), *sys.path]
        wanted = {"url": postgres.url(driver), "async": is_async, "table": table, "hide": None, "route": None, **job}
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), json.dumps(wanted)], env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        outcome: dict[str, Any] = json.loads(ended.stdout)
        return outcome

    return run


def holds(outcome: dict[str, Any], driver: str) -> None:
    """Plain use works, the unit that wrote was not run again, and one warning says so."""
    assert outcome["rows"] == [0, 1, 2]
    assert outcome["attempts"] == 1
    assert outcome["error"] is not None
    about = [text for text in outcome["warnings"] if "not replayed" in text]
    assert len(about) == 1, outcome["warnings"]
    assert driver in about[0]


@pytest.mark.parametrize(("driver", "is_async"), [(d, a) for d, kinds in KINDS.items() for a in kinds])
def test_with_the_library_as_it_is_the_unit_is_run_again_and_nobody_is_warned(use: Any, driver: str, is_async: bool) -> None:
    outcome = use(driver, is_async)
    assert outcome["rows"] == [0, 1, 2, 200]
    assert outcome["attempts"] == 2
    assert outcome["error"] is None
    assert outcome["warnings"] == []


@pytest.mark.parametrize(("driver", "is_async", "name"), [(d, a, name) for d, names in RENAMED.items() for a in KINDS[d] for name in names])
def test_a_renamed_part_ends_replays_and_nothing_else(use: Any, tmp_path: Path, driver: str, is_async: bool, name: str) -> None:
    renamed(driver, name, tmp_path)
    holds(use(driver, is_async, tmp_path), driver)


@pytest.mark.parametrize("name", ROUTED)
def test_a_renamed_method_of_asyncpgs_protocol_ends_replays_and_nothing_else(use: Any, tmp_path: Path, name: str) -> None:
    renamed("asyncpg", name, tmp_path, after=r"_protocol\.")
    holds(use("asyncpg", True, tmp_path, route=name), "asyncpg")


@pytest.mark.parametrize(("owner", "name"), HIDDEN, ids=lambda value: value.rpartition(":")[2])
def test_a_part_written_in_c_that_is_gone_ends_replays_and_nothing_else(use: Any, owner: str, name: str) -> None:
    holds(use("psycopg2", False, hide=[owner, name]), "psycopg2")


def test_bytes_that_no_report_tells_of_forbid_a_replay(postgres: Any, table: str) -> None:
    attempts = []

    def work(conn: Any) -> None:
        attempts.append(conn)
        real_pgconn(conn).exec_(f"INSERT INTO {table} VALUES (1)".encode())  # past everything that reports
        if len(attempts) == 1:
            real_pgconn(conn).exec_(b"SELECT pg_terminate_backend(pg_backend_pid())")
            raise ConnectionResetError("lost")

    with Pool(postgres.url("psycopg")) as pool, pytest.raises(ConnectionResetError):
        pool.run(work)
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("version", "tested", "within"),
    [
        ("1.1", ">=1.1,<1.3", True), ("1.2.9", ">=1.1,<1.3", True), ("1.3", ">=1.1,<1.3", False), ("1.3.0rc1", ">=1.1,<1.3", False),
        ("1.10.1", ">=1.1,<1.3", False), ("1.0.9", ">=1.1,<1.3", False), ("2.9.13", ">=2.9,<2.10", True), ("3.3.0.dev", ">=3.2,<3.4", True),
    ],
)  # fmt: skip
def test_a_version_is_compared_by_its_numbers(version: str, tested: str, within: bool) -> None:
    assert is_within(version, tested) is within


class Library:
    """Stands for somebody else's."""

    def send(self, text: str, *, wait: bool = True) -> None:
        self.flush()

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("seam", "flaw"),
    [
        (("send", ("self", "text", "wait"), ("flush",)), None),
        (("send", ("self", ...), ()), None),
        (("send", None, ()), None),
        (("write", None, ()), "has no"),
        (("send", ("self", "text"), ()), "takes other parameters"),
        (("flush", ("self",), ("send",)), "does not use send"),
    ],
)
def test_a_seam_is_what_it_was_or_says_what_changed(seam: Any, flaw: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "somebodys", sys.modules[Library.__module__])
    found = Seam("somebodys:Library", *seam).flaw()
    assert found is None if flaw is None else flaw in str(found)
