"""reset="session", with every driver and real servers: what a use leaves on its session does not
reach the next one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import unbroken
from unbroken.abc import Cause
from unbroken.drivers._mysql_reset import set_again, sets_nothing_else
from unbroken.ledger import scope, unit, verdicts

from .conftest import POSTGRESQL

LEAVES = {
    True: [ "SET time_zone = '+03:00'", "SET @x = 5", "SELECT 5 INTO @x", "SELECT GET_LOCK('reset', 0)", "USE information_schema", "CREATE TEMPORARY TABLE left_over (n INT)", "SET NAMES latin1", "/*!40101 SET @x = 5 */", "SET autocommit = 1", ],  # noqa: E501
    False: [ "SET work_mem TO '5MB'", "SELECT pg_advisory_lock(11)", "LISTEN somebody", "CREATE TEMP TABLE left_over (n INT)", "SELECT set_config ('work_mem', '5MB', false)", "DO $$ BEGIN SET work_mem = '5MB'; END $$", "PREPARE left_over AS SELECT 1", "DECLARE left_over CURSOR WITH HOLD FOR SELECT 1", "SET client_encoding TO 'LATIN1'", ],  # noqa: E501
}  # fmt: skip
STATE = {
    True: (
        """SELECT CONCAT_WS('|', @@time_zone, IFNULL(@x, '-'), @@character_set_client, @@collation_connection, @@autocommit,
        @@sql_mode, IS_FREE_LOCK('reset'), DATABASE())"""  # noqa: E501
    ),
    False: (
        """SELECT concat_ws('|', current_setting('work_mem'), current_setting('client_encoding'), current_user,
        to_regclass('left_over'), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), (SELECT count(*) FROM pg_cursors WHERE is_holdable),
        (SELECT count(*) FROM pg_listening_channels()))"""  # noqa: E501
    ),
}
SESSION = {True: "SELECT CONNECTION_ID()", False: "SELECT pg_backend_pid()"}


class Uses:
    """A pool of one connection, used one time after the other."""

    def __init__(self, face: Any, **settings: Any) -> None:
        self.face = face
        cls = unbroken.AsyncPool if face.is_async else unbroken.Pool
        given = {"max_size": 1, "reset": "session", **settings}
        self.pool: Any = cls(None if "connect" in given else face.url(), **given)

    def run(self, *statements: str, by_hand: bool = False) -> list[Any]:
        """The first value of each statement's answer."""
        return (
            self.face.run(self._async(statements, by_hand))
            if self.face.is_async
            else self._blocking(statements, by_hand)
        )

    def _blocking(self, statements: tuple[str, ...], by_hand: bool) -> list[Any]:
        if not by_hand:
            with self.pool.connection() as conn:
                return [self._one(self.face._execute_sync(conn, sql)) for sql in statements]
        conn = self.pool.acquire()
        try:
            return [self._one(self.face._execute_sync(conn, sql)) for sql in statements]
        finally:
            self.pool.release(conn)

    async def _async(self, statements: tuple[str, ...], by_hand: bool) -> list[Any]:
        if not by_hand:
            async with self.pool.connection() as conn:
                return [self._one(await self.face._execute(conn, sql)) for sql in statements]
        conn = await self.pool.acquire()
        try:
            return [self._one(await self.face._execute(conn, sql)) for sql in statements]
        finally:
            await self.pool.release(conn)

    @staticmethod
    def _one(rows: list[tuple[Any, ...]]) -> Any:
        return rows[0][0] if rows else None

    def state(self) -> Any:
        return self.run(STATE[self.face.is_mysql])[0]

    def session(self) -> Any:
        return self.run(SESSION[self.face.is_mysql])[0]

    def close(self) -> None:
        closing = self.pool.close()
        if inspect.isawaitable(closing):
            self.face.run(closing)


@pytest.fixture
def uses(face: Any) -> Iterator[Callable[..., Uses]]:
    made: list[Uses] = []

    def make(**settings: Any) -> Uses:
        made.append(Uses(face, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_a_use_leaves_on_its_session_does_not_reach_the_next(
    face: Any, uses: Any, by_hand: bool
) -> None:
    use = uses()
    before, first = use.state(), use.session()
    for leave in LEAVES[face.is_mysql]:
        if (face.name, leave[:7]) in (("asyncpg", "DECLARE"), ("mariadbconnector", "SET NAM")):
            continue  # asyncpg has cursors of its own, and that library always speaks utf8mb4
        use.run(leave, by_hand=by_hand)
        assert use.state() == before, leave
    assert use.session() == first


def test_a_unit_of_work_does_not_hear_of_the_reset(face: Any, uses: Any) -> None:
    use = uses()
    use.session()
    ledger = unit.Unit()
    token = scope.enter(ledger)
    try:
        use.run(LEAVES[face.is_mysql][0])
        use.run("SELECT 1")
        assert ledger.fate() is verdicts.Fate.NOTHING
    finally:
        scope.leave(token)


def test_what_leaves_nothing_costs_no_reset(
    face: Any, uses: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = uses()
    use.session()
    resets: list[Any] = []
    driver = use.pool._driver
    plain = driver.reset_session
    monkeypatch.setattr(
        driver, "reset_session", lambda *args: (resets.append(args), plain(*args))[1]
    )
    first = use.session()
    for _ in range(3):
        use.run("SELECT 1", "SELECT count(*) FROM (SELECT 1 AS n) AS x")
    assert not resets
    assert use.session() == first


def test_a_use_that_fails_leaves_nothing_either(face: Any, uses: Any) -> None:
    use = uses()
    before = use.state()
    leave = LEAVES[face.is_mysql][0]
    with pytest.raises(Exception, match="nowhere"):
        use.run(leave, "SELECT * FROM nowhere")
    assert use.state() == before


def test_a_use_that_is_cancelled_or_timed_out_leaves_nothing_either(face: Any, uses: Any) -> None:
    use = uses()
    before = use.state()
    leave = LEAVES[face.is_mysql][0]
    for error in (TimeoutError, KeyboardInterrupt):

        def strike(_rows: Any, error: type[BaseException] = error) -> None:
            raise error

        use._one = strike
        with pytest.raises(error):
            try:
                use.run(leave)
            except asyncio.CancelledError:
                raise error from None
        del use._one
        assert use.state() == before


def test_a_session_whose_opening_is_not_known_is_closed_instead(face: Any, uses: Any) -> None:
    if not face.is_mysql or face.is_async:
        pytest.skip("PostgreSQL tells what was set; asyncio's MySQL drivers close in any case")
    use = uses(connect=face.by_library, driver=face.spelling)
    before, first = use.state(), use.session()
    use.run("SET @x = 5")
    assert use.state() == before
    assert use.session() != first
    assert use.pool.stats().closed.get(Cause.DISCARDED.value)


@pytest.mark.parametrize("name", [name for name in POSTGRESQL if name != "asyncpg"])
def test_what_connect_set_is_set_again_and_not_more_than_that(
    faces: Any, postgres: Any, name: str
) -> None:
    face = faces(name, postgres)

    def connect() -> Any:
        conn = face.by_library()
        if inspect.isawaitable(conn):
            return prepare(conn)
        face._execute_sync(conn, "SET search_path TO 'it''s', public")
        conn.commit()
        return conn

    async def prepare(opening: Any) -> Any:
        conn = await opening
        await face._execute(conn, "SET search_path TO 'it''s', public")
        await conn.commit()
        return conn

    use = Uses(face, connect=connect, driver=face.spelling)
    try:
        first = use.session()
        use.run("SET search_path TO nowhere", "SET work_mem TO '5MB'")
        assert use.run("SHOW search_path", "SHOW work_mem") == ['"it\'s", public', "4MB"]
        assert use.session() == first
    finally:
        use.close()


def test_an_init_command_that_does_more_than_set_is_no_known_opening() -> None:
    assert sets_nothing_else({})
    assert sets_nothing_else({"init_command": "SET SESSION sql_mode = ''"})
    assert not sets_nothing_else({"init_command": "SET @a = 1"})
    assert not sets_nothing_else({"init_command": "CALL p()"})
    assert not sets_nothing_else({"read_default_file": "~/.my.cnf"})


def test_settings_are_set_again_with_their_charsets_collation_last() -> None:
    rows = [
        ("COLLATION_CONNECTION", "latin1_bin"),
        (b"AUTOCOMMIT", b"ON"),
        ("CHARACTER_SET_RESULTS", ""),
        ("MAX_X", "5"),
    ]
    assert (
        set_again(rows)
        == "SET SESSION autocommit = _utf8mb4 0x4f4e, SESSION character_set_results = NULL, SESSION"
        " max_x = 5, SESSION collation_connection = _utf8mb4 0x6c6174696e315f62696e"
    )
