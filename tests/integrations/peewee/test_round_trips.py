"""What a request costs behind a network: exact counts on the wire, for peewee's databases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import peewee
import pytest

import unbroken.peewee
from unbroken_drill import FaultProxy

from ..counting import per_request

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

#: one way, in seconds; long, so that a slow machine counts the same round trips
FAR = 0.01
READ, WRITE = "SELECT n FROM trips", "UPDATE trips SET n = n"
SYNC = {"mysql": "mariadb", "psycopg3": "postgres"}
ALL = [*SYNC, "mysql+aiomysql"]


class Left(Exception):  # noqa: N818 - leaves a block
    """Rolls a block back."""


class Far:
    """A database whose pool has one connection, behind a proxy."""

    def __init__(self, scheme: str, server: Any, stack: contextlib.ExitStack) -> None:
        self.scheme, self.server = scheme, server
        self.is_async = "+a" in scheme
        self.is_asyncpg = scheme.endswith("asyncpg")
        self.is_mysql = scheme.startswith("mysql")
        self._runner = stack.enter_context(asyncio.Runner()) if self.is_async else None
        for sql in (
            "DROP TABLE IF EXISTS trips",
            "CREATE TABLE trips (n INT)",
            "INSERT INTO trips VALUES (1), (2)",
        ):
            server.admin(sql)
        if not self.is_mysql:
            server.admin("GRANT ALL ON trips TO PUBLIC")
        self.proxy = stack.enter_context(
            FaultProxy(
                (server.host, server.port), protocol="mysql" if self.is_mysql else "postgresql"
            )
        )
        query = "" if self.is_mysql else "?ssl=disable" if self.is_asyncpg else "?sslmode=disable"
        place = f"{server.user}:{server.password}@{server.host}:{self.proxy.port}"
        self.db = unbroken.peewee.connect(
            f"{scheme}://{place}/{server.database}{query}",
            max_connections=1,
        )
        stack.callback(self._close)

    def _close(self) -> None:
        if self._runner is not None:
            self._runner.run(self.db.close_pool())
        else:
            self.db.close()
            self.db.pool.close(timeout=0.0)

    def block(self, *statements: str, fails: bool = False) -> None:
        with contextlib.suppress(Left):
            if self._runner is not None:
                self._runner.run(self._block(statements, fails))
                return
            with self.db.atomic():
                for sql in statements:
                    self.run(sql)
                if fails:
                    raise Left

    async def _block(self, statements: tuple[str, ...], fails: bool) -> None:
        async with self.db.atomic():
            for sql in statements:
                await self.db.aexecute_sql(sql)
            if fails:
                raise Left

    def run(self, sql: str) -> None:
        if self._runner is not None:
            self._runner.run(self._run(sql))
            return
        cursor = self.db.execute_sql(sql)
        if cursor.description:
            cursor.fetchall()

    async def _run(self, sql: str) -> None:
        await self.db.aexecute_sql(sql)

    def within_context(self) -> None:
        if self._runner is not None:
            self._runner.run(self._within_context())
            return
        with self.db.connection_context():
            self.run(READ)

    async def _within_context(self) -> None:
        async with self.db:
            await self.db.aexecute_sql(READ)

    def count(self, request: Callable[[], None], right: float) -> None:
        """*request* costs *right* round trips."""
        self.block(READ)
        self.block(WRITE)
        self.proxy.latency(FAR)
        request()
        costs = [per_request(self.proxy, FAR, request)]
        while right not in costs and len(costs) < 4:  # a pause of this machine costs one more
            costs.append(per_request(self.proxy, FAR, request))
        self.proxy.latency(0)
        assert right in costs, costs

    def healed(self) -> int:
        async def ask() -> int:
            return int(self.db.stats().healed)

        return self.db.stats().healed if self._runner is None else self._runner.run(ask())

    def stored(self) -> int:
        return int(self.server.admin("SELECT COUNT(*) FROM trips WHERE n = 77")[0][0])


@pytest.fixture(params=ALL)
def far(request: Any) -> Iterator[Far]:
    name = SYNC.get(request.param, "mariadb")
    with contextlib.ExitStack() as stack:
        yield Far(request.param, request.getfixturevalue(name), stack)


REQUESTS: dict[str, tuple[Callable[[Far], None], int, int]] = {
    "a read in autocommit": (lambda far: far.run(READ), 1, 1),
    "a read in connection_context": (lambda far: far.within_context(), 1, 1),
    "a read in atomic": (lambda far: far.block(READ), 1, 1),
    "a write in atomic": (lambda far: far.block(WRITE), 3, 2),
    "a read and a write in atomic": (lambda far: far.block(READ, WRITE), 3, 3),
    "a block of nothing": (lambda far: far.block(), 0, 0),
    "a block of nothing that fails": (lambda far: far.block(fails=True), 0, 0),
    "a read that is rolled back": (lambda far: far.block(READ, fails=True), 2, 2),
}


#: pwasyncio prepares each statement for itself, asks for its result, and has it forgotten.
WITH_ASYNCPG = {
    "a read in autocommit": 3,
    "a read in connection_context": 3,
    "a read in atomic": 3,
    "a write in atomic": 4,
    "a read that is rolled back": 4,
}


@pytest.mark.parametrize("what", WITH_ASYNCPG)
def test_a_request_costs_more_with_asyncpg(what: str, postgres: Any) -> None:
    with contextlib.ExitStack() as stack:
        far = Far("postgresql+asyncpg", postgres, stack)
        far.count(lambda: REQUESTS[what][0](far), WITH_ASYNCPG[what])


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_costs_so_many_round_trips(what: str, far: Far) -> None:
    work, mysql, postgresql = REQUESTS[what]
    far.count(lambda: work(far), mysql if far.is_mysql else postgresql)


@pytest.mark.parametrize("first", [READ, WRITE, "SAVEPOINT here"])
def test_what_is_rolled_back_is_not_stored_whatever_comes_first(first: str, far: Far) -> None:
    far.count(lambda: far.block(READ), 1)
    far.block(first, "INSERT INTO trips VALUES (77)", fails=True)
    assert far.stored() == 0
    far.run("INSERT INTO trips VALUES (77)")
    assert far.stored() == 1
    far.block(first, "INSERT INTO trips VALUES (77)")
    assert far.stored() == 2


@pytest.mark.parametrize("first", [READ, WRITE, "SAVEPOINT here"])
def test_a_connection_that_is_lost_at_the_beginning_of_a_block_is_replaced(
    first: str, far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    far.block(WRITE)
    if not far.is_mysql and first.startswith("SAVEPOINT"):
        return  # psycopg's error does not say at which of the two it was lost
    cut = far.proxy.cut_at("BEGIN", before=True)
    far.block(first)
    assert cut.hits == 1
    assert far.healed() == 1
    assert "did not run" not in caplog.text


@pytest.mark.parametrize("scheme", SYNC)
def test_the_drivers_own_connection_finds_the_transaction_begun(scheme: str, request: Any) -> None:
    with contextlib.ExitStack() as stack:
        far = Far(scheme, request.getfixturevalue(SYNC[scheme]), stack)
        far.block(WRITE)
        with contextlib.suppress(Left), far.db.atomic():
            cursor = far.db.connection().cursor()
            cursor.execute("INSERT INTO trips VALUES (77)")
            raise Left
        far.db.close()
        assert far.stored() == 0


def test_a_transaction_with_a_level_of_its_own_begins_at_once(mariadb: Any) -> None:
    with contextlib.ExitStack() as stack:
        far = Far("mysql", mariadb, stack)
        far.block(WRITE)
        with far.db.atomic("READ UNCOMMITTED"):
            assert far.db.in_transaction()
            far.run(READ)
            with far.db.atomic():
                far.run("INSERT INTO trips VALUES (77)")
        assert far.stored() == 1


def test_an_applications_own_begin_is_sent(postgres: Any) -> None:
    class Own(unbroken.peewee.PooledPostgresqlDatabase):  # type: ignore[misc]
        begun = 0

        def begin(self, *args: Any, **kwargs: Any) -> None:
            super().begin(*args, **kwargs)
            self.execute_sql("SET LOCAL work_mem = '8MB'")
            self.begun += 1

    s = postgres
    db = Own(
        s.database, host=s.host, port=s.port, user=s.user, password=s.password,
        prefer_psycopg3=True,
    )  # fmt: skip
    try:
        for _ in range(2):
            with db.atomic():
                assert db.execute_sql("SHOW work_mem").fetchone() == ("8MB",)
        assert db.begun == 2
        assert db.execute_sql("SHOW work_mem").fetchone() == ("4MB",)
    finally:
        db.close()
        db.pool.close(timeout=0.0)


def test_a_write_whose_commit_is_lost_is_in_doubt(far: Far) -> None:
    far.block(WRITE)
    cut = far.proxy.cut_at("COMMIT")
    with pytest.raises(peewee.OperationalError) as caught:
        far.block(READ, WRITE)
    assert isinstance(caught.value, unbroken.CommitUnknownError)
    assert cut.hits == 1


@pytest.mark.parametrize("before", [True, False])
def test_a_unit_is_run_again_whose_begin_went_out_and_was_not_answered(
    far: Far, before: bool
) -> None:
    """Something was sent, and none of it was a statement of the application's."""
    runs: list[int] = []

    def statements() -> None:
        runs.append(1)
        far.db.execute_sql("INSERT INTO trips VALUES (3)")

    async def awaited() -> None:
        runs.append(1)
        await far.db.aexecute_sql("INSERT INTO trips VALUES (3)")

    far.block(WRITE)
    cut = far.proxy.cut_at("BEGIN", before=before)
    if far._runner is not None:
        far._runner.run(far.db.unit(awaited, atomic=True)())
    else:
        far.db.unit(statements, atomic=True)()
    assert cut.hits == 1
    assert len(runs) == 2
    assert far.server.admin("SELECT COUNT(*) FROM trips WHERE n = 3")[0][0] in (1, "1")
