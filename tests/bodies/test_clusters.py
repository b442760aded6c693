"""Several hosts, passwords that change, and a server that stops to take writes, in every body."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

import unbroken
from unbroken.pool import servers as known
from unbroken_drill.servers import PostgreSQL, PostgreSQLCluster

from ..callers import at_work
from .bodies import Body
from .every import BODIES, opened
from .test_behaviours import come_to_rest, until

#: Callers at a time, and connections at most.
CALLERS, SIZE = 6, 4
#: Seconds for which the server takes no writes.
WINDOW = 2.0
#: Seconds within which the second host serves where the first one is frozen.
SOON = 2.0
NAMES = [name for name, kind in BODIES.items() if kind.backend == "postgresql"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[PostgreSQL, PostgreSQL]]:
    """Two servers that let the same user in."""
    with PostgreSQL() as first, PostgreSQL() as second:
        second.admin(f"ALTER USER {first.user} PASSWORD '{first.password}'")
        yield first, second


@pytest.fixture
def server(pair: tuple[PostgreSQL, PostgreSQL]) -> Iterator[PostgreSQL]:
    """One of them, with an empty table."""
    known._records.clear()  # what this process knows of it, from earlier tests
    first, _ = pair
    first.admin("DROP TABLE IF EXISTS kept")
    first.admin(f"CREATE TABLE kept (n INT PRIMARY KEY); ALTER TABLE kept OWNER TO {first.user}")
    yield first
    first.set(default_transaction_read_only="off")
    first.admin("DROP TABLE IF EXISTS kept")


def several(name: str, pair: Sequence[PostgreSQL]) -> Callable[[str], str]:
    """The URL of both hosts, for the body called *name*."""
    first = pair[0]
    hosts = [f"{each.host}:{each.port}" for each in pair]

    def url(driver: str) -> str:
        start = f"postgresql+{driver}://{first.user}:{first.password}@"
        if "sqlalchemy" in name:
            return f"{start}/{first.database}?{'&'.join(f'host={each}' for each in hosts)}"
        return f"{start}{','.join(hosts)}/{first.database}"

    return url


PORT = "SELECT inet_server_port()"


def test_a_frozen_or_stopped_first_host_does_not_hide_the_second(
    name: str, pair: tuple[PostgreSQL, PostgreSQL]
) -> None:
    first, second = pair
    known._records.clear()
    with opened(name, several(name, pair), 2, target="primary") as body, ExitStack() as stack:
        stack.callback(first.thaw)
        first.freeze()
        began = time.monotonic()
        assert int(body.store(PORT)) == second.port
        assert time.monotonic() - began < SOON
        assert set(body.stats().hosts) == {f"127.0.0.1:{second.port}"}
        first.thaw()
        stack.callback(second.start)
        second.stop()
        assert int(body.store(PORT)) == first.port


def test_a_password_that_changes_is_asked_for(name: str, server: PostgreSQL) -> None:
    new, given = secrets.token_urlsafe(12), [server.password]

    def url(driver: str) -> str:
        return server.url(driver).replace(f":{server.password}@", "@")

    def change(password: str) -> None:
        server.admin(f"ALTER USER {server.user} PASSWORD '{password}'")

    timer = threading.Timer(1.0, lambda: given.append(new))
    try:
        with opened(name, url, 2, password=lambda: given[-1]) as body:
            assert body.ask() > 0
            change(new)
            server.kill_sessions()
            timer.start()
            assert body.ask() > 0
            timer.join()
            server.kill_sessions()
            assert body.ask() > 0
    finally:
        change(server.password)


class Load:
    """What callers of a body see while something happens to its server."""

    def __init__(self, body: Body, how: str) -> None:
        self.body, self.how = body, how
        self.over = threading.Event()
        self.stored: list[int] = []
        self.errors: list[BaseException] = []
        self.at = 0.0

    def write(self, number: int) -> None:
        while not self.over.is_set():
            number += CALLERS
            sql = f"INSERT INTO kept VALUES ({number}) RETURNING n"
            try:
                getattr(self.body, self.how)(sql)
            except Exception as error:
                self.errors.append(error)
            else:
                self.stored.append(number)
                self.at = time.monotonic()
            time.sleep(0.005)


@contextmanager
def load(body: Body, how: str) -> Iterator[Load]:
    """Several threads write as fast as they can."""
    seen = Load(body, how)
    with at_work([partial(seen.write, n) for n in range(CALLERS)], seen.over):
        yield seen


@pytest.mark.parametrize("how", ["store", "replay"])
def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(
    name: str, server: PostgreSQL, how: str
) -> None:
    with opened(name, server.url, SIZE) as body:
        with load(body, how) as seen:
            until(lambda: len(seen.stored) > 40)
            before = body.stats().opened
            server.set(default_transaction_read_only="on")
            time.sleep(WINDOW)
            during = body.stats().opened - before
            server.set(default_transaction_read_only="off")
            at = time.monotonic()
            until(lambda: seen.at > at)
            first = seen.at - at
            until(lambda: seen.at > at + 0.5)
        assert [repr(each) for each in seen.errors] == []
        assert sorted(int(n) for (n,) in server.admin("SELECT n FROM kept")) == sorted(seen.stored)
        assert during <= 3 * SIZE
        assert first < 1.0
        assert body.stats().outages == 1
        come_to_rest(body)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQLCluster]:
    """A primary and a standby, which loses no commit."""
    with PostgreSQLCluster(synchronous=True) as found:
        yield found


@pytest.mark.timeout(120)
def test_units_of_work_ride_through_a_switchover(name: str, cluster: PostgreSQLCluster) -> None:
    known._records.clear()
    first = cluster.servers[0]
    cluster.admin("DROP TABLE IF EXISTS kept")
    cluster.admin(f"CREATE TABLE kept (n INT PRIMARY KEY); ALTER TABLE kept OWNER TO {first.user}")
    with opened(name, several(name, cluster.servers), SIZE, target="primary") as body:
        with load(body, "replay") as seen:
            until(lambda: len(seen.stored) > 40)
            new = cluster.switchover()
            at = time.monotonic()
            until(lambda: seen.at > at + 0.5)
        unknown = [each for each in seen.errors if isinstance(each, unbroken.CommitUnknownError)]
        assert [repr(each) for each in seen.errors if each not in unknown] == []
        rows = {int(n) for (n,) in new.admin("SELECT n FROM kept")}
        assert rows >= set(seen.stored)
        assert len(rows - set(seen.stored)) <= len(unknown) <= CALLERS
        assert set(body.stats().hosts) == {f"127.0.0.1:{new.port}"}


def test_the_applications_own_read_only_transaction_is_its_own_affair(
    name: str, server: PostgreSQL
) -> None:
    with opened(name, server.url, SIZE) as body:
        body.store("INSERT INTO kept VALUES (1) RETURNING n")
        before = body.stats()
        began = time.monotonic()
        with pytest.raises(Exception, match="read-only transaction") as caught:
            body.change(
                "SELECT set_config('transaction_read_only', 'on', true)",
                "INSERT INTO kept VALUES (2) RETURNING n",
            )
        assert time.monotonic() - began < 1.0
        assert not isinstance(caught.value, unbroken.UnbrokenError)
        come_to_rest(body)
        after = body.stats()
        assert (after.opened, after.idle, after.outages) == (before.opened, before.idle, 0)
        body.store("INSERT INTO kept VALUES (3) RETURNING n")


@pytest.mark.parametrize("kind", ["none", "an error", "a wrong one"])
def test_a_callable_without_a_good_password_says_so_in_the_same_words(
    name: str, server: PostgreSQL, kind: str
) -> None:
    def read() -> str | None:
        if kind == "an error":
            raise ValueError("the vault is sealed")
        return None if kind == "none" else "a-wrong-one"

    def url(driver: str) -> str:
        return server.url(driver).replace(f":{server.password}@", "@")

    expected: dict[str, tuple[type[Exception], str]] = {
        "none": (unbroken.ConfigurationError, "returned None"),
        "an error": (unbroken.OutageError, "raised ValueError"),
        "a wrong one": (unbroken.ConnectRejectedError, "with a newly requested login"),
    }
    error, words = expected[kind]
    with opened(name, url, 2, password=read, outage_wait=0.5) as body:
        body.stats()
        began = time.monotonic()
        with pytest.raises(error, match=words) as caught:
            body.ask()
        assert time.monotonic() - began < 3.0
        assert "a-wrong-one" not in str(caught.value)
        come_to_rest(body)
