"""Passwords that change while a pool works: asked for at each connect, in either order, by every
driver; and callables that give none.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import unbroken
from unbroken_drill.servers import MariaDB, PgBouncer, PostgreSQL, Server

from .every_driver import MYSQL, POSTGRESQL, url_of
from .moving import Load, wait_until


@pytest.fixture(scope="module", params=["postgresql", "mysql", "pgbouncer"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Server, list[str]]]:
    """A server whose user's password tests may change, and the drivers that go there."""
    if request.param == "mysql":
        with MariaDB() as server:
            yield server, MYSQL
        return
    with PostgreSQL() as behind:
        if request.param == "postgresql":
            yield behind, POSTGRESQL
        else:
            with PgBouncer(behind) as pooler:
                yield pooler, POSTGRESQL


def change(server: Server, password: str) -> None:
    """The server takes *password* from now on, and no other."""
    if isinstance(server, PgBouncer):
        assert server.folder is not None
        users = server.folder / "users"
        users.write_text(users.read_text().replace(server.password, password))
        change(server.server, password)
        server.admin("RELOAD")
    elif isinstance(server, PostgreSQL):
        server.admin(f"ALTER USER {server.user} PASSWORD '{password}'")
    else:
        for (host,) in server.admin(f"SELECT host FROM mysql.user WHERE user = '{server.user}'"):
            server.admin(f"ALTER USER '{server.user}'@'{host}' IDENTIFIED BY '{password}'")
    server.password = password


def without_password(url: str, server: Server) -> str:
    return url.replace(f":{server.password}@", "@")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("order", ["server first", "application first"])
def test_a_password_that_changes_fails_nobody(
    served: tuple[Server, list[str]], tmp_path: Path, order: str
) -> None:
    """The other half of the change comes 1.5 s later, and all sessions end meanwhile."""
    server, drivers = served
    old, new = server.password, secrets.token_urlsafe(12)
    file = tmp_path / "secret"
    file.write_text(old)
    halves = [lambda: change(server, new), lambda: file.write_text(new) and None]
    if order == "application first":
        halves.reverse()
    with ExitStack() as stack:
        loads = {}
        for driver in drivers:
            url = without_password(url_of(server, driver, False), server)
            load = Load(driver, url, secret=file)
            loads[driver] = stack.enter_context(closing(load))
        for load in loads.values():
            load.tell("load")
        assert {load.answer() for load in loads.values()} == {"going"}
        halves[0]()
        server.kill_sessions()
        time.sleep(1.5)
        halves[1]()
        for load in loads.values():
            load.tell("stop")
        met = {driver: load.answer() for driver, load in loads.items()}
    assert {driver: said["errors"][:2] for driver, said in met.items() if said["errors"]} == {}
    assert any(said["failures"] for said in met.values()), "no login was refused"
    assert {who: said["failures"] for who, said in met.items() if said["failures"] > 20} == {}
    leaks = {who: said["said"] for who, said in met.items() if _holds(said["said"], old, new)}
    assert leaks == {}


def _holds(text: str, *planted: str) -> bool:
    return any(secret in text for secret in planted)


# ---- one driver of each kind ---------------------------------------------------------------------


class Face:
    """``Pool`` with psycopg, or ``AsyncPool`` with asyncpg."""

    def __init__(self, server: PostgreSQL, *, is_async: bool) -> None:
        self.server, self.is_async = server, is_async
        url = server.url("asyncpg" if is_async else "psycopg")
        self.url = without_password(url, server)

    def meet(self, password: Any, **settings: Any) -> list[BaseException | None]:
        """What two acquires one after the other raise (None: nothing)."""
        wanted = {"acquire_timeout": 8.0, "outage_wait": 0.5, "connect_timeout": 1.0, **settings}
        if self.is_async:
            return asyncio.run(self._meet_async(password, wanted))
        found: list[BaseException | None] = []
        with unbroken.Pool(self.url, password=password, **wanted) as pool:
            for _ in range(2):
                try:
                    pool.release(pool.acquire())
                    found.append(None)
                except Exception as error:
                    found.append(error)
        return found

    async def _meet_async(self, password: Any, wanted: Any) -> list[BaseException | None]:
        found: list[BaseException | None] = []
        async with unbroken.AsyncPool(self.url, password=password, **wanted) as pool:
            for _ in range(2):
                try:
                    await pool.release(await pool.acquire())
                    found.append(None)
                except Exception as error:
                    found.append(error)
        return found


@pytest.fixture(scope="module")
def own() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture(params=[False, True], ids=["Pool", "AsyncPool"])
def face(request: pytest.FixtureRequest, own: PostgreSQL) -> Face:
    return Face(own, is_async=request.param)


def async_of(function: Callable[[], Any]) -> Callable[[], Any]:
    async def read() -> Any:
        await asyncio.sleep(0)
        return function()

    return read


def test_a_callable_is_asked_at_each_connect(face: Face) -> None:
    asked = []
    assert face.meet(lambda: asked.append(1) or face.server.password) == [None, None]
    assert asked


@pytest.mark.parametrize("value", [None, "", b"secret-bytes", 7])
def test_what_is_no_secret_is_a_configuration_error_at_once(face: Face, value: Any) -> None:
    for read in (lambda: value, async_of(lambda: value)):
        if read.__name__ == "read" and not face.is_async:
            continue
        started = time.monotonic()
        for error in face.meet(read):
            assert isinstance(error, unbroken.ConfigurationError), repr(error)
            assert "returned" in str(error)
            assert "secret-bytes" not in str(error)
        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("wrong", [ValueError("the vault is sealed"), SystemExit("sealed too")])
def test_a_callable_that_raises_is_an_outage_with_the_true_cause(
    face: Face, wrong: BaseException
) -> None:
    asked = []

    def read() -> str:
        asked.append(time.monotonic())
        raise wrong

    first, second = face.meet(read)
    for error in (first, second):
        assert isinstance(error, unbroken.OutageError), repr(error)
        assert error.__cause__ is wrong
        assert f"raised {type(wrong).__name__}" in str(error)
        assert "sealed" not in str(error)  # it might have been the secret
        assert "\n" not in str(error)
    assert 2 <= len(asked) <= 5


def test_a_callable_that_recovers_in_time_is_no_error(face: Face) -> None:
    asked: list[int] = []

    def read() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise OSError("not yet")
        return face.server.password

    assert face.meet(read, outage_wait=5.0) == [None, None]


def test_a_callable_that_hangs_keeps_nobody_longer_than_their_time(face: Face) -> None:
    over = threading.Event()
    try:
        started = time.monotonic()
        first, second = face.meet(lambda: over.wait(60))
        took = time.monotonic() - started
        for error in (first, second):
            assert isinstance(error, unbroken.OutageError), repr(error)
            assert "has not returned within 1 s" in str(error)
        assert took < 5.0
        started = time.monotonic()
        hasty, _ = face.meet(lambda: over.wait(60), acquire_timeout=0.3)
        assert isinstance(hasty, unbroken.PoolTimeoutError), repr(hasty)
        assert "the callable for the password has not returned yet" in str(hasty)
        assert time.monotonic() - started < 2.0
    finally:
        over.set()


def test_a_coroutine_that_hangs_is_cancelled(own: PostgreSQL) -> None:
    ended: list[bool] = []

    async def read() -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)
        return ""

    first, _ = Face(own, is_async=True).meet(read)
    assert isinstance(first, unbroken.OutageError), repr(first)
    assert "has not returned within 1 s" in str(first)
    assert ended


def test_a_blocking_callable_does_not_block_the_loop(own: PostgreSQL) -> None:
    async def main() -> float:
        def read() -> str:
            time.sleep(0.6)
            return own.password

        url = Face(own, is_async=True).url
        async with unbroken.AsyncPool(url, password=read) as pool:
            opening = asyncio.create_task(pool.acquire())
            longest, before = 0.0, time.monotonic()
            while not opening.done():
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)
                before = time.monotonic()
            await pool.release(await opening)
            return longest

    assert asyncio.run(main()) < 0.4


def test_a_pool_that_hung_in_its_callable_recovers_by_itself(face: Face) -> None:
    """Also a pool of one connection: the place of the attempt that hangs is free again."""
    hang, over = [True], threading.Event()

    def read() -> str:
        if hang:
            hang.clear()
            over.wait(60)
        return face.server.password

    try:
        assert face.meet(read, max_size=1, outage_wait=5.0) == [None, None]
    finally:
        over.set()


def test_threads_do_not_pile_up_in_a_callable_that_hangs(own: PostgreSQL) -> None:
    over, asked = threading.Event(), []

    def read() -> str:
        asked.append(1)
        over.wait(60)
        return own.password

    url = Face(own, is_async=False).url
    pool = unbroken.Pool(
        url, password=read, connect_timeout=0.2, outage_wait=0.1, acquire_timeout=0.5, max_size=20
    )
    try:
        end = time.monotonic() + 6.0
        while time.monotonic() < end:
            with pytest.raises((unbroken.OutageError, unbroken.PoolTimeoutError)):
                pool.acquire()
            time.sleep(0.05)
        assert 1 < len(asked) <= 8
        assert pool.stats().size <= 4
    finally:
        over.set()
    wait_until(lambda: _is_served(pool), 15.0)
    pool.close()


def _is_served(pool: Any) -> bool:
    try:
        pool.release(pool.acquire(1.0))
    except unbroken.UnbrokenError:
        return False
    return True


def test_a_refused_password_is_told_after_outage_wait_and_asked_for_rarely(face: Face) -> None:
    asked = []
    started = time.monotonic()
    first, second = face.meet(lambda: asked.append(1) or "not-the-password", outage_wait=2.0)
    took = time.monotonic() - started
    assert isinstance(first, unbroken.ConnectRejectedError), repr(first)
    assert isinstance(second, unbroken.ConnectRejectedError), repr(second)
    assert "password authentication failed" in str(first)
    assert first.__cause__ is not None
    assert "not-the-password" not in str(first) + str(first.__cause__)
    assert 1.9 < took < 6.0
    assert 3 <= len(asked) <= 8


def test_only_a_callers_wait_has_a_refused_password_tried_again(own: PostgreSQL) -> None:
    asked = []
    url = Face(own, is_async=False).url
    pool = unbroken.Pool(
        url, password=lambda: asked.append(1) or "no", outage_wait=0.2, min_size=2, max_size=2
    )
    with pytest.raises(unbroken.ConnectRejectedError):
        pool.acquire()
    before = len(asked)
    time.sleep(1.5)
    assert len(asked) <= before + 1
    pool.close()


def test_one_pools_refused_password_holds_up_no_other_pool_of_that_server(
    own: PostgreSQL,
) -> None:
    url = Face(own, is_async=False).url
    refused = unbroken.Pool(url, password=lambda: "no", outage_wait=3.0)
    silent = unbroken.Pool(url, password=lambda: 1 / 0, outage_wait=3.0)  # type: ignore[arg-type,return-value] # it raises
    callers = [threading.Thread(target=_is_served, args=[each]) for each in (refused, silent)]
    for each in callers:
        each.start()
    time.sleep(0.3)
    with unbroken.Pool(url, password=own.password) as well:
        started = time.monotonic()
        well.release(well.acquire())
        assert time.monotonic() - started < 0.5
    for each in callers:
        each.join()
    refused.close()
    silent.close()


def test_a_fixed_password_is_refused_at_once_and_the_pool_recovers_by_itself(
    own: PostgreSQL,
) -> None:
    before, new = own.password, secrets.token_urlsafe(12)
    url = Face(own, is_async=False).url
    with unbroken.Pool(url, password=new) as pool:
        try:
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(unbroken.ConnectRejectedError):
                    pool.acquire()
                assert time.monotonic() - started < 1.0
            change(own, new)
            pool.release(pool.acquire())
        finally:
            change(own, before)


def test_connections_made_with_the_old_password_stay(own: PostgreSQL) -> None:
    before = own.password
    url = Face(own, is_async=False).url
    with unbroken.Pool(url, password=lambda: before, max_size=1) as pool:
        first = pool.acquire()
        pool.release(first)
        try:
            change(own, secrets.token_urlsafe(12))
            for _ in range(3):
                again = pool.acquire()
                assert again is first
                again.execute("SELECT 1")
                pool.release(again)
        finally:
            change(own, before)


def test_a_user_may_be_asked_for_too(own: PostgreSQL) -> None:
    own.admin("CREATE USER second PASSWORD 'seconds-word'")
    try:
        url = own.url("psycopg")
        with (
            unbroken.Pool(url, user=lambda: "second", password=lambda: "seconds-word") as pool,
            pool.connection() as conn,
        ):
            assert conn.execute("SELECT current_user").fetchone() == ("second",)
        own.admin("GRANT CONNECT ON DATABASE shop TO second")
        with (
            unbroken.Pool(url, user="second", password="seconds-word") as pool,
            pool.connection() as conn,
        ):
            assert conn.execute("SELECT current_user").fetchone() == ("second",)
    finally:
        own.admin("REVOKE CONNECT ON DATABASE shop FROM second")
        own.admin("DROP USER second")


# ---- what cannot be meant ------------------------------------------------------------------------


async def read_async() -> str:
    return "planted"


class Reader:
    async def __call__(self) -> str:
        return "planted"


@pytest.mark.parametrize("read", [read_async, functools.partial(read_async), Reader()])
def test_a_coroutine_function_is_refused_by_pool_when_it_is_made(
    own: PostgreSQL, read: Any
) -> None:
    with pytest.raises(unbroken.ConfigurationError, match="only AsyncPool can await"):
        unbroken.Pool(own.url("psycopg"), password=read)
    asyncio.run(_make_async(own.url("asyncpg"), read))


async def _make_async(url: str, read: Any) -> None:
    async with unbroken.AsyncPool(url, password=read):
        pass


def test_a_mock_is_a_callable_as_any(face: Face) -> None:
    first, _ = face.meet(Mock(return_value=face.server.password))
    assert first is None


@pytest.mark.parametrize("kind", [BaseException, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("is_coroutine", [False, True])
def test_a_callable_that_raises_what_is_no_exception_is_asked_again_with_the_pace(
    face: Face, kind: type[BaseException], is_coroutine: bool
) -> None:
    calls: list[float] = []

    def read() -> str:
        calls.append(time.monotonic())
        raise kind("broken")

    async def read_async() -> str:
        return read()

    if is_coroutine and not face.is_async:
        return
    started = time.monotonic()
    first, _ = face.meet(read_async if is_coroutine else read)
    assert isinstance(first, unbroken.OutageError), repr(first)
    assert f"raised {kind.__name__}" in str(first)
    assert time.monotonic() - started < 8.0
    assert len(calls) < 20


def test_a_plain_function_that_gives_a_coroutine_works_with_asyncpool_only(face: Face) -> None:
    async def read() -> str:
        return face.server.password

    first, _ = face.meet(lambda: read())
    if face.is_async:
        assert first is None
    else:
        assert isinstance(first, unbroken.ConfigurationError)
        assert "only AsyncPool can await" in str(first)


@pytest.mark.parametrize("value", [b"planted", 7, ["planted"]])
def test_a_password_that_is_neither_text_nor_callable_is_refused(
    own: PostgreSQL, value: Any
) -> None:
    with pytest.raises(unbroken.ConfigurationError, match="give a string, or a callable") as caught:
        unbroken.Pool(own.url("psycopg"), password=value)
    assert "planted" not in str(caught.value)


def test_a_password_beside_connect_or_sqlite_is_refused() -> None:
    with pytest.raises(unbroken.ConfigurationError, match="connect="):
        unbroken.Pool(connect=lambda: None, driver="psycopg", password=lambda: "x")
    with pytest.raises(unbroken.ConfigurationError, match="SQLite"):
        unbroken.Pool("sqlite://", password="x")
