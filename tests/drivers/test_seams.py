"""Closed unless proven open: a library that does not work as its driver file knows it is used as
before, but never replayed.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import unbroken
from unbroken import Pool
from unbroken.drivers._psycopg_watch import real_pgconn
from unbroken.drivers._seams import Seam, is_within

PROGRAM = Path(__file__).with_name("renamed.py")
renamed = runpy.run_path(str(PROGRAM))["renamed"]

#: Private names of each library that its driver file relies on.
RENAMED = {
    "psycopg": [ "_start_query", "_exec_command", "_autocommit", "_commit_gen", "_execute_gen", "_connect_gen", "_fetch_gen", "_stream_send_gen", ],  # noqa: E501
    "pg8000": [ "execute_simple", "execute_unnamed", "execute_named", "handle_messages", "prepare_statement", "close_prepared_statement", "_transaction_status", "_usock", "_sock", "_backend_key_data", "_read", "_client_encoding", "_in_transaction", ],  # noqa: E501
    "asyncpg": ["_protocol", "_transport", "_top_xact", "_stmt_exclusive_section", "TransactionState"],  # noqa: E501
    "pymysql": [ "_execute_command", "_read_ok_packet", "_read_query_result", "_write_bytes", "write_packet", "_request_authentication", "_create_ssl_ctx", "_force_close", "_sock", "_result", "_read_timeout", "_closed", "has_next", "unbuffered_active", "_check_packet_is_eof", "_read_load_local_packet", "_finish_unbuffered_query", "get_all_data", "raise_mysql_exception", ],  # noqa: E501
    "aiomysql": [ "_execute_command", "_read_ok_packet", "_read_query_result", "_write_bytes", "write_packet", "_request_authentication", "_result", "_writer", "_charset", "_encoding", "unbuffered_active", "_check_packet_is_eof", ],  # noqa: E501
    "mysqldb": ["_query", "_get_result"],
    "mariadbconnector": ["_last_executed_statement", "_converter", "_prepared"],
    "mysqlconnector": [ "_send_cmd", "_handle_server_status", "_handle_ok", "_handle_eof", "_handle_result", "_handle_binary_result", "_socket", "_have_next_result", "handle_unread_result", "_read_timeout", "_handshake", ],  # noqa: E501
}  # fmt: skip
#: Where a library is not named as its driver.
PACKAGES = {"mysqldb": "MySQLdb", "mariadbconnector": "mariadb", "mysqlconnector": "mysql"}
#: What the warning calls a driver.
NAMES = {"mysqldb": "mysqlclient", "mariadbconnector": "mariadb"}
#: Methods of asyncpg's protocol, which is written in C.
ROUTED = ["query", "bind_execute", "is_in_transaction", "_is_cancelling"]
HIDDEN = [
    ("pymysql.connections:Connection", "next_result"),
    ("aiomysql.connection:Connection", "show_warnings"),
    *(("asyncmy.connection:Connection", name) for name in ("_execute_command", "_write_bytes", "_read_query_result", "_connected")),  # noqa: E501
    *(("MySQLdb.connections:Connection", name) for name in ("query", "store_result", "next_result", "get_autocommit", "field_count")),  # noqa: E501
    *(("mariadb.connections:Connection", name) for name in ("_execute_command", "_read_response", "_get_socket", "server_status")),  # noqa: E501
    *(("mariadb.cursors:Cursor", name) for name in ("_execute_text", "_execute_binary", "nextset")),
    ("psycopg2.extensions:connection", "commit"), ("psycopg2.extensions:connection", "cursor"),
    ("psycopg2.extensions:connection", "tpc_begin"), ("psycopg2.extensions:cursor", "execute"),
    ("psycopg2.extensions:cursor", "copy_expert"), ("psycopg2.extensions:cursor", "statusmessage"),
]  # fmt: skip
POSTGRESQL = {"psycopg", "psycopg2", "pg8000", "asyncpg"}
KINDS = {
    "psycopg": [False, True], "pg8000": [False], "asyncpg": [True], "psycopg2": [False],
    "pymysql": [False], "aiomysql": [True], "asyncmy": [True], "mysqldb": [False],
    "mariadbconnector": [False], "mysqlconnector": [False, True],
}  # fmt: skip


@pytest.fixture
def table(postgres: Any) -> Any:
    postgres.admin("CREATE TABLE seams (n INT)")
    postgres.admin("GRANT ALL ON seams TO PUBLIC")
    yield "seams"
    postgres.admin("DROP TABLE seams")


@pytest.fixture
def use(request: pytest.FixtureRequest) -> Any:
    """Uses a pool in a process of its own, and gives what became of it."""
    tables = []

    def run(driver: str, is_async: bool, folder: Path | None = None, **job: Any) -> dict[str, Any]:
        path = [*([] if folder is None else [str(folder)]), *sys.path]
        server = request.getfixturevalue("postgres" if driver in POSTGRESQL else "mariadb")
        table = request.getfixturevalue("table") if driver in POSTGRESQL else "seams"
        if driver not in POSTGRESQL:
            server.admin(f"CREATE TABLE {table} (n INT) ENGINE=InnoDB")
            tables.append((server, table))
        url = server.url(driver)
        wanted = {"url": url, "async": is_async, "table": table, "hide": None, "route": None, **job}
        wanted["socket"] = str(server.unix_socket)
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), json.dumps(wanted)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        outcome: dict[str, Any] = json.loads(ended.stdout)
        return outcome

    yield run
    for server, table in tables:
        server.admin(f"DROP TABLE {table}")


def holds(outcome: dict[str, Any], driver: str) -> None:
    """Plain use works, the unit that wrote was not run again, and one warning says so."""
    assert outcome["rows"] == [0, 1, 2]
    assert outcome["attempts"] == 1
    assert outcome["error"] is not None
    about = [text for text in outcome["warnings"] if "Its connections work" in text]
    assert len(about) == 1, outcome["warnings"]
    assert NAMES.get(driver, driver) in about[0]


@pytest.mark.parametrize(
    ("driver", "is_async"), [(d, a) for d, kinds in KINDS.items() for a in kinds]
)
def test_with_the_library_as_it_is_the_unit_is_run_again_and_nobody_is_warned(
    use: Any, driver: str, is_async: bool
) -> None:
    outcome = use(driver, is_async)
    assert outcome["rows"] == [0, 1, 2, 200]
    assert outcome["attempts"] == 2
    assert outcome["error"] is None
    assert outcome["warnings"] == []


#: Each takes two seconds, so of the long lists only the first few are in the default tests.
MOST = 3


def renames() -> list[Any]:
    return [
        pytest.param(
            driver,
            is_async,
            name,
            marks=pytest.mark.soak if at >= MOST and driver not in POSTGRESQL else (),
        )
        for driver, names in RENAMED.items()
        for at, name in enumerate(names)
        for is_async in KINDS[driver]
    ]


@pytest.mark.parametrize(("driver", "is_async", "name"), renames())
def test_a_renamed_part_ends_replays_and_nothing_else(
    use: Any, tmp_path: Path, driver: str, is_async: bool, name: str
) -> None:
    renamed(PACKAGES.get(driver, driver), name, tmp_path)
    holds(use(driver, is_async, tmp_path), driver)


@pytest.mark.parametrize("name", ROUTED)
def test_a_renamed_method_of_asyncpgs_protocol_ends_replays_and_nothing_else(
    use: Any, tmp_path: Path, name: str
) -> None:
    renamed("asyncpg", name, tmp_path, after=r"_protocol\.")
    holds(use("asyncpg", True, tmp_path, route=name), "asyncpg")


@pytest.mark.parametrize(("owner", "name"), HIDDEN, ids=lambda value: value.rpartition(":")[2])
def test_a_part_that_is_gone_ends_replays_and_nothing_else(use: Any, owner: str, name: str) -> None:
    package = owner.partition(".")[0]
    driver = next((driver for driver, its in PACKAGES.items() if its == package), package)
    holds(use(driver, KINDS[driver][0], hide=[owner, name]), driver)


#: The files of each driver, and where to look for what its library has.
FILES = {
    "pg8000": (["pg8000", "_pg8000_connection", "_pg8000_trips"], ["pg8000"]),
    "pymysql": (["pymysql", "_pymysql_connection", "_mysql_exchange"], ["pymysql"]),
    "aiomysql": (
        ["aiomysql", "_mysql_async_connection", "_mysql_exchange"],
        ["aiomysql", "pymysql"],
    ),
    "asyncmy": (["asyncmy", "_mysql_async_connection", "_mysql_exchange"], ["asyncmy"]),
    "mysqlclient": (["mysqlclient", "_mysqlclient_connection"], ["MySQLdb"]),
    "mariadb": (["mariadb", "_mariadb_connection"], ["mariadb"]),
    "mysqlconnector": (
        [
            "mysqlconnector",
            "_mysqlconnector_base",
            "_mysqlconnector",
            "_mysqlconnector_exchange",
            "_mysqlconnector_due",
            "_mysqlconnector_watch",
        ],
        ["mysql.connector"],
    ),
}
OWN = {"Driver", "AsyncDriver", "Shared", "Base"}
#: Instance attributes of asyncmy's, which is compiled: the trial asks for the traits.
UNSEEN = {"_charset", "_db", "_use_unicode", "_encoders", "_decoders"}
#: What the C extension is only asked for after a look whether it is that form, and names that are
#: another's, too.
ELSEWHERE = {"_connection", "_cmysql", "_reader", "_buffer", "_connect"}


def relied_on(file: str) -> set[str]:
    """The private names that *file* uses, apart from a driver's own, and what its connection
    classes override.
    """
    tree = ast.parse((Path(unbroken.__file__).parent / f"drivers/{file}.py").read_text())
    own = {
        id(node)
        for top in tree.body
        if isinstance(top, ast.ClassDef) and top.name in OWN
        for node in ast.walk(top)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (
            id(node) in own and isinstance(node.value, ast.Name) and node.value.id == "self"
        ):
            names.add(node.attr)
        if isinstance(node, ast.ClassDef) and id(node) not in own:
            names |= {
                each.name
                for each in node.body
                if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return {name for name in names if not name.startswith(("_seen", "__"))}


def mentioned(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return "".join(
        file.read_text()
        for file in Path(spec.origin).parent.rglob("*.py*")
        if file.suffix in (".py", ".pyx", ".pyi")
    )


@pytest.mark.parametrize("driver", FILES)
def test_every_private_name_that_a_drivers_file_relies_on_is_a_seam(driver: str) -> None:
    files, packages = FILES[driver]
    module = importlib.import_module(f"unbroken.drivers.{driver}")
    seams = [
        seam for name, each in vars(module).items() if name.endswith("_SEAMS") for seam in each
    ]
    declared = {seam.name for seam in seams} | {name for seam in seams for name in seam.calls}
    known = set(re.findall(r"\w+", "".join(mentioned(package) for package in packages)))
    private = {name for file in files for name in relied_on(file) if name.startswith("_")}
    assert private & known - declared - ELSEWHERE - UNSEEN == set()


def test_bytes_that_no_report_tells_of_forbid_a_replay(postgres: Any, table: str) -> None:
    attempts = []

    def work(conn: Any) -> None:
        attempts.append(conn)
        # past everything that reports
        real_pgconn(conn).exec_(f"INSERT INTO {table} VALUES (1)".encode())
        if len(attempts) == 1:
            real_pgconn(conn).exec_(b"SELECT pg_terminate_backend(pg_backend_pid())")
            raise ConnectionResetError("lost")

    with Pool(postgres.url("psycopg")) as pool, pytest.raises(ConnectionResetError):
        pool.run(work)
    assert len(attempts) == 1


@pytest.mark.parametrize(
    ("version", "tested", "within"),
    [
        ("1.1", ">=1.1,<1.3", True), ("1.2.9", ">=1.1,<1.3", True), ("1.3", ">=1.1,<1.3", False), ("1.3.0rc1", ">=1.1,<1.3", False),  # noqa: E501
        ("1.10.1", ">=1.1,<1.3", False), ("1.0.9", ">=1.1,<1.3", False), ("2.9.13", ">=2.9,<2.10", True), ("3.3.0.dev", ">=3.2,<3.4", True),  # noqa: E501
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
        (("send", ("self", "text"), ()), "has unexpected parameters"),
        (("flush", ("self",), ("send",)), "does not use send"),
    ],
)
def test_a_seam_is_what_it_was_or_says_what_changed(
    seam: Any, flaw: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "somebodys", sys.modules[Library.__module__])
    found = Seam("somebodys:Library", *seam).flaw()
    assert found is None if flaw is None else flaw in str(found)
