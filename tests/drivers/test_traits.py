"""What a holder can change on a connection without a word to the server is seen for nothing, and
put back.
"""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from unbroken.drivers import open_driver

from .conftest import MYSQL


def _psycopg(name: str, value: Any) -> Callable[[Any, Any], Any]:
    """Set by the blocking connection's property, or by the async one's method."""

    def change(face: Any, conn: Any) -> None:
        if face.is_async:
            face.run(getattr(conn, f"set_{name}")(value))
        else:
            setattr(conn, name, value)

    return change


def _attribute(name: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda _face, conn: setattr(conn, name, value)


def _loader(_face: Any, conn: Any) -> None:
    from psycopg.types.string import TextLoader

    conn.adapters.register_loader("int4", TextLoader)


def _registered(_face: Any, conn: Any) -> None:
    from psycopg.types import TypeInfo

    TypeInfo("somebodys", 123456, 123457).register(conn)


def _handler(_face: Any, conn: Any) -> None:
    conn.add_notice_handler(print)


def _rows(name: str) -> Callable[[Any, Any], None]:
    def change(_face: Any, conn: Any) -> None:
        import psycopg

        conn.row_factory = getattr(psycopg.rows, name)

    return change


def _cursors(_face: Any, conn: Any) -> None:
    import psycopg

    conn.cursor_factory = psycopg.AsyncClientCursor if _face.is_async else psycopg.ClientCursor


_PSYCOPG = {
    "autocommit": _psycopg("autocommit", True),
    "isolation level": _psycopg("isolation_level", 4),
    "read only": _psycopg("read_only", True),
    "deferrable": _psycopg("deferrable", True),
    "row factory": _rows("dict_row"),
    "cursor factory": _cursors,
    "prepare threshold": _attribute("prepare_threshold", 1),
    "prepared statements at most": _attribute("prepared_max", 7),
    "loader": _loader,
    "type": _registered,
    "notice handler": _handler,
}


def _typecaster(_face: Any, conn: Any) -> None:
    from psycopg2 import extras

    extras.register_uuid(conn_or_curs=conn)


def _notice(face: Any, conn: Any) -> None:
    face.execute(conn, "DO $$ BEGIN RAISE NOTICE 'heard'; END $$")
    face.call("rollback", conn)


def _notification(face: Any, conn: Any) -> None:
    """It stays in the connection's list for whoever looks there next."""
    face.execute(conn, "LISTEN somebody")
    face.call("commit", conn)
    face.server.admin("NOTIFY somebody")
    face.execute(conn, "UNLISTEN *")
    face.call("commit", conn)
    assert conn.notifies


def _in_autocommit(_face: Any, conn: Any) -> None:
    conn.autocommit = True
    conn.set_session(isolation_level="SERIALIZABLE", readonly=True)


_PSYCOPG2 = {
    "autocommit": _attribute("autocommit", True),
    "isolation level": _attribute("isolation_level", "SERIALIZABLE"),
    "read only": _attribute("readonly", True),
    "session": lambda _face, conn: conn.set_session(deferrable=True),
    "session in autocommit": _in_autocommit,
    "old isolation level": lambda _face, conn: conn.set_isolation_level(0),
    "encoding": lambda _face, conn: conn.set_client_encoding("LATIN1"),
    "cursor factory": lambda _face, conn: setattr(
        conn, "cursor_factory", __import__("psycopg2.extras").extras.DictCursor
    ),
    "typecaster": _typecaster,
    "notice": _notice,
    "notification": _notification,
}
_PG8000 = {
    "autocommit": _attribute("autocommit", True),
    "reader": lambda _face, conn: conn.register_in_adapter(23, str),
    "reader of an unknown type": lambda _face, conn: conn.register_in_adapter(123456, str),
    "writer": lambda _face, conn: conn.register_out_adapter(int, str),
    "notice": _notice,
}


def _says(sql: str) -> Callable[[Any, Any], None]:
    def change(face: Any, conn: Any) -> None:
        face.execute(conn, sql)

    return change


def _codec(face: Any, conn: Any) -> None:
    face.run(conn.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=str))


def _listening(face: Any, conn: Any) -> None:
    face.run(conn.add_listener("somebody", print))


_ASYNCPG = {
    "setting": _says("SET search_path TO nowhere"),
    "setting by a function": _says("SELECT set_config('search_path', 'nowhere', false)"),
    "isolation level": _says(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    ),
    "advisory lock": _says("SELECT pg_advisory_lock(11)"),
    "LISTEN": _says("LISTEN somebody"),
    "temporary table": _says("CREATE TEMPORARY TABLE left_behind (n INT)"),
    "listener": _listening,
    "listener to the log": lambda _face, conn: conn.add_log_listener(print),
    "listener to queries": lambda _face, conn: conn.add_query_logger(print),
    "listener to the end": lambda _face, conn: conn.add_termination_listener(print),
    "codec": _codec,
    "statement that was only prepared": lambda face, conn: face.run(
        conn.prepare("SELECT 'only prepared'")
    ),
}


def _dictionaries(library: str) -> Callable[[Any, Any], None]:
    def change(_face: Any, conn: Any) -> None:
        conn.cursorclass = importlib.import_module(library).DictCursor

    return change


def _awaited(name: str, *args: Any) -> Callable[[Any, Any], Any]:
    """Call the method *name*, which asyncio's libraries await."""
    return lambda face, conn: face.run(getattr(conn, name)(*args))


def _converter(table: str) -> Callable[[Any, Any], None]:
    """Set one in the connection's own table."""

    def change(_face: Any, conn: Any) -> None:
        getattr(conn, table)[3] = lambda value: f"<{value}>"

    return change


def _another_table(name: str) -> Callable[[Any, Any], None]:
    return lambda _face, conn: setattr(conn, name, {**getattr(conn, name), 3: repr})


def _settings(face: Any, conn: Any) -> None:
    face.execute(conn, "SET autocommit = 1")


#: Changes that can only be seen: what they did to the tables of converters is not known, so the
#: connection is closed.
NOT_PUT_BACK = {
    *((name, "converter") for name in ("pymysql", "aiomysql", "asyncmy")),
    *((name, "user") for name in ("mysqldb", "mysqlconnector_async")),
    *((name, "database and autocommit") for name in MYSQL),
}


def _both(*changes: Callable[[Any, Any], Any]) -> Callable[[Any, Any], None]:
    def change(face: Any, conn: Any) -> None:
        for each in changes:
            each(face, conn)

    return change


_SELECTS = _awaited("select_db", "information_schema")


def _user(name: str) -> Callable[[Any, Any], None]:
    """Log in anew, which would do as another user, too."""

    def change(face: Any, conn: Any) -> None:
        server = face.server
        face.run(getattr(conn, name)(server.user, server.password, server.database))

    return change


_PYMYSQL = {
    "autocommit": _awaited("autocommit", True),
    "autocommit by a statement": _settings,
    "character set": _awaited("set_character_set", "latin1"),
    "database": _SELECTS,
    "database and autocommit": _both(_SELECTS, _awaited("autocommit", True)),
    "cursor class": _dictionaries("pymysql.cursors"),
    "encoding": _attribute("encoding", "latin1"),
    "unicode": _attribute("use_unicode", False),
    "table of encoders": _another_table("encoders"),
    "table of decoders": _another_table("decoders"),
    "converter": _converter("decoders"),
}
_AIOMYSQL = {
    "autocommit": _awaited("autocommit", True),
    "autocommit by a statement": _settings,
    "character set": _awaited("set_charset", "latin1"),
    "database": _SELECTS,
    "database and autocommit": _both(_SELECTS, _awaited("autocommit", True)),
    "cursor class": _dictionaries("aiomysql"),
    "unicode": _attribute("use_unicode", False),
    "table of decoders": _another_table("decoders"),
    "converter": _converter("decoders"),
}
_ASYNCMY = {
    "autocommit": _awaited("autocommit", True),
    "autocommit by a statement": _settings,
    "database": _SELECTS,
    "database and autocommit": _both(_SELECTS, _awaited("autocommit", True)),
    "converter": _converter("_decoders"),
}
_MYSQLDB = {
    "autocommit": _awaited("autocommit", True),
    "character set": _awaited("set_character_set", "latin1"),
    "cursor class": _dictionaries("MySQLdb.cursors"),
    "encoding": _attribute("encoding", "latin1"),
    "table of encoders": _another_table("encoders"),
    "converter": _converter("converter"),
    "database": _SELECTS,
    "database and autocommit": _both(_SELECTS, _awaited("autocommit", True)),
    "user": _user("change_user"),
}
_MARIADB = {
    "database": _SELECTS,
    "database by an attribute": _attribute("database", "information_schema"),
    "database and autocommit": _both(_SELECTS, _attribute("autocommit", True)),
    "autocommit": _attribute("autocommit", True),
    "autocommit by a statement": _settings,
    "reconnect": _attribute("auto_reconnect", True),
    "converter": _attribute("_converter", {}),
}


def _unicode(_face: Any, conn: Any) -> None:
    # older ones have no setter
    setattr(conn, "use_unicode" if hasattr(type(conn), "use_unicode") else "_use_unicode", False)


_MYSQLCONNECTOR = {
    "autocommit": _attribute("autocommit", True),
    "autocommit by a statement": _settings,
    "character set": lambda _face, conn: conn.set_charset_collation("latin1"),
    "warnings": _attribute("get_warnings", True),
    "raising on warnings": _attribute("raise_on_warnings", True),
    "unicode": _unicode,
    "results consumed": _attribute("can_consume_results", True),
    "rows": lambda _face, conn: conn.config(buffered=True, raw=True),
    "database": _attribute("database", "information_schema"),
    "database by a command": _awaited("cmd_init_db", "information_schema"),
    "database and autocommit": _both(
        _attribute("database", "information_schema"), _attribute("autocommit", True)
    ),
}
_MYSQLCONNECTOR_ASYNC = {
    "autocommit": _awaited("set_autocommit", True),
    "autocommit by a statement": _settings,
    "character set": _awaited("set_charset_collation", "latin1"),
    "warnings": _attribute("get_warnings", True),
    "raising on warnings": _attribute("raise_on_warnings", True),
    "unicode": _unicode,
    "database by a command": _awaited("cmd_init_db", "information_schema"),
    "database and autocommit": _both(
        _awaited("cmd_init_db", "information_schema"), _awaited("set_autocommit", True)
    ),
    "user": _user("cmd_change_user"),
}
_MYSQL = {
    "pymysql": _PYMYSQL, "aiomysql": _AIOMYSQL, "asyncmy": _ASYNCMY, "mysqldb": _MYSQLDB,
    "mariadbconnector": _MARIADB, "mysqlconnector": _MYSQLCONNECTOR,
    "mysqlconnector_async": _MYSQLCONNECTOR_ASYNC,
}  # fmt: skip
CHANGES: dict[str, dict[str, Callable[[Any, Any], Any]]] = {
    "asyncpg": _ASYNCPG,
    "pg8000": _PG8000,
    "psycopg": _PSYCOPG, "psycopg_async": _PSYCOPG, "psycopg2": _PSYCOPG2,
    **{name: changes for name, changes in _MYSQL.items() if name in MYSQL},
}  # fmt: skip


_MODES = (
    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
    " current_setting('client_encoding')"
)


#: What asyncpg's holder may have left on the session, all of it by functions that leave nothing.
_LEFT = """
    SELECT current_setting('search_path'), ARRAY(SELECT pg_listening_channels()), to_regclass('left_behind'),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), current_user, 5::int4
"""  # noqa: E501


ALL = [(name, change) for name, changes in CHANGES.items() for change in changes]


@pytest.fixture(params=[each for each in ALL if each not in NOT_PUT_BACK], ids="-".join)
def changed(request: pytest.FixtureRequest, faces: Any) -> Any:
    """A driver's face, a connection with its traits, and a change."""
    name, change = request.param
    face = faces(name, request.getfixturevalue("mariadb" if name in MYSQL else "postgres"))
    return face, CHANGES[name][change]


def test_a_change_is_seen_without_a_round_trip_and_put_back(changed: Any) -> None:
    face, change = changed
    driver, conn = face.driver, face.connect()
    traits, left = driver.traits(conn), _LEFT if face.name == "asyncpg" else "SELECT 1"
    assert driver.is_clean(conn, traits)
    before = face.execute(conn, left)
    face.call("rollback", conn)
    if not driver.is_clean(conn, traits):  # at the first use psycopg copies its adapters
        face.call("restore", conn, traits)
    assert driver.is_clean(conn, traits)
    assert driver.traits(conn) == traits
    change(face, conn)
    assert not driver.is_clean(conn, traits)
    assert driver.traits(conn) != traits  # so the pool puts them back
    face.call("restore", conn, traits)
    assert driver.is_clean(conn, traits)
    assert face.execute(conn, "SELECT 7") == [(7,)]
    if face.is_mysql:
        assert face.execute(conn, "SELECT DATABASE()") == [(face.server.database,)]
    else:
        assert face.execute(conn, _MODES) == [("read committed", "off", "UTF8")]
        assert face.execute(conn, left) == before
    if not face.is_mysql:
        assert driver.is_in_transaction(conn) is (face.name != "asyncpg")
    face.call("rollback", conn)
    assert driver.is_clean(conn, traits)


@pytest.mark.parametrize(("name", "change"), sorted(NOT_PUT_BACK & {*ALL}))
def test_a_change_that_cannot_be_put_back_is_seen(
    faces: Any, mariadb: Any, name: str, change: str
) -> None:
    face = faces(name, mariadb)
    conn = face.connect()
    traits = face.driver.traits(conn)
    CHANGES[name][change](face, conn)
    assert not face.driver.is_clean(conn, traits)
    with pytest.raises(face.driver.errors):
        face.call("restore", conn, traits)


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async"])
def test_what_was_registered_for_all_connections_at_the_beginning_stays(
    faces: Any, postgres: Any, name: str
) -> None:
    from psycopg.types.string import TextLoader

    face = faces(name, postgres)
    made = face.connect()
    made.adapters.register_loader("int4", TextLoader)  # as a connect= of the application's own does

    async def connect() -> Any:
        return made

    driver = face.make(connect=connect if face.is_async else lambda: made, driver="psycopg")
    conn = face.connect(driver=driver)
    traits = face.driver.traits(conn)
    assert face.driver.is_clean(conn, traits)
    conn.adapters.register_loader("int8", TextLoader)
    assert not face.driver.is_clean(conn, traits)
    face.call("restore", conn, traits)
    assert face.execute(conn, "SELECT 1::int4, 2::int8") == [("1", 2)]


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async"])
def test_what_is_registered_on_a_connection_that_the_pool_has_used_before_is_seen(
    faces: Any, postgres: Any, name: str
) -> None:
    from psycopg.types.string import TextLoader

    face = faces(name, postgres)
    conn = face.connect()
    # psycopg copies its adapters here, as it does for a statement with parameters
    assert conn.adapters is not None
    face.call("rollback", conn)
    traits = face.driver.traits(conn)
    assert face.driver.is_clean(conn, traits)
    conn.adapters.register_loader("int4", TextLoader)
    assert not face.driver.is_clean(conn, traits)
    face.call("restore", conn, traits)
    assert face.execute(conn, "SELECT 1::int4") == [(1,)]


def test_what_asyncpgs_holder_sends_every_day_costs_no_reset(faces: Any, postgres: Any) -> None:
    face = faces("asyncpg", postgres)
    conn = face.connect()
    traits = face.driver.traits(conn)
    for sql in ("BEGIN", "SELECT count(*) FROM pg_class", "ROLLBACK"):
        face.run(conn.execute(sql))
    face.run(conn.fetchval("SELECT $1::int", 1))
    face.run(conn.executemany("SELECT $1::int", [(1,), (2,)]))
    assert face.driver.is_clean(conn, traits)


def test_what_asyncpgs_connect_set_is_not_reset_but_ends_the_connection(
    faces: Any, postgres: Any
) -> None:
    async def connect() -> Any:
        conn = await face.by_library()
        await conn.execute("SET search_path TO nowhere")
        return conn

    face = faces("asyncpg", postgres)
    driver = face.make(connect=connect, driver="asyncpg")
    conn = face.connect(driver=driver)
    traits = driver.traits(conn)
    assert driver.is_clean(conn, traits)
    face.execute(conn, "SET work_mem TO '5MB'")
    assert not driver.is_clean(conn, traits)
    with pytest.raises(driver.errors):
        face.call("restore", conn, traits, driver=driver)


def test_a_connection_in_a_transaction_is_not_clean_and_cannot_be_put_back(face: Any) -> None:
    conn = face.connect()
    traits = face.driver.traits(conn)
    if face.name == "asyncpg":
        face.call("begin", conn)
    face.execute(conn, "BEGIN" if face.is_mysql else "SELECT 1")
    assert not face.driver.is_clean(conn, traits)
    with pytest.raises(face.driver.errors):
        face.call("restore", conn, traits)


@pytest.mark.parametrize(
    ("name", "value"),
    [("isolation_level", None), ("row_factory", sqlite3.Row), ("text_factory", bytes)],
)
def test_what_a_holder_of_sqlite_changes_is_put_back(name: str, value: Any) -> None:
    driver = open_driver("sqlite://")
    conn = driver.connect(1.0)
    traits = driver.traits(conn)
    assert driver.is_clean(conn, traits)
    before = getattr(conn, name)
    setattr(conn, name, value)
    assert not driver.is_clean(conn, traits)
    driver.restore(conn, traits)
    assert driver.is_clean(conn, traits)
    assert getattr(conn, name) == before
    driver.close(conn)
    assert not driver.is_clean(conn, traits)


@pytest.mark.parametrize("sql", ["DEALLOCATE ALL", "select 1; discard  all"])
def test_what_a_holder_had_the_server_forget_asyncpg_prepares_again(
    sql: str, faces: Any, postgres: Any
) -> None:
    """Else each statement of a later holder's would fail for ever that was prepared before."""
    face = faces("asyncpg", postgres)
    driver, conn = face.driver, face.connect()
    traits = driver.traits(conn)
    assert face.run(conn.fetchval("SELECT $1::int", 1)) == 1
    assert driver.is_clean(conn, traits)
    for part in sql.split(";"):  # DISCARD ALL must be alone
        face.run(conn.execute(part))
    assert not driver.is_clean(conn, traits)
    face.call("restore", conn, traits)
    assert driver.is_clean(conn, traits)
    assert face.run(conn.fetchval("SELECT $1::int", 2)) == 2
