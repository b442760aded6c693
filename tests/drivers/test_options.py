"""What a user asks for in the URL holds on a real server; TLS costs its CA store once."""

from __future__ import annotations

import gc
import time
import warnings
from typing import Any

import pytest

from unbroken.abc import FaultKind


def test_a_users_read_timeout_holds_after_the_handshake(faces: Any, mariadb: Any) -> None:
    face = faces("pymysql", mariadb)
    conn = face.connect(5.0, driver=face.make(face.url(read_timeout="0.4")))
    started = time.monotonic()
    assert face.fault(lambda: face.execute(conn, "SELECT SLEEP(20)")).kind is FaultKind.LOST
    assert time.monotonic() - started < 5


def test_without_one_a_statement_may_take_longer_than_the_connect_might(
    faces: Any, mariadb: Any
) -> None:
    face = faces("pymysql", mariadb)
    conn = face.connect(1.5)
    assert face.execute(conn, "SELECT SLEEP(1.8)") == [(0,)]
    face.call("ping", conn, 0.5)
    assert face.execute(conn, "SELECT SLEEP(0.8)") == [(0,)]


@pytest.mark.parametrize(
    "name", ["pymysql", "mysqldb", "aiomysql", "asyncmy", "mysqlconnector", "mysqlconnector_async"]
)
def test_mysql_options_reach_the_session(faces: Any, mariadb: Any, name: str) -> None:
    face = faces(name, mariadb)
    driver = face.make(face.url(autocommit="true", charset="latin1", init_command="SET @told = 42"))
    conn = face.connect(driver=driver)
    assert face.execute(conn, "SELECT @@autocommit, @@character_set_client, @told") == [
        (1, "latin1", 42)
    ]


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"])
def test_postgresql_options_reach_the_session(faces: Any, postgres: Any, name: str) -> None:
    face = faces(name, postgres)
    driver = face.make(face.url(application_name="told", options="-c statement_timeout=1234"))
    conn = face.connect(driver=driver)
    assert face.execute(conn, "SHOW application_name") == [("told",)]
    assert face.execute(conn, "SHOW statement_timeout") == [("1234ms",)]


def test_pymysql_loads_the_ca_store_once_for_all_pools_of_the_same_options(
    faces: Any, new_mariadb: Any
) -> None:
    server = new_mariadb(tls=True)
    face = faces("pymysql", server)
    first, second = face.connect(), face.connect()
    assert first.ctx is second.ctx
    assert face.execute(first, "SHOW STATUS LIKE 'Ssl_cipher'")[0][1]
    assert face.connect(driver=face.make(face.url())).ctx is first.ctx
    assert face.connect(driver=face.make(face.url(ssl_ca=server.ca_file))).ctx is not first.ctx


def test_mariadbs_connector_takes_them_too_but_always_speaks_utf8mb4(
    faces: Any, mariadb: Any
) -> None:
    face = faces("mariadbconnector", mariadb)
    conn = face.connect(
        driver=face.make(face.url(autocommit="true", init_command="SET @told = 42"))
    )
    assert face.execute(conn, "SELECT @@autocommit, @@character_set_client, @told") == [
        (1, "utf8mb4", 42)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "pymysql",
        "mysqldb",
        "aiomysql",
        "asyncmy",
        "mariadbconnector",
        "mysqlconnector",
        "mysqlconnector_async",
    ],
)
def test_a_ca_file_makes_tls_and_a_wrong_one_is_refused(
    faces: Any, new_mariadb: Any, name: str, tmp_path: Any
) -> None:
    server = new_mariadb(tls=True)
    face = faces(name, server)
    conn = face.connect(driver=face.make(face.url(ssl_ca=str(server.ca_file))))
    assert face.execute(conn, "SHOW STATUS LIKE 'Ssl_cipher'")[0][1]
    other = new_mariadb(tls=True)
    wrong = face.make(face.url(ssl_ca=str(other.ca_file)))
    assert face.fault(lambda: face.connect(driver=wrong), wrong).kind is FaultKind.REJECTED


@pytest.mark.parametrize("name", ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"])
def test_sslmode_is_libpqs_with_every_driver(
    faces: Any, new_postgres: Any, postgres: Any, name: str
) -> None:
    server = new_postgres(tls=True)
    face = faces(name, server)
    driver = face.make(face.url(sslmode="verify-ca", sslrootcert=str(server.ca_file)))
    conn = face.connect(driver=driver)
    session = driver.session_id(conn)
    assert server.admin(f"SELECT ssl FROM pg_stat_ssl WHERE pid = {session}") == [("t",)]
    plain = faces(name, postgres)
    needs = plain.make(plain.url(sslmode="require"))
    assert plain.fault(lambda: plain.connect(driver=needs), needs).kind is FaultKind.REJECTED


def test_short_timeouts_of_psycopg_are_held_although_libpq_has_a_minimum(
    faces: Any, postgres: Any
) -> None:
    import socket

    face = faces("psycopg", postgres)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        driver = face.make(f"postgresql+psycopg://u@127.0.0.1:{listener.getsockname()[1]}/d")
        started = time.monotonic()
        assert face.fault(lambda: driver.connect(0.3), driver).kind is FaultKind.UNREACHABLE
        assert time.monotonic() - started < 1.9


def test_a_connect_that_was_given_up_leaves_nothing_open(
    faces: Any, mariadb: Any, postgres: Any
) -> None:
    import socket

    gc.collect()  # what earlier tests left is not this one's
    with socket.create_server(("127.0.0.1", 0)) as listener, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for name, server in (
            ("aiomysql", mariadb), ("asyncmy", mariadb), ("mysqlconnector", mariadb), ("mysqlconnector_async", mariadb),  # noqa: E501
            ("pymysql", mariadb), ("asyncpg", postgres), ("psycopg_async", postgres), ("pg8000", postgres),  # noqa: E501
        ):  # fmt: skip
            face = faces(name, server)
            scheme = face.url().partition("://")[0]
            driver = face.make(f"{scheme}://u@127.0.0.1:{listener.getsockname()[1]}/d")
            face.fault(lambda driver=driver, face=face: face.connect(0.3, driver=driver), driver)
            face.close()
            gc.collect()
