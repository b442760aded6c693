"""mysql-connector-python: its C extension is refused by name, as nobody could know whether an
answer is outstanding, and a cursor costs no round trip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy
from mysql.connector.errors import OperationalError

import unbroken
from unbroken.drivers import open_driver
from unbroken.errors import ConfigurationError
from unbroken_drill import FaultProxy


@pytest.mark.parametrize("is_async", [False, True])
def test_a_url_that_asks_for_the_c_extension_is_refused_with_the_remedy(is_async: bool) -> None:
    with pytest.raises(
        ConfigurationError, match=r"use_pure=false: .*hides its socket.*remove the option"
    ):
        open_driver("mysql+mysqlconnector://u@h/d?use_pure=false", is_async=is_async)


@pytest.mark.parametrize("where", ["url", "connect_args"])
def test_an_engine_that_asks_for_it_is_refused_too(where: str) -> None:
    url = "mysql+mysqlconnector://u@h/d" + ("?use_pure=false" if where == "url" else "")
    args = {"use_pure": False} if where == "connect_args" else {}
    with pytest.raises(ConfigurationError, match="hides its socket"):
        sqlalchemy.create_engine(url, plugins=["unbroken"], connect_args=args)


def test_an_engine_that_asks_for_nothing_connects_in_pure_python(mariadb: Any) -> None:
    engine = sqlalchemy.create_engine(mariadb.url("mysqlconnector"), plugins=["unbroken"])
    with engine.connect() as conn:
        assert not hasattr(conn.connection.driver_connection, "_cmysql")
    engine.dispose()


PROGRAM = """
import _mysql_connector  # where it needs a newer OpenSSL than Python's, it loads only before ssl does
import json, sys
import mysql.connector
import unbroken
where = json.loads(sys.argv[1])
made = []

def connect():
    made.append(mysql.connector.connect(**where, use_pure=False))
    return made[-1]

with unbroken.Pool(connect=connect, driver="mysqlconnector", acquire_timeout=10) as pool:
    try:
        pool.acquire()
    except unbroken.ConnectRejectedError as error:
        print(error)
assert hasattr(made[0], "_cmysql")
"""  # noqa: E501


def test_a_connection_of_the_c_extension_that_connect_gives_is_refused_at_once(
    mariadb: Any,
) -> None:
    where = {
        "host": "127.0.0.1",
        "port": mariadb.port,
        "user": mariadb.user,
        "password": mariadb.password,
        "database": mariadb.database,
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(where)], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "connect with use_pure=True" in ended.stdout


def test_a_cursor_asks_the_server_nothing_and_finds_a_lost_connection(mariadb: Any) -> None:
    address = (mariadb.host, mariadb.port)
    with (
        FaultProxy(address, protocol="mysql") as proxy,
        unbroken.Pool(proxy.url(mariadb.url("mysqlconnector")), max_size=1) as pool,
    ):
        conn = pool.acquire()
        before = proxy.round_trips
        conn.cursor().close()
        assert proxy.round_trips == before
        assert conn.is_connected()
        assert proxy.round_trips == before + 1
        proxy.fin()
        with pytest.raises(OperationalError, match="not available"):
            _make_cursors(conn)
        with suppress(OperationalError):
            pool.release(conn)
        with pool.connection() as conn:
            assert conn.is_connected()


def _make_cursors(conn: Any) -> None:
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        conn.cursor().close()
        time.sleep(0.01)
