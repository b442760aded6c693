"""Names that are unknown for a while, and names that move, with every driver under load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from .every_driver import MYSQL, POSTGRESQL, url_of
from .moving import Load, Names, build_names

HOST = "db.moving.test"
DRIVERS = [*POSTGRESQL, *MYSQL]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_names(tmp_path_factory.mktemp("names"))


@pytest.fixture
def names(library: Path, tmp_path: Path) -> Names:
    return Names(library, tmp_path)


@pytest.fixture(scope="module", params=["postgresql", "mysql"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Server, list[str]]]:
    """A server, and the drivers that go there."""
    is_postgres = request.param == "postgresql"
    with PostgreSQL() if is_postgres else MariaDB() as server:
        yield server, POSTGRESQL if is_postgres else MYSQL


def named(server: Server, driver: str) -> str:
    return url_of(server, driver, False).replace(f"@{server.host}:", f"@{HOST}:")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("error", [-2, -3], ids=["no such name", "try again"])
def test_a_name_that_is_unknown_for_two_seconds_fails_nobody(
    served: tuple[Server, list[str]], names: Names, error: int
) -> None:
    server, drivers = served
    names.lead(HOST, server.host)
    with ExitStack() as stack:
        loads = {
            driver: stack.enter_context(
                closing(Load(driver, named(server, driver), environment=names.environment))
            )
            for driver in drivers
        }
        for load in loads.values():
            load.tell("load")
        assert {load.answer() for load in loads.values()} == {"going"}
        names.lead(HOST, error)
        server.kill_sessions()
        time.sleep(2.0)
        names.lead(HOST, server.host)
        for load in loads.values():
            load.tell("stop")
        met = {driver: load.answer() for driver, load in loads.items()}
    assert {driver: said["errors"][:2] for driver, said in met.items() if said["errors"]} == {}
    if error == -2:  # one client library asks again by itself where it is told to try again
        assert [who for who, said in met.items() if not said["failures"]] == [], "it was known"
