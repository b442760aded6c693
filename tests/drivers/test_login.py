"""Each attempt to connect goes where its login says, as the user that the login names."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from unbroken.abc import FaultKind, Login
from unbroken.errors import ConfigurationError

from .conftest import MYSQL

SECRET = "hunter2-planted"


@contextmanager
def nobody() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def url_of(face: Any, *, user: str = "nobody", password: str = SECRET, port: int = 1) -> str:
    scheme, server = face.url().partition("://")[0], face.server
    return f"{scheme}://{user}:{quote(password)}@127.0.0.1:{port}/{server.database}"


def login_of(face: Any, **changes: Any) -> Login:
    server = face.server
    given = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
    }
    return Login(**{**given, **changes})


def connect(face: Any, driver: Any, login: Login | None) -> Any:
    conn = face.run(driver.connect(5.0, login))
    face.opened.append((driver, conn))
    return conn


def test_a_login_leads_to_another_host_as_another_user(face: Any) -> None:
    with nobody() as port:
        driver = face.make(url_of(face, port=port))
        conn = connect(face, driver, login_of(face))
        assert driver.is_quiet(conn)
        assert face.fault(lambda: connect(face, driver, None), driver).kind is FaultKind.REFUSED


def test_a_field_that_is_none_is_as_the_url_says(face: Any) -> None:
    server = face.server
    driver = face.make(url_of(face, user=server.user, password="wrong", port=server.port))
    connect(face, driver, Login(password=server.password))
    driver = face.make(url_of(face, user=server.user, password=server.password))
    connect(face, driver, Login(host=server.host, port=server.port))


def test_an_error_quotes_the_password_of_no_login(face: Any) -> None:
    driver = face.make(face.url())
    login = login_of(face, user="nobody-here", password=SECRET)
    assert SECRET not in repr(login)
    fault = face.fault(lambda: connect(face, driver, login), driver)
    assert fault.kind is FaultKind.REJECTED
    assert SECRET not in driver.classify(ValueError(f"it is {SECRET}, said the library")).text


def test_a_caller_s_own_connect_is_given_no_login(face: Any) -> None:
    driver = face.make(connect=face.by_library, driver=face.spelling)
    connect(face, driver, Login(host="192.0.2.1", port=1, user="x", password=SECRET))


def test_a_session_is_reset_as_the_user_that_opened_it(mysql_face: Any) -> None:
    face = mysql_face
    driver = face.make(url_of(face, port=1))
    conn = connect(face, driver, login_of(face))
    opening = face.call("remember", conn, driver=driver)
    face.call("reset_session", conn, opening, (), driver=driver)
    assert face.execute(conn, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "name", ["psycopg", "psycopg2", "asyncpg", "pg8000", "pymysql", "mysqldb", "aiomysql"]
)
def test_a_certificate_is_held_against_the_host_that_is_dialled(
    faces: Any, new_postgres: Any, new_mariadb: Any, name: str
) -> None:
    is_mysql = name in MYSQL
    server = (new_mariadb if is_mysql else new_postgres)(tls=True)
    face = faces(name, server)
    ca = quote(str(server.ca_file))
    tls = {
        "psycopg": f"sslmode=verify-full&sslrootcert={ca}",
        "mysqldb": f"ssl_mode=VERIFY_IDENTITY&ssl_ca={ca}",
        "pymysql": f"ssl_ca={ca}&ssl_verify_cert=true&ssl_verify_identity=true",
        "aiomysql": f"ssl_ca={ca}&ssl_check_hostname=true",
    }
    place = (
        f"{server.user}:{quote(server.password)}@another.invalid:{server.port}/{server.database}"
    )
    driver = face.make(
        f"{face.url().partition('://')[0]}://{place}?{tls.get(name, tls['psycopg'])}"
    )
    connect(face, driver, login_of(face))


@contextmanager
def user(face: Any, password: bytes) -> Iterator[str]:
    """A user of the face's server, with *password*."""
    server, name = face.server, "polyglot"
    if face.is_mysql:
        stored = hashlib.sha1(hashlib.sha1(password).digest()).hexdigest().upper()
        server.admin(f"CREATE USER {name}@'%' IDENTIFIED BY PASSWORD '*{stored}'")
        server.admin(f"GRANT ALL ON {server.database}.* TO {name}@'%'")
    else:
        server.admin(f"CREATE ROLE {name} LOGIN PASSWORD '{password.decode()}'")
    try:
        yield name
    finally:
        server.admin(f"DROP {'USER' if face.is_mysql else 'ROLE'} {name}")


@pytest.mark.parametrize("password", ["pässwörd", "пароль"])
def test_a_password_of_any_characters_is_sent_as_utf_8(face: Any, password: str) -> None:
    with user(face, password.encode()) as name:
        driver = face.make(url_of(face, user=name, password=password, port=face.server.port))
        conn = connect(face, driver, None)
        assert driver.is_quiet(conn)
        other = face.make(url_of(face, user=name, password="x", port=face.server.port))
        conn = connect(face, other, Login(user=name, password=password))
        assert other.is_quiet(conn)
        face.close()


@pytest.mark.parametrize("password", [b"p\xe4ss", b"\xff\xfe"])
def test_a_password_of_other_bytes_works_or_is_refused_in_exact_words(
    face: Any, password: bytes
) -> None:
    scheme, server = face.url().partition("://")[0], face.server
    where = f"127.0.0.1:{server.port}/{server.database}"
    url = f"{scheme}://polyglot:{quote(password)}@{where}"
    if face.spelling in ("pymysql", "aiomysql", "asyncmy"):
        with user(face, password):
            driver = face.make(url)
            assert driver.is_quiet(connect(face, driver, None))
            face.close()
        return
    with pytest.raises(ConfigurationError) as caught:
        face.make(url)
    assert "the password in the URL is not UTF-8" in str(caught.value)
    assert "sends passwords only as UTF-8" in str(caught.value)
    assert quote(password) not in str(caught.value)
