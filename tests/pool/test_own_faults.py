"""A fault of the client's own making is told at once and names its option, and one pool's own fault
never speaks for the server.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import unbroken
from unbroken import ConfigurationError, ConnectRejectedError, OutageError, PoolTimeoutError

#: Seconds within which something is told "at once".
AT_ONCE = 1.5


def missing(tmp_path: Path, is_mysql: bool, name: str = "") -> dict[str, str]:
    """Options of a URL that name a file which is not there."""
    if name == "mysqldb":
        pytest.skip("mysqlclient reads the file only where the server offers TLS")
    path = str(tmp_path / "none.pem")
    if is_mysql:
        return {"ssl_ca": path}
    return {"sslmode": "verify-ca", "sslrootcert": path}


def told(pool: Any, kind: type[BaseException]) -> str:
    """What an acquire of *pool* is told, at once."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        pool.acquire()
    assert time.monotonic() - started < AT_ONCE
    assert "recovers by itself" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_served_at_once(face: Any, pool: Any) -> None:
    started = time.monotonic()
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1
    assert time.monotonic() - started < AT_ONCE


@pytest.mark.parametrize(
    ("driver", "name"),
    [("pymysql", "client_flag"), ("mysqldb", "client_flag"), ("mysqlconnector", "client_flags")],
)
def test_a_number_that_does_not_fit_its_field_is_named_at_once(
    driver: str, name: str, faces: Any, mariadb: Any
) -> None:
    face = faces(driver, mariadb)
    text = told(face.pool(face.url(**{name: "99999999999"})), ConfigurationError)
    assert f"{name}=99999999999 in the URL" in text


@pytest.mark.parametrize("sound_first", [True, False])
def test_a_file_that_is_missing_is_named_at_once_and_concerns_no_other_pool(
    face: Any, tmp_path: Path, sound_first: bool
) -> None:
    sound, wrong = face.pool(), face.pool(face.url(**missing(tmp_path, face.is_mysql, face.name)))
    if sound_first:
        is_served_at_once(face, sound)
    for attempt in (1, 2):
        text = told(wrong, ConfigurationError)
        assert f"{tmp_path}/none.pem in the URL: there is no such file" in text
        assert wrong.stats().connect_failures == attempt
    is_served_at_once(face, sound)
    assert sound.stats().outages == 0
    assert (wrong.stats().away_for, sound.stats().away_for) == (0.0, 0.0)


@pytest.mark.parametrize("sound_first", [True, False])
def test_the_same_beside_an_event_loop(body: Any, tmp_path: Path, sound_first: bool) -> None:
    options = missing(tmp_path, body.is_mysql)

    async def main() -> None:
        wrong = body.pool(url=body.server.url(body.name, **options))
        async with body.pool() as sound, wrong:
            if sound_first:
                await sound.release(await sound.acquire())
            started = time.monotonic()
            many = [body.outcome(wrong.acquire()) for _ in range(5)]
            for error in await asyncio.gather(*many):
                assert isinstance(error, ConfigurationError)
                assert f"{tmp_path}/none.pem in the URL" in str(error)
            conn = await sound.acquire()
            assert await body.ask(conn, "SELECT 1") == 1
            await sound.release(conn)
            assert time.monotonic() - started < 2 * AT_ONCE
            assert sound.stats().outages == 0

    body.run(main())


def test_a_sound_pool_is_served_while_callers_keep_asking_a_wrong_one(
    face: Any, tmp_path: Path
) -> None:
    wrong = face.pool(face.url(**missing(tmp_path, face.is_mysql, face.name)))
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with suppress(ConfigurationError):
                wrong.acquire()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(10):
            with face.pool(max_size=2) as sound:
                is_served_at_once(face, sound)
                assert sound.stats().outages == 0
    finally:
        over.set()
        thread.join(10)


# -- what may heal ---------------------------------------------------------------------------------


class Opened:
    """A ``connect=`` of the application's own, which fails for as long as *fault* is set."""

    def __init__(self, face: Any) -> None:
        self.fault: BaseException | None = None
        self.calls = 0
        server = face.server
        self._where = {
            "host": server.host, "port": server.port, "user": server.user,
            "password": server.password,
        }  # fmt: skip
        self._where["dbname" if face.name == "psycopg" else "database"] = server.database
        module = {"mysqldb": "MySQLdb", "pg8000": "pg8000.dbapi"}.get(face.name, face.name)
        self._connect = importlib.import_module(module).connect

    def __call__(self) -> Any:
        self.calls += 1
        if self.fault is not None:
            raise self.fault
        return self._connect(**self._where)


FAULTS = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    IsADirectoryError(errno.EISDIR, "Is a directory"),
    KeyError("DB_PASSWORD"),
    TypeError("an integer is required"),
    ImportError("no module named 'vault'"),
    AttributeError("'Config' object has no attribute 'db'"),
]


def test_a_pool_that_has_served_waits_for_its_own_fault_to_pass_and_a_fresh_one_says_it_at_once(
    face: Any, until: Any
) -> None:
    driver, times = {"mysqldb": "mysqlclient"}.get(face.name, face.name), {"outage_wait": 8.0}
    served = [(unbroken.Pool(connect=own, driver=driver, **times), own, fault)
              for fault in FAULTS for own in (Opened(face),)]  # fmt: skip
    done: list[Any] = []
    waiters = []
    for pool, opened, fault in served:
        is_served_at_once(face, pool)
        pool.drain()
        opened.fault = fault
        with unbroken.Pool(connect=opened, driver=driver, **times) as fresh:
            number, calls = getattr(fault, "errno", None), opened.calls
            is_scarce = number in (errno.EMFILE, errno.EADDRNOTAVAIL)
            text = told(fresh, OutageError if is_scarce else ConnectRejectedError)
            assert str(fault.args[-1]) in text
            assert opened.calls == calls + 1  # it is not tried again

        def wait(pool: Any = pool) -> None:
            done.append(pool.run(lambda conn: face.ask(conn, "SELECT 1")))

        waiters.append(threading.Thread(target=wait))
        waiters[-1].start()
    until(lambda: all(pool.stats().connect_failures >= 2 for pool, _, _ in served))
    assert not done
    for _, opened, _ in served:
        opened.fault = None
    for waiter in waiters:
        waiter.join(5)
    assert done == [1] * len(FAULTS)
    for pool, _, _ in served:
        assert pool.stats().outages == 0
        pool.close(timeout=0)


def test_what_does_not_pass_is_told_with_its_cause_after_outage_wait(face: Any) -> None:
    opened = Opened(face)
    driver = {"mysqldb": "mysqlclient"}.get(face.name, face.name)
    with unbroken.Pool(connect=opened, driver=driver, outage_wait=0.5) as pool:
        is_served_at_once(face, pool)
        pool.drain()
        opened.fault = OSError(errno.EMFILE, "Too many open files")
        for most in (3.0, 0.6):  # then at once
            started = time.monotonic()
            with pytest.raises(OutageError, match="Too many open files") as caught:
                pool.acquire()
            assert time.monotonic() - started < most
            assert "server was not contacted" in str(caught.value)
        assert pool.stats().away_for == 0.0


def test_a_limit_of_one_user_concerns_no_other_user(face: Any, until: Any) -> None:
    user, server = f"few_{face.name}", face.server
    if face.is_mysql:
        server.admin(f"CREATE USER {user}@'%' IDENTIFIED BY 'few' WITH MAX_USER_CONNECTIONS 1")
        server.admin(f"GRANT ALL ON {server.database}.* TO {user}@'%'")
    else:
        server.admin(f"CREATE ROLE {user} LOGIN PASSWORD 'few' CONNECTION LIMIT 1")
    try:
        url = face.url().replace(f"{server.user}:{server.password}@", f"{user}:few@")
        few = face.pool(url, max_size=2, outage_wait=5.0, acquire_timeout=5.0)
        others = face.pool()
        held = few.acquire()
        served: list[Any] = []
        waiter = threading.Thread(
            target=lambda: served.append(few.run(lambda conn: face.ask(conn, "SELECT 1")))
        )
        waiter.start()
        until(lambda: few.stats().connect_failures >= 2)
        is_served_at_once(face, others)
        assert (few.stats().away_for, others.stats().outages) == (0.0, 0)
        assert not served
        few.release(held)
        waiter.join(5)
        assert served == [1]
        short = face.pool(url, outage_wait=0.3, acquire_timeout=0.6)
        with few.connection(), pytest.raises((OutageError, PoolTimeoutError)) as caught:
            short.acquire()
        assert "connections" in str(caught.value)
        few.close(timeout=0)
        short.close(timeout=0)
    finally:
        with suppress(Exception):
            server.kill_sessions()
        server.admin(f"DROP {'USER' if face.is_mysql else 'ROLE'} {user}")


def test_a_pool_whose_own_files_are_gone_does_not_stay_the_one_that_asks_for_all(
    own_face: Any, tmp_path: Path, until: Any
) -> None:
    """Its attempts never reach the server, so they cannot tell when it is back."""
    face, opened = own_face, Opened(own_face)
    driver = {"mysqldb": "mysqlclient"}.get(face.name, face.name)
    scheme = face.url().partition("://")[0]
    target = f"{scheme}://{face.server.host}:{face.server.port}/{face.server.database}"
    one = unbroken.Pool(target, connect=opened, driver=driver, outage_wait=20, acquire_timeout=20)
    other = face.pool(outage_wait=20, acquire_timeout=20)
    served: list[Any] = []

    def caller(pool: Any) -> None:
        with suppress(unbroken.UnbrokenError):
            served.append((pool, pool.run(lambda conn: face.ask(conn, "SELECT 1"))))

    with one:
        is_served_at_once(face, one)
        face.server.stop()
        threads = [threading.Thread(target=caller, args=(pool,)) for pool in (one, other)]
        threads[0].start()
        until(lambda: one.stats().away_for > 0)
        threads[1].start()
        opened.fault = FileNotFoundError(errno.ENOENT, "No such file or directory")
        face.server.start()
        threads[1].join(10)
        assert [pool for pool, _ in served] == [other]
        opened.fault = None
        threads[0].join(10)
        assert len(served) == 2


# -- what may be of the pool's own making ----------------------------------------------------------


@pytest.mark.parametrize(
    ("sound_first", "kind"), [(True, ConnectionResetError), (False, TimeoutError)]
)
def test_a_pool_that_alone_is_never_let_in_holds_up_no_other(
    face: Any, until: Any, sound_first: bool, kind: Any
) -> None:
    """Its settings for TLS may be to blame, or a proxy of its own: it cannot be told from a server
    that is away, until another pool has tried.
    """

    def connect() -> Any:
        raise kind(errno.ECONNRESET if kind is ConnectionResetError else errno.ETIMEDOUT, "oh")

    driver = {"mysqldb": "mysqlclient"}.get(face.name, face.name)
    wrong = unbroken.Pool(face.url(), connect=connect, driver=driver, outage_wait=0.8)
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            wrong.acquire()
        except unbroken.UnbrokenError as error:
            caught.append(error)

    with wrong:
        if sound_first:
            is_served_at_once(face, face.pool())
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: wrong.stats().connect_failures >= 1)
        for _ in range(5):
            with face.pool(max_size=2) as sound:
                is_served_at_once(face, sound)
        started = time.monotonic()
        for _ in range(20):
            with face.pool(max_size=1) as sound, sound.connection():
                pass
        assert time.monotonic() - started < 2.0
        thread.join(10)
        assert "check its own settings" in str(caught[0])
        assert wrong.stats().away_for == 0.0


def test_all_wait_for_one_where_nobody_is_let_in(face: Any, tmp_path: Path, until: Any) -> None:
    """Each pool checks once, and then one of them tries for all."""

    def connect() -> Any:
        raise ConnectionResetError(errno.ECONNRESET, "oh")

    driver = {"mysqldb": "mysqlclient"}.get(face.name, face.name)
    pools = [
        unbroken.Pool(face.url(), connect=connect, driver=driver, outage_wait=20) for _ in range(4)
    ]
    threads = []
    for pool in pools:
        threads.append(threading.Thread(target=lambda pool=pool: suppressed(pool.acquire)))
        threads[-1].start()
    until(lambda: sum(pool.stats().connect_failures for pool in pools) >= 10)
    *others, prober = sorted(pool.stats().connect_failures for pool in pools)
    assert sum(others) <= 5  # once each, and once more where two began at one moment
    assert prober >= 5
    for pool in pools:
        pool.close(timeout=0)
    for thread in threads:
        thread.join(10)


def suppressed(function: Any) -> None:
    with suppress(unbroken.UnbrokenError):
        function()
