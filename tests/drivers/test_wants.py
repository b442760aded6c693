"""What begins a transaction goes out with its first statement, or before it: never after it, and
nothing is stored that was sent for that transaction, wherever an exception strikes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from unbroken.drivers import open_driver
from unbroken.drivers._shared import AUTOCOMMIT_OFF

NAMES = ["pymysql", "mysqldb"]
OURS = ("/unbroken/drivers/", "/pymysql/", "/MySQLdb/")


class Struck(Exception):  # noqa: N818 - what happened
    """As a signal handler raises it."""


class Bench:
    """A driver whose sessions are in autocommit, and a table that it writes to."""

    def __init__(self, scheme: str, name: str, server: Any) -> None:
        self.server = server
        place = f"{server.user}:{server.password}@{server.host}:{server.port}/{server.database}"
        self.driver: Any = open_driver(f"{scheme}+{name}://{place}?autocommit=true")
        self.opened: list[Any] = []

    def connect(self) -> Any:
        conn = self.driver.connect(5.0)
        if self.is_psycopg:
            self.driver.share(conn, False)
            self.driver.let_fly(conn, True)
        else:
            self.do(conn, "SELECT 1")  # from the first answer on, the server's status is known
            self.driver.let_fly(conn, True)
        self.opened.append(conn)
        return conn

    @property
    def is_psycopg(self) -> bool:
        return bool(self.driver.name == "psycopg")

    @property
    def begins(self) -> str:
        return "BEGIN" if self.is_psycopg else AUTOCOMMIT_OFF

    def do(self, conn: Any, sql: str) -> Any:
        with contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None

    def close(self) -> None:
        while self.opened:
            self.driver.close(self.opened.pop())

    def stored(self) -> int:
        conn = self.driver.connect(5.0)
        try:
            return int(self.do(conn, "SELECT COUNT(*) FROM wanted")[0][0])
        finally:
            self.driver.close(conn)


@contextlib.contextmanager
def table(bench: Bench) -> Iterator[Bench]:
    conn = bench.connect()
    engine = "" if bench.is_psycopg else " ENGINE=InnoDB"
    bench.do(conn, "DROP TABLE IF EXISTS wanted")
    bench.do(conn, f"CREATE TABLE wanted (n INT){engine}")
    bench.close()
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture(params=NAMES)
def mysql(request: Any, mariadb: Any) -> Iterator[Bench]:
    with table(Bench("mysql", request.param, mariadb)) as bench:
        yield bench


@pytest.fixture
def psycopg(postgres: Any) -> Iterator[Bench]:
    with table(Bench("postgresql", "psycopg", postgres)) as bench:
        yield bench


@pytest.fixture(params=[*NAMES, "psycopg"])
def bench(request: Any, mariadb: Any, postgres: Any) -> Iterator[Bench]:
    scheme, server = ("postgresql", postgres) if request.param == "psycopg" else ("mysql", mariadb)
    with table(Bench(scheme, request.param, server)) as found:
        yield found


@pytest.mark.parametrize("follows", [True, False], ids=["behind", "after"])
@pytest.mark.parametrize("first", ["SELECT COUNT(*) FROM wanted", "INSERT INTO wanted VALUES (1)"])
def test_no_strike_stores_what_was_sent_for_the_transaction(
    bench: Bench, first: str, follows: bool
) -> None:
    """The application may catch the strike inside its block, and go on."""
    if follows and (first.startswith("INSERT") or bench.is_psycopg):
        return  # the pool lets nothing go behind it but what reads; psycopg needs no such word
    at = 0
    while True:
        at += 3 if bench.is_psycopg else 1
        conn = bench.connect()
        bench.driver.want(conn, bench.begins, lambda _: follows)
        came = strike(bench, conn, first, at)
        with contextlib.suppress(*bench.driver.errors):
            bench.do(conn, "INSERT INTO wanted VALUES (2)")
        bench.close()
        if not came:
            break
    assert at > 20
    assert bench.stored() == 0


def strike(bench: Bench, conn: Any, sql: str, at: int) -> bool:
    """Whether there was a step number *at* of the driver's code to be struck."""
    left = at

    def step(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_name == "__del__" or not any(part in code.co_filename for part in OURS):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Struck
        return step

    cursor, before = conn.cursor(), sys.gettrace()
    sys.settrace(step)
    try:
        cursor.execute(sql)
    except (Struck, *bench.driver.errors):
        pass
    finally:
        sys.settrace(before)
    return left <= 0


@pytest.mark.parametrize("flies", [False, True])
def test_a_beginning_that_the_server_refuses_lets_nothing_through(
    mysql: Bench, flies: bool
) -> None:
    """KILL QUERY, say, may meet it just then. A read that is behind it already is told as a
    loss.
    """
    conn = mysql.connect()
    mysql.driver.want(conn, "SET autocommit = nonsense", lambda _: flies)
    first = "SELECT COUNT(*) FROM wanted" if flies else "INSERT INTO wanted VALUES (1)"
    with pytest.raises(mysql.driver.errors) as caught:
        mysql.do(conn, first)
    assert mysql.driver.classify(caught.value).is_lost
    with pytest.raises(mysql.driver.errors):
        mysql.do(conn, "INSERT INTO wanted VALUES (1)")
    mysql.close()
    assert mysql.stored() == 0


@pytest.mark.parametrize(
    "way", ["begin", "ping", "select_db", "autocommit", "callproc", "executemany", "dict"]
)
def test_whatever_is_sent_first_finds_the_transaction_begun(mysql: Bench, way: str) -> None:
    conn = mysql.connect()
    mysql.driver.want(conn, AUTOCOMMIT_OFF, lambda _: False)
    assert not conn.get_autocommit()
    cursor = conn.cursor()
    if way == "ping":
        conn.ping()
    elif way == "select_db":
        conn.select_db(mysql.server.database)
    elif way == "autocommit":
        conn.autocommit(False)
    elif way == "begin":
        conn.begin()
    elif way == "callproc":
        with contextlib.suppress(*mysql.driver.errors):
            cursor.callproc("no_such_procedure")
    elif way == "executemany":
        cursor.executemany("INSERT INTO wanted VALUES (%s)", [(1,), (2,)])
    mysql.do(conn, "INSERT INTO wanted VALUES (3)")
    assert mysql.do(conn, "SELECT @@autocommit")[0][0] == 0
    conn.rollback()
    mysql.close()
    assert mysql.stored() == 0


def test_a_connection_for_which_something_is_to_go_out_is_not_clean_until_it_is_put_back(
    bench: Bench,
) -> None:
    conn = bench.connect()
    traits = bench.driver.traits(conn)
    assert bench.driver.is_clean(conn, traits)
    bench.driver.want(conn, bench.begins, bool)
    assert bench.driver.wants(conn) == bench.begins
    assert not bench.driver.is_clean(conn, traits)
    assert bench.driver.is_in_transaction(conn) is False
    bench.driver.restore(conn, traits)
    assert bench.driver.wants(conn) is None
    assert bench.driver.is_clean(conn, traits)
    bench.do(conn, "INSERT INTO wanted VALUES (1)")
    bench.close()
    assert bench.stored() == 1


@pytest.mark.parametrize("way", ["status", "transaction", "copy", "pipeline", "server cursor"])
def test_psycopgs_own_ways_find_the_transaction_begun(psycopg: Bench, way: str) -> None:
    conn = psycopg.connect()
    psycopg.driver.want(conn, "BEGIN", bool)
    if way == "status":
        assert conn.info.transaction_status == 2
    elif way == "transaction":
        with conn.transaction():
            psycopg.do(conn, "INSERT INTO wanted VALUES (1)")
    elif way == "copy":
        with conn.cursor().copy("COPY wanted FROM STDIN") as copy:
            copy.write_row((1,))
    elif way == "pipeline":
        with conn.pipeline():
            conn.execute("INSERT INTO wanted VALUES (1)")
    else:
        with conn.cursor("named") as cursor:
            cursor.execute("SELECT n FROM wanted")
            cursor.fetchall()
    psycopg.do(conn, "INSERT INTO wanted VALUES (2)")
    assert conn.info.transaction_status == 2
    conn.rollback()
    psycopg.close()
    assert psycopg.stored() == 0
