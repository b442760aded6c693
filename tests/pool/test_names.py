"""Names that are unknown for a while, and names that move, with every driver under load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from .every_driver import MYSQL, POSTGRESQL, url_of
from .moving import Load, Names, build_names, wait_until

HOST = "db.moving.test"


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
        yield (
            server,
            [*POSTGRESQL, "sqlalchemy-psycopg"]
            if is_postgres
            else [
                *MYSQL,
                "sqlalchemy-pymysql",
            ],
        )


def named(server: Server, driver: str) -> str:
    name = driver.removeprefix("sqlalchemy-")
    return url_of(server, name, False).replace(f"@{server.host}:", f"@{HOST}:")


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
    if error == -2:
        assert any(said["failures"] for said in met.values()), "it was known"


class Places:
    """Two addresses with one port each leads to the same server by; what is connected where."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        target = (server.host, server.port)
        self.old = stack.enter_context(FaultProxy(target, ("127.0.0.21", 0)))
        self.port = int(self.old.address[1])
        self.new = stack.enter_context(FaultProxy(target, ("127.0.0.22", self.port)))

    def url(self, server: Server, driver: str) -> str:
        return named(server, driver).replace(f":{server.port}/", f":{self.port}/")

    def at_old(self) -> int:
        return sum(each.state != "closed" for each in self.old.connections)


@pytest.mark.timeout(180)
def test_a_name_that_moves_takes_all_connections_with_it_within_ten_seconds(
    served: tuple[Server, list[str]], names: Names
) -> None:
    """The old server still answers, and nobody fails."""
    server, drivers = served
    names.lead(HOST, "127.0.0.21")
    with ExitStack() as stack:
        places = {driver: Places(server, stack) for driver in drivers}
        loads = {}
        for driver, place in places.items():
            load = Load(driver, place.url(server, driver), environment=names.environment)
            loads[driver] = stack.enter_context(closing(load))
        for load in loads.values():
            load.tell("load")
        assert {load.answer() for load in loads.values()} == {"going"}
        time.sleep(1.0)  # a look that began at the first connection has ended
        names.lead(HOST, "127.0.0.22")
        moved = time.monotonic()
        left: dict[str, float] = {}
        while len(left) < len(places) and time.monotonic() < moved + 20.0:
            for driver, place in places.items():
                if driver not in left and not place.at_old():
                    left[driver] = time.monotonic() - moved
            time.sleep(0.05)
        for load in loads.values():
            load.tell("stop")
        met = {driver: load.answer() for driver, load in loads.items()}
        late = {who: left.get(who) for who in places if not 0 < left.get(who, 99.0) < 10.0}
    assert late == {}
    assert {driver: said["errors"][:2] for driver, said in met.items() if said["errors"]} == {}
    assert [who for who, said in met.items() if not said["closed"].get("name moved")] == []


@pytest.mark.timeout(120)
def test_a_name_that_moves_to_where_nobody_listens_is_not_followed(
    served: tuple[Server, list[str]], names: Names
) -> None:
    server, drivers = served
    names.lead(HOST, "127.0.0.21")
    with ExitStack() as stack:
        place = Places(server, stack)
        url = place.url(server, drivers[0])
        load = Load(drivers[0], url, environment=names.environment, max_size=1)
        stack.enter_context(closing(load))
        assert load.ask("load") == "going"
        names.lead(HOST, "127.0.0.23")
        asked = names.asked()
        wait_until(lambda: names.asked() >= asked + 3)
        said = load.ask("stop")
        assert said["errors"] == []
        assert said["closed"] == {}
        assert place.at_old()


@pytest.mark.timeout(120)
def test_a_lookup_that_hangs_disturbs_nobody_and_is_not_begun_again(
    served: tuple[Server, list[str]], names: Names
) -> None:
    server, drivers = served
    names.lead(HOST, server.host)
    with closing(
        Load(drivers[0], named(server, drivers[0]), environment=names.environment)
    ) as load:
        assert load.ask("load") == "going"
        names.lead(HOST, "hang")
        asked = names.asked()
        wait_until(lambda: names.asked() > asked)
        time.sleep(4.0)  # longer than two looks are apart
        said = load.ask("stop")
        assert said["errors"] == []
        assert said["threads"].count("unbroken-names") == 1
        names.lead(HOST, server.host)


@pytest.mark.parametrize(
    "switch", ["off", "an address"], ids=["follow_dns=False", "an address in the URL"]
)
def test_nothing_is_looked_up_where_nothing_is_followed(
    served: tuple[Server, list[str]], names: Names, switch: str
) -> None:
    server, drivers = served
    names.lead(HOST, server.host)
    url = named(server, drivers[0]) if switch == "off" else url_of(server, drivers[0], False)
    settings = {"follow_dns": False} if switch == "off" else {}
    with closing(Load(drivers[0], url, environment=names.environment, **settings)) as load:
        assert load.ask("load") == "going"
        asked = names.asked()
        time.sleep(4.0)
        said = load.ask("stop")
        assert "unbroken-names" not in said["threads"]
        assert names.asked() == asked
