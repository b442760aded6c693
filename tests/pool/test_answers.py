"""The answer to the COMMIT or ROLLBACK that a pool sends when a connection goes back, and does not
wait for: with each driver that can, on real servers. psycopg and asyncpg have files of their own.

What it saves, and what the next user of the connection may do first: nobody gets another's answer.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest

from unbroken_drill.servers import MySQL

from .conftest import wait_until
from .due import FAR, Bench

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

# -- round trips and locks -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["acquire", "no transaction", "connection", "insert"])
def test_a_read_costs_one_round_trip_and_a_write_two(bench: Bench, how: str) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()))
    bench.due(pool)
    hidden = bench.state(pool).hidden
    hidden.answer, hidden.wanted = "", False  # no SELECT calls anything that writes

    def once() -> None:
        if how == "acquire":
            conn = bench.take(pool)
            bench.do(conn, "SELECT n FROM stock")
            bench.give(pool, conn)
            return
        with bench.lent(pool, transaction=how != "no transaction") as conn:
            bench.do(
                conn, "INSERT INTO sold VALUES (1)" if how == "insert" else "SELECT n FROM stock"
            )

    proxy.latency(FAR)
    once()
    right = 8 if how == "insert" or not bench.driver.pipelines else 4 + 1  # the last one's end
    counts: list[int] = []
    while right not in counts and len(counts) < 4:
        # a pause of this machine may cost one more now and then
        bench.rest(4 * FAR)
        before = proxy.round_trips
        for _ in range(4):
            once()
        bench.rest(4 * FAR)
        counts.append(proxy.round_trips - before)
    assert min(counts) == right, counts
    assert bench.sold() == (1 + 4 * len(counts) if how == "insert" else 0)


def test_the_server_is_free_of_locks_while_the_answer_is_due(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    begun = time.monotonic()
    sql = f"SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {session}"
    if bench.is_postgresql:
        sql = (
            f"SELECT 1 FROM pg_stat_activity WHERE pid = {session} AND (state <> 'idle' OR"
            f" backend_xmin IS NOT NULL) UNION SELECT 1 FROM pg_locks WHERE pid = {session}"
        )
    # InnoDB shows the same again to those who look sooner than 0.1 s after the last look
    wait_until(lambda: not bench.server.admin(sql) or time.sleep(0.11), 2.0)
    if isinstance(bench.server, MySQL):
        sql = (
            "SELECT 1 FROM performance_schema.metadata_locks JOIN performance_schema.threads"
            f" ON owner_thread_id = thread_id WHERE processlist_id = {session}"
        )
        wait_until(lambda: not bench.server.admin(sql), 2.0)
    bench.server.admin("SELECT n FROM stock FOR UPDATE NOWAIT")
    assert bench.is_due(pool) or time.monotonic() - begun > 0.4  # then upkeep read it


def test_who_wrote_waits_until_that_is_undone(bench: Bench) -> None:
    if bench.is_postgresql:
        pytest.skip("PostgreSQL undoes at once")
    pool = bench.pool()
    session = bench.due(pool)
    conn = bench.take(pool)
    bench.do(conn, "SELECT n FROM stock")
    bench.do(conn, "INSERT INTO sold SELECT n FROM stock")
    bench.give(pool, conn)
    assert not bench.is_due(pool)
    assert bench.answers_its_own(pool) == session
    assert bench.sold() == 0


# -- the first thing that the next holder does -----------------------------------------------------


async def _stream(bench: Bench, conn: Any) -> None:
    library = {"mysqldb": "MySQLdb"}.get(bench.name, bench.name)
    # mysql-connector's usual cursor is one that streams
    plain = bench.is_connector or bench.is_mariadb
    how = () if plain else (import_module(f"{library}.cursors").SSCursor,)
    options = {"buffered": False} if plain else {}
    cursor = await bench.cursor(conn, *how, **options)
    # … whose close refuses what is half-read
    rest = (cursor.fetchall,) if bench.is_connector else ()
    for call in (
        lambda: cursor.execute("SELECT n FROM stock ORDER BY n"), cursor.fetchone, *rest,
        cursor.close,
    ):  # fmt: skip
        value = call()
        if inspect.isawaitable(value):
            await value


def _in_cursor(bench: Bench, conn: Any, work: Callable[[Any], Any]) -> None:
    def fetch(cursor: Any) -> Any:
        # mysql-connector's cursor closes no other
        return cursor.fetchall() if bench.is_connector and cursor.with_rows else None

    async def fetched(cursor: Any) -> None:
        rows = fetch(cursor)
        if rows is not None:
            await rows

    async def awaited() -> None:
        async with await bench.cursor(conn) as cursor:
            await work(cursor)
            await fetched(cursor)
            while await cursor.nextset():
                await fetched(cursor)

    if bench.is_async:
        bench.wait(awaited())
        return
    with contextlib.closing(conn.cursor()) as cursor:
        work(cursor)
        fetch(cursor)
        while cursor.nextset():
            fetch(cursor)


def _load(bench: Bench, conn: Any) -> None:
    if bench.name == "asyncmy":
        return  # it is mistaken in a type there
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("77\n78\n")
        file.flush()
        bench.do(conn, f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE sold (n)")
    assert bench.ask(conn, "SELECT COUNT(*) FROM sold") == 2


def _streamed(bench: Bench, conn: Any) -> None:
    if bench.is_async:
        bench.wait(_stream(bench, conn))
    else:
        with suppress(StopIteration):
            _stream(bench, conn).send(None)


def _begin(bench: Bench, conn: Any) -> None:
    # older ones of asyncio have no method for it
    bench.wait(conn.cmd_query("START TRANSACTION") if bench.is_connector else conn.begin())


def _select_db(bench: Bench, conn: Any) -> None:
    select = conn.cmd_init_db if bench.is_connector else conn.select_db
    bench.wait(select(bench.server.database))


def _show_warnings(bench: Bench, conn: Any) -> None:
    if hasattr(conn, "show_warnings"):
        bench.wait(conn.show_warnings())


def _connectors_own(bench: Bench, conn: Any) -> None:
    if bench.is_connector:
        bench.wait(conn.cmd_statistics())
        assert bench.wait(conn.is_connected())
        assert bench.ask(conn, "SELECT @a IS NULL") == 1


def _renewed(bench: Bench, conn: Any) -> None:
    if bench.is_connector:
        assert bench.wait(conn.cmd_reset_connection())


def _charset(bench: Bench, conn: Any) -> None:
    for name in ("set_character_set", "set_charset", "set_charset_collation"):
        if hasattr(conn, name):
            with suppress(AttributeError):  # asyncmy's is mistaken in a name
                bench.wait(getattr(conn, name)("utf8mb4"))
            return


def _killed(bench: Bench, conn: Any) -> None:
    other = bench.pool()
    victim = bench.take(other)
    kill = conn.cmd_process_kill if bench.is_connector else conn.kill
    with suppress(*bench.driver.errors):  # a newer MySQL does not know it any more
        bench.wait(kill(bench.me(victim)))
    bench.give(other, victim)


def _prepared(bench: Bench, conn: Any) -> None:
    if bench.is_connector or bench.is_mariadb:
        cursor = conn.cursor(prepared=True)
        cursor = bench.wait(cursor) if bench.is_async else cursor
        bench.wait(cursor.execute("SELECT ?" if bench.is_mariadb else "SELECT %s", (5,)))
        assert bench.wait(cursor.fetchall()) == [(5,)]
        bench.wait(cursor.close())
    elif hasattr(conn, "prepare"):
        statement = bench.wait(conn.prepare("SELECT ?"))
        bench.wait(statement.execute((1,)))
        bench.wait(statement.close())


def _switched(bench: Bench, conn: Any) -> None:
    for on in (True, False):
        if not bench.is_connector and not bench.is_mariadb:
            bench.wait(conn.autocommit(on))
        elif bench.is_async:
            bench.wait(conn.set_autocommit(on))
        else:
            conn.autocommit = on
        bench.do(conn, "DELETE FROM stock WHERE n > 100")


def _converter(bench: Bench, conn: Any) -> None:
    if bench.is_connector or bench.is_mariadb:
        return  # the first has a class of them
    name = {"mysqldb": "converter", "asyncmy": "_decoders"}.get(bench.name, "decoders")
    getattr(conn, name)[253] = str


def _long(bench: Bench, conn: Any) -> None:
    assert bench.ask(conn, f"SELECT LENGTH('{'x' * (17 << 20)}')") == 17 << 20


#: What somebody does first on a connection whose answer is due, by name.
FIRST: dict[str, Callable[[Bench, Any], Any]] = {
    "nothing": lambda _bench, _conn: None,
    "ping": lambda bench, conn: bench.wait(bench.driver.ping(conn, 5.0)),
    "rollback": lambda bench, conn: bench.wait(conn.rollback()),
    "commit": lambda bench, conn: bench.wait(conn.commit()),
    "begin": _begin,
    "driver's rollback": lambda bench, conn: bench.wait(bench.driver.rollback(conn)),
    "select_db": _select_db,
    "show_warnings": _show_warnings,
    "connector's own": _connectors_own,
    "renewed": _renewed,
    "charset": _charset,
    "converter": _converter,
    "autocommit": _switched,
    "kill": _killed,
    "load": _load,
    "stream": _streamed,
    "prepared": _prepared,
    "callproc": lambda bench, conn: _in_cursor(bench, conn, lambda it: it.callproc("two")),
    "many": lambda bench, conn: _in_cursor(
        bench, conn, lambda it: it.executemany("INSERT INTO sold VALUES (%s)", [(1,), (2,)])
    ),
    "several": lambda bench, conn: _in_cursor(
        bench, conn, lambda it: it.execute("SELECT 1; SELECT 2; SELECT n FROM stock")
    ),
    "long": _long,
}
#: What some drivers cannot put back.
UNFIT = {"converter"}


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_whatever_the_next_holder_does_first_has_its_own_answer(bench: Bench, tls: bool) -> None:
    if bench.is_postgresql:
        pytest.skip("these are what drivers of MySQL have")
    options = (
        {"allow_local_infile": "true"}
        if bench.is_connector
        else {"client_flag": 65536, "local_infile": "true"}
    )
    pool = bench.pool(bench.url(tls=tls, **options))
    for name, does in FIRST.items():
        session = bench.due(pool)
        conn = bench.take(pool)
        does(bench, conn)
        assert bench.ask(conn, "SELECT 42") == 42, name
        assert bench.me(conn) == session, name
        bench.give(pool, conn)
        last = bench.answers_its_own(pool)
        assert last == session or name in UNFIT, name
        assert bench.sold() == 0, name


def test_a_file_that_a_library_loads_without_being_told_to_is_loaded_while_due(
    bench: Bench,
) -> None:
    if bench.name not in ("mysqldb", "mariadbconnector"):
        pytest.skip("only MariaDB's C library does that")
    pool = bench.pool()
    bench.due(pool)
    with bench.lent(pool) as conn:
        _load(bench, conn)
    bench.sold()


def test_an_error_as_the_first_answer_is_its_senders(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    conn = bench.take(pool)
    with pytest.raises(bench.driver.errors, match="no_such_table"):
        bench.do(conn, "SELECT 1 FROM no_such_table")
    bench.give(pool, conn)
    assert bench.answers_its_own(pool) == session
