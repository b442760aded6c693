"""What cannot work is said at once, in one line, with what to do about it, and never with a
password in it.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sqlite3
import time

import pytest

from unbroken import (
    ConfigurationError,
    ConnectRejectedError,
    DriverNotInstalledError,
    OutageError,
    Pool,
    UnbrokenError,
)

SECRET = "tr0ub4dor&3"
GOOD = f"mysql+pymysql://app:{SECRET}@127.0.0.1:3306/shop"


def told(text):
    """The one line, held to what every line must be."""
    text = str(text)
    assert text
    assert "\n" not in text
    assert len(text) < 500
    assert SECRET not in text
    return text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"mysq://app:{SECRET}@db/shop", "did you mean 'mysql'"),
        (f"oracle://app:{SECRET}@db/shop", "known: "),
        (f"mysql+pymsql://app:{SECRET}@db/shop", "did you mean 'mysql+pymysql'"),
        (f"app:{SECRET}@db/shop", "write something like"),
        (f"mysql+pymysql://app:{SECRET}@db:port/shop", "the port is not a number"),
        (f"mysql+pymysql://app:{SECRET}@db:99999/shop", "1 to 65535"),
        (f"postgresql+asyncpg://app:{SECRET}@db/shop", "AsyncPool"),
        (f"mysql+pymysql://app:{SECRET}@db/shop?max_sise=4", "did you mean"),
        (
            f"mysql+pymysql://app:{SECRET}@db/shop?max_size=many",
            "max_size='many' is not a whole number",
        ),
        (f"mysql+pymysql://app:{SECRET}@db/shop?max_size=0", "at least 1"),
        (f"mysql+pymysql://app:{SECRET}@db/shop?acquire_timeout=soon", "not a number of seconds"),
        (f"mysql+pymysql://app:{SECRET}@db/shop?reclaim=perhaps", "write true or false"),
        (f"mysql+pymysql://app:{SECRET}@db/shop?charset", "?name=value"),
        ("", "is empty"),
        ("sqlite://file.db", "three slashes"),
    ],
)
def test_a_url_that_cannot_work(url, says):
    with pytest.raises(ConfigurationError) as caught:
        Pool(url)
    assert says in told(caught.value)
    assert isinstance(caught.value, ValueError)
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("max_sise", 5, "did you mean 'max_size'"),
        ("pool_recycle", 5, "that is max_age here"),
        ("max_size", 0, "at least 1"),
        ("max_size", 2.5, "whole number"),
        ("max_size", True, "whole number"),
        ("max_size", "5", "whole number"),
        ("min_size", -1, "at least 0"),
        ("min_size", 20, "min_size=20 exceeds max_size=10"),
        ("acquire_timeout", 0, "more than 0"),
        ("acquire_timeout", None, "number of seconds"),
        ("acquire_timeout", math.nan, "number of seconds"),
        ("connect_timeout", math.inf, "give a number of seconds"),
        ("outage_wait", -1, "at least 0"),
        ("leak_after", -5, "more than 0"),
        ("reclaim", "yes", "True or False"),
        ("reset", "commit", "'rollback', 'session', None or a callable"),
        ("deadline", 0, "more than 0"),
        ("name", "", "non-empty"),
    ],
)
def test_a_setting_that_cannot_work(setting, value, says):
    with pytest.raises(ConfigurationError) as caught:
        Pool(GOOD, **{setting: value})
    text = told(caught.value)
    assert says in text
    assert setting in text


def test_the_wrong_things_instead_of_a_url():
    for given, says in (
        ({}, "give a database URL"),
        ({"connect": 5, "driver": "pymysql"}, "callable"),
        ({"connect": sqlite3.connect}, "driver="),
    ):
        with pytest.raises(ConfigurationError) as caught:
            Pool(**given)
        assert says in told(caught.value)
    with pytest.raises(ConfigurationError, match="not of type int"):
        Pool(5)
    with pytest.raises(ConfigurationError, match="unknown driver 'pymsql'; did you mean 'pymysql'"):
        Pool(connect=sqlite3.connect, driver="pymsql")


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [(GOOD, "pymysql", "pymysql"), (GOOD.replace("pymysql", "mysqldb"), "MySQLdb", "mysqlclient")],
)
def test_a_driver_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch, url, module, extra
):
    known = importlib.util.find_spec
    monkeypatch.setattr(
        "unbroken.drivers.find_spec",
        lambda name, *rest: None if name == module else known(name, *rest),
    )
    with pytest.raises(DriverNotInstalledError) as caught:
        Pool(url)
    assert f'pip install "unbroken[{extra}]"' in told(caught.value)
    assert isinstance(caught.value, ImportError)


def test_no_driver_at_all_names_the_best(monkeypatch):
    monkeypatch.setattr("unbroken.drivers.find_spec", lambda name, *rest: None)
    with pytest.raises(
        DriverNotInstalledError,
        match=r"no driver for mysql is installed; pip install \"unbroken\[mysqlclient\]\"",
    ):
        Pool("mysql://db/shop")


def refused(pool, caplog):
    """The error of an acquire that must fail at once, and no password in it, in the log or in the
    numbers.
    """
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(UnbrokenError) as caught:
        pool.acquire()
    elapsed = time.monotonic() - started
    for text in (
        caplog.text,
        str(pool.stats()),
        repr(pool),
        repr(caught.value),
        repr(caught.value.__cause__),
    ):
        assert SECRET not in text
    assert isinstance(caught.value, pool._driver.errors[0])
    return caught.value, told(caught.value), elapsed


def test_a_password_that_is_refused(face, caplog):
    pool = face.pool(
        face.url().replace(f":{face.server.password}@", f":{SECRET.replace('&', '%26')}@")
    )
    error, text, elapsed = refused(pool, caplog)
    assert isinstance(error, ConnectRejectedError)
    assert "app" in text
    assert elapsed < 3.0
    assert pool.stats().connect_failures == 1  # it is not tried again: some servers lock an account


def test_a_password_that_is_missing(face, caplog):
    error, _, elapsed = refused(
        face.pool(face.url().replace(f":{face.server.password}@", "@")), caplog
    )
    assert isinstance(error, ConnectRejectedError)
    assert elapsed < 3.0


def test_a_database_that_is_not_there(face, caplog):
    error, text, elapsed = refused(face.pool(face.url().replace("/shop", "/no_such_shop")), caplog)
    assert isinstance(error, ConnectRejectedError)
    assert "no_such_shop" in text
    assert elapsed < 3.0


def test_a_host_that_is_not_there(face, caplog):
    url = face.url().replace(f"@{face.server.host}:", "@no-such-host.invalid:")
    error, text, elapsed = refused(face.pool(url, outage_wait=1.0), caplog)
    assert "no-such-host.invalid" in text
    # Where the name service itself does not answer, the name is not known to be wrong: then it is
    # an outage.
    assert isinstance(error, ConnectRejectedError | OutageError)
    assert elapsed < 5.0


def test_a_socket_that_is_not_there(face, caplog, tmp_path):
    where = f"unix_socket={tmp_path}/nothing" if face.is_mysql else f"host={tmp_path}"
    url = f"{face.url().split('@')[0]}@/shop?{where}"
    error, text, _ = refused(face.pool(url, outage_wait=0.3), caplog)
    assert isinstance(error, OutageError)
    assert str(tmp_path) in text


def test_a_port_where_nobody_listens_is_an_outage_that_says_so(face, caplog):
    url = face.url().replace(f":{face.server.port}/", ":1/")
    error, text, elapsed = refused(face.pool(url, outage_wait=0.3), caplog)
    assert isinstance(error, OutageError)
    assert ":1/shop" in text
    assert "recovers by itself" in text
    assert elapsed < 3.0


def test_a_port_where_something_else_listens(face, caplog):
    other = "postgres" if face.is_mysql else "mariadb"
    del other
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as web:

        def serve():
            while True:
                try:
                    sock, _ = web.accept()
                except OSError:
                    return
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                sock.close()

        threading.Thread(target=serve, daemon=True).start()
        url = face.url().replace(f":{face.server.port}/", f":{web.getsockname()[1]}/")
        _, text, elapsed = refused(face.pool(url, outage_wait=0.5, acquire_timeout=1.0), caplog)
        web.shutdown(socket.SHUT_RDWR)
    assert elapsed < 5.0
    assert "127.0.0.1" in text


def test_a_connect_function_that_gives_no_connection(caplog):
    pool = Pool(connect=lambda: "not a connection", driver="pymysql")
    error, text, _ = refused(pool, caplog)
    assert isinstance(error, ConnectRejectedError)
    assert "connect= returned an object of type str" in text
    pool.close()


def test_a_connect_function_that_raises(caplog):
    def connect():
        raise KeyError("DB_PASSWORD")

    pool = Pool(connect=connect, driver="psycopg")
    error, text, elapsed = refused(pool, caplog)
    assert isinstance(error, ConnectRejectedError)
    assert "DB_PASSWORD" in text
    assert isinstance(error.__cause__, KeyError)
    assert elapsed < 3.0
    pool.close()


def test_a_sqlite_file_that_cannot_be_opened(tmp_path, caplog):
    error, text, _ = refused(Pool(f"sqlite:///{tmp_path}/no/such/folder/shop.db"), caplog)
    assert isinstance(error, ConnectRejectedError)
    assert "unable to open database file" in text


@pytest.mark.parametrize("secret", ["o", "a", "user", "YES"])
def test_an_error_of_a_refused_login_stays_legible_whatever_the_password(face, secret, caplog):
    server = face.server
    url = face.url().replace(f"{server.user}:{server.password}@", f"{server.user}:{secret}@")
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectRejectedError) as caught:
        face.pool(url).acquire()
    for text in (str(caught.value), caplog.text):
        assert "***" not in text
        assert f"user '{server.user}'" in text or f'user "{server.user}"' in text
    if face.is_mysql:
        assert "(using password: YES)" in str(caught.value)


def test_an_error_does_not_tell_that_the_password_is_the_user(face):
    user = face.server.user
    url = face.url().replace(f"{user}:{face.server.password}@", "{}:{}@")
    said = []
    for secret in (user, "an0ther!"):
        with pytest.raises(ConnectRejectedError) as caught:
            face.pool(url.format(user, secret)).acquire()
        said.append(str(caught.value))
    assert said[0] == said[1]
