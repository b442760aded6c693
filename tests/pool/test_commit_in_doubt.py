"""COMMITs whose answer is lost, and COMMITs that never arrive, with every driver: what is reported
and what is stored agree.

The fault proxy cuts each connection at its COMMIT: after the server has executed it and before the
client heard so, or before the server heard of it. Every eleventh COMMIT passes. Half of the rows
are written by a unit of work, which must not be run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from unbroken import Pool
from unbroken_drill.servers import MariaDB, MySQL, PostgreSQL, Server

from .every_driver import MYSQL, POSTGRESQL

WORKER = Path(__file__).with_name("commit_in_doubt_worker.py")
KINDS: dict[str, type[Server]] = {"mariadb": MariaDB, "mysql": MySQL, "postgresql": PostgreSQL}
ROWS = [
    *(("mariadb", name) for name in MYSQL),
    (
        "mysql",
        "mysqlconnector",
    ),  # sends its statements with query attributes, which MariaDB does not know
    *(("postgresql", name) for name in POSTGRESQL),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    made: dict[str, Server] = {}
    with ExitStack() as stack:

        def server(kind: str) -> Server:
            if kind not in made:
                made[kind] = stack.enter_context(KINDS[kind]())
                if (
                    kind == "mysql"
                    # whom it let in once over TLS it lets in without, for caching_sha2_password
                    # remembers
                ):
                    with Pool(made[kind].url("mysqlconnector")) as pool:
                        pool.release(pool.acquire())
            return made[kind]

        yield server


def url(server: Server, driver: str) -> str:
    query: dict[str, object] = {}
    if isinstance(server, PostgreSQL):
        query = {"sslmode": "disable"}
    elif driver.startswith("mysqlconnector"):
        query = {"ssl_disabled": "true"}
    return server.url(driver.removesuffix("_async"), **query)


def committed(
    server: Server, driver: str, count: int
) -> tuple[list[dict[str, Any]], Counter[int], dict[str, Any]]:
    """What the worker reported of each row, how often each row is stored, and what its proxy
    saw.
    """
    table = f"doubt_{driver}"
    server.admin(f"CREATE TABLE {table} (n INT)")
    if isinstance(server, PostgreSQL):
        server.admin(f'ALTER TABLE {table} OWNER TO "{server.user}"')
    done = subprocess.run(
        [sys.executable, str(WORKER), driver, url(server, driver), table, str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *reports, proxy = map(json.loads, done.stdout.splitlines())
    server.kill_sessions()  # whoever is still in a transaction rolls back
    stored = Counter(int(row[0]) for row in server.admin(f"SELECT n FROM {table}"))
    server.admin(f"DROP TABLE {table}")
    return reports, stored, proxy


def hold_to_account(server: Server, driver: str, count: int) -> None:
    reports, stored, proxy = committed(server, driver, count)
    assert [report["number"] for report in reports] == list(range(count))
    assert proxy == {
        "unreadable": [],
        "cuts": sum(report["fate"] != "passes" for report in reports),
    }
    wrong = []
    for report in reports:
        said = "stored" if report["fate"] == "passes" else "CommitUnknownError"
        rows = 0 if report["fate"] == "never arrived" else 1
        if (report["said"], report["runs"], stored[report["number"]]) != (said, 1, rows):
            wrong.append(report | {"rows": stored[report["number"]]})
    assert wrong == []
    fates = Counter(report["fate"] for report in reports)
    print(
        f"{server.backend} {driver}: {dict(fates)}; rows stored {sum(stored.values())}, twice"
        f" {sum(n > 1 for n in stored.values())}"
    )


@pytest.mark.parametrize(("kind", "driver"), ROWS)
def test_what_is_said_of_a_commit_and_what_is_stored_agree(
    servers: Callable[[str], Server], kind: str, driver: str
) -> None:
    hold_to_account(servers(kind), driver, 33)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "driver"), ROWS)
def test_of_a_thousand_commits_in_doubt_too(
    servers: Callable[[str], Server], kind: str, driver: str
) -> None:
    hold_to_account(servers(kind), driver, 1100)
