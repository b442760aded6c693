"""unbroken's pytest plugin: real servers, faults by name, and a check for leaked connections
(docs/testing.md).

Every pytest run loads it where unbroken is installed, so it imports nothing before a fixture or
marker is used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unbroken import Pool
    from unbroken_drill.databases import SharedServers
    from unbroken_drill.faults import Fault
    from unbroken_drill.proxy import FaultProxy
    from unbroken_drill.servers import (
        Cluster,
        Galera,
        HAProxy,
        MariaDB,
        MariaDBCluster,
        MongoDB,
        MongoReplicaSet,
        MySQL,
        PgBouncer,
        PostgreSQL,
        PostgreSQLCluster,
        Server,
    )

#: Kinds of servers, each the fixture ``unbroken_KIND``.
_SERVERS = ("mariadb", "mysql", "postgres", "mongodb")
_FAULTS = "unbroken_faults(*names, server=None, seconds=0.3, after=0.1, every=None)"
#: Seconds that threads have to return a connection when a test ends.
_GRACE = 0.5


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings for pytest.ini and pyproject.toml."""
    parser.addini(
        "unbroken_missing_server",
        "the result of a test whose server is not installed: fail (the default) or skip",
        default="fail",
    )
    parser.addini(
        "unbroken_no_connection_leaks",
        "check every test as the marker of that name does",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """The markers."""
    faults = (
        f"{_FAULTS}: run the test once for each fault. The test plays it with the fixture"
        " unbroken_fault; otherwise the fault comes during the test"
    )
    leaks = (
        "unbroken_no_connection_leaks: fail the test if it leaves a connection checked out, and"
        " name the line that acquired it"
    )
    config.addinivalue_line("markers", faults)
    config.addinivalue_line("markers", leaks)


# -- servers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def unbroken_servers() -> Iterator[SharedServers]:
    """The servers of this process (an xdist worker has its own), started when a test requests one:
    ``unbroken_servers.get("mysql")``.
    """
    from unbroken_drill.databases import SharedServers

    with SharedServers() as servers:
        yield servers


def _fresh(request: pytest.FixtureRequest, kind: str) -> Iterator[Any]:
    servers: SharedServers = request.getfixturevalue("unbroken_servers")
    with _or_skipped(request):
        servers.get(kind)
    with servers.fresh(kind) as server:
        yield server


@contextmanager
def _or_skipped(request: pytest.FixtureRequest) -> Iterator[None]:
    """If a server is not available, skip or fail the test, as the project's settings define."""
    from unbroken_drill.servers import ServerUnavailable

    try:
        yield
    except ServerUnavailable as reason:
        if request.config.getini("unbroken_missing_server") == "skip":
            pytest.skip(str(reason))
        pytest.fail(str(reason), pytrace=False)


@pytest.fixture
def unbroken_mariadb(request: pytest.FixtureRequest) -> Iterator[MariaDB]:
    """A MariaDB server with a fresh database: ``unbroken_mariadb.url("pymysql")``.

    A test can stop, kill and freeze it, and change its settings.
    """
    yield from _fresh(request, "mariadb")


@pytest.fixture
def unbroken_mysql(request: pytest.FixtureRequest) -> Iterator[MySQL]:
    """A MySQL server with a fresh database, used in the same way as unbroken_mariadb."""
    yield from _fresh(request, "mysql")


@pytest.fixture
def unbroken_postgres(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    """A PostgreSQL server with a fresh database, used in the same way as unbroken_mariadb."""
    yield from _fresh(request, "postgres")


@pytest.fixture
def unbroken_mongodb(request: pytest.FixtureRequest) -> Iterator[MongoDB]:
    """A MongoDB server with a fresh database, used in the same way as unbroken_mariadb."""
    yield from _fresh(request, "mongodb")


# -- clusters, the test's own ----------------------------------------------------------------------


def _started(request: pytest.FixtureRequest, name: str) -> Iterator[Any]:
    from unbroken_drill import servers

    with ExitStack() as stack:
        with _or_skipped(request):
            cluster = stack.enter_context(getattr(servers, name)())
        yield cluster


@pytest.fixture
def unbroken_postgres_cluster(request: pytest.FixtureRequest) -> Iterator[PostgreSQLCluster]:
    """A PostgreSQL primary with a standby: ``promote()``, ``switchover()``, ``demote()``."""
    yield from _started(request, "PostgreSQLCluster")


@pytest.fixture
def unbroken_mariadb_cluster(request: pytest.FixtureRequest) -> Iterator[MariaDBCluster]:
    """A MariaDB primary with a replica: ``promote()``, ``switchover()``, ``demote()``."""
    yield from _started(request, "MariaDBCluster")


@pytest.fixture
def unbroken_galera(request: pytest.FixtureRequest) -> Iterator[Galera]:
    """A Galera cluster of three nodes."""
    yield from _started(request, "Galera")


@pytest.fixture
def unbroken_replica_set(request: pytest.FixtureRequest) -> Iterator[MongoReplicaSet]:
    """A MongoDB replica set of three members."""
    yield from _started(request, "MongoReplicaSet")


# -- proxies and balancers on the way --------------------------------------------------------------


@pytest.fixture
def unbroken_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """``unbroken_proxy(unbroken_postgres)``: a started FaultProxy in front of a server (or an
    address), closed with the test.
    """
    from unbroken_drill.faults import for_server
    from unbroken_drill.proxy import FaultProxy
    from unbroken_drill.servers import Server

    with ExitStack() as stack:

        def make(upstream: Any, **options: Any) -> FaultProxy:
            proxy = (
                for_server(upstream, **options)
                if isinstance(upstream, Server)
                else FaultProxy(upstream, **options)
            )
            return stack.enter_context(proxy)

        yield make


@pytest.fixture
def unbroken_haproxy(request: pytest.FixtureRequest) -> Iterator[Callable[..., HAProxy]]:
    """``unbroken_haproxy(unbroken_postgres_cluster)``: a started HAProxy in front of a cluster or a
    list of servers, closed with the test.
    """
    from unbroken_drill.servers import HAProxy

    with ExitStack() as stack:

        def make(servers: Cluster[Any] | list[Server], **options: Any) -> HAProxy:
            with _or_skipped(request):
                return stack.enter_context(HAProxy(servers, **options))

        yield make


@pytest.fixture
def unbroken_pgbouncer(request: pytest.FixtureRequest) -> Iterator[Callable[..., PgBouncer]]:
    """``unbroken_pgbouncer(unbroken_postgres, "transaction")``: a started PgBouncer in front of a
    server, closed with the test.
    """
    from unbroken_drill.servers import PgBouncer

    with ExitStack() as stack:

        def make(server: PostgreSQL, *args: Any, **options: Any) -> PgBouncer:
            with _or_skipped(request):
                return stack.enter_context(PgBouncer(server, *args, **options))

        yield make


@pytest.fixture
def unbroken_pool() -> Iterator[Callable[..., Pool]]:
    """``unbroken_pool(unbroken_postgres)``: an unbroken.Pool to a server, a fault or a URL, closed
    with the test.

    ``unbroken_pool(unbroken_postgres, "psycopg", max_size=3)``: with that driver, and settings.
    """
    from unbroken import Pool

    with ExitStack() as stack:

        def make(where: Any, driver: str | None = None, **settings: Any) -> Pool:
            pool = Pool(where if isinstance(where, str) else where.url(driver), **settings)
            stack.callback(pool.close, timeout=0.0)
            return pool

        yield make


# -- faults ----------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the marker ``unbroken_faults`` once per fault."""
    marker = metafunc.definition.get_closest_marker("unbroken_faults")
    if marker is None:
        return
    from unbroken_drill.faults import KINDS

    wrong = [name for name in marker.args if name not in KINDS]
    options = set(marker.kwargs) - {"server", "seconds", "after", "every"}
    if wrong or options or not marker.args:
        what = (
            f"unknown fault {wrong[0]!r}"
            if wrong
            else f"unknown option {min(options)!r}"
            if options
            else "no fault is named"
        )
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: @pytest.mark.{_FAULTS}: {what}; faults:"
            f" {', '.join(KINDS)}"
        )
    by_itself = "unbroken_fault" not in metafunc.fixturenames
    if by_itself:
        # so that it can be parametrized; pytest_itemcollected sets it up
        metafunc.fixturenames.append("unbroken_fault")
    metafunc.parametrize(
        "unbroken_fault",
        [(name, by_itself) for name in marker.args],
        ids=marker.args,
        indirect=True,
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Add the fixture ``unbroken_fault`` to a test with the marker that does not request it."""
    names = getattr(item, "fixturenames", None)
    if names is not None and "unbroken_fault" not in names and _is_played_beside(item):
        names.append("unbroken_fault")


@pytest.fixture
def unbroken_fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """The fault of this run of a test with the marker ``unbroken_faults``. Call it to play the
    fault, and connect to its ``url()``.
    """
    from unbroken_drill.faults import Fault

    marker = request.node.get_closest_marker("unbroken_faults")
    if marker is None:
        example = 'unbroken_faults("kill", "restart")'
        pytest.fail(
            f"the fixture unbroken_fault needs a marker: @pytest.mark.{_FAULTS}, such as {example}",
            pytrace=False,
        )
    name, _by_itself = request.param
    kind = marker.kwargs.get("server")
    kinds = (
        [kind]
        if kind is not None
        else [each for each in _SERVERS if f"unbroken_{each}" in request.fixturenames]
    )
    if len(kinds) != 1 or kinds[0] not in _SERVERS:
        said = f"uses {' and '.join(kinds) or 'none'}" if kind is None else f"says server={kind!r}"
        wanted = f"write unbroken_faults(…, server=…) with one of {', '.join(_SERVERS)}"
        pytest.fail(f"no server for the fault: the test {said}; {wanted}", pytrace=False)
    with Fault(
        name, request.getfixturevalue(f"unbroken_{kinds[0]}"), marker.kwargs.get("seconds", 0.3)
    ).ready() as made:
        yield made


@pytest.fixture
def unbroken_no_connection_leaks() -> None:
    """Fail the test if it leaves a connection of any unbroken pool checked out.

    Also available as a marker.
    """


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Play a fault beside a test that does not play it itself, and check for leaked connections if
    requested.
    """
    beside, watched = _is_played_beside(item), _is_watched(item)
    if not (beside or watched):
        return (yield)
    from unbroken_drill.faults import Player
    from unbroken_drill.leaks import LeakWatch

    with ExitStack() as stack:
        watch = stack.enter_context(LeakWatch()) if watched else None
        if not beside:
            result = yield
        else:
            fault, options = item.funcargs["unbroken_fault"], _marker(item).kwargs  # type: ignore[attr-defined] # a Function
            after = options.get("after", 0.1)
            with Player(fault, after, options.get("every")) as player:
                result = yield
            if player.error is not None:
                pytest.fail(
                    f"the fault {fault.name!r} could not be played: {player.error}", pytrace=False
                )
            if not fault.played:
                said = (
                    "play it with the fixture unbroken_fault, or let it come sooner:"
                    " unbroken_faults(…, after=0.0)"
                )
                pytest.fail(
                    f"the test ended before its fault {fault.name!r}, which comes after {after} s;"
                    f" {said}",
                    pytrace=False,
                )
        leaks = watch.leaks(_GRACE) if watch is not None else []
        if leaks:
            pytest.fail(
                "\n".join(
                    ["the test did not release all connections:", *(f"  {leak}" for leak in leaks)]
                ),
                pytrace=False,
            )
    return result


def _marker(item: Any) -> pytest.Mark:
    marker: pytest.Mark = item.get_closest_marker("unbroken_faults")
    return marker


def _is_played_beside(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    if callspec is None or item.get_closest_marker("unbroken_faults") is None:
        return False
    _name, by_itself = callspec.params["unbroken_fault"]
    return bool(by_itself)


def _is_watched(item: pytest.Item) -> bool:
    name = "unbroken_no_connection_leaks"
    if item.get_closest_marker(name) is not None or name in getattr(item, "fixturenames", ()):
        return True
    return bool(item.config.getini(name))
