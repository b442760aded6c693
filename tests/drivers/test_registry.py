"""The driver that a URL or a name means, and the remedy when there is none."""

from __future__ import annotations

import importlib.util
import sysconfig
from typing import Any

import pytest

import unbroken.drivers
from unbroken.drivers import known, open_driver
from unbroken.drivers.url import SCHEMES, parse
from unbroken.errors import ConfigurationError, DriverNotInstalledError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``installed("pymysql")``: nothing but that can be imported."""
    real = importlib.util.find_spec

    def only(*names: str) -> None:
        monkeypatch.setattr(
            unbroken.drivers, "find_spec", lambda name: real(name) if name in names else None
        )

    return only


def test_every_driver_file_describes_itself() -> None:
    assert {each.name for each in known()} >= {
        "pymysql",
        "mysqlclient",
        "psycopg",
        "psycopg2",
        "pg8000",
        "asyncpg",
        "aiomysql",
        "sqlite",
    }
    for each in known():
        assert each.sync or each.asynchronous
        assert set(each.schemes) <= set(SCHEMES)
        # for which not every driver is released
        assert each.installed or sysconfig.get_config_var("Py_GIL_DISABLED")
    schemes = [scheme for each in known() for scheme in each.schemes]
    assert len(schemes) == len(set(schemes))


@pytest.mark.parametrize("each", known(), ids=lambda each: each.name)
def test_every_scheme_and_every_name_opens_its_driver(each: Any) -> None:
    is_async = not each.sync
    for scheme in each.schemes:
        url = f"{scheme}://" if scheme.startswith("sqlite") else f"{scheme}://u:p@h/d"
        assert open_driver(url, is_async=is_async).name == each.name
    assert open_driver(connect=lambda: None, driver=each.name, is_async=is_async).name == each.name


@pytest.mark.parametrize(
    ("url", "is_async", "present", "expected"),
    [
        ("mysql://h/d", False, ("MySQLdb", "pymysql"), "mysqlclient"),
        ("mysql://h/d", False, ("pymysql",), "pymysql"),
        ("mariadb://h/d", True, ("aiomysql", "pymysql"), "aiomysql"),
        ("postgresql://h/d", True, ("asyncpg", "psycopg"), "asyncpg"),
        ("postgres://h/d", True, ("psycopg",), "psycopg"),
        ("postgresql://h/d", False, ("psycopg", "asyncpg"), "psycopg"),
    ],
)
def test_a_bare_scheme_takes_the_best_that_is_installed(
    installed: Any, url: str, is_async: bool, present: tuple[str, ...], expected: str
) -> None:
    installed(*present)
    assert open_driver(url, is_async=is_async).name == expected


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            {"url": "mysql://h/d"},
            DriverNotInstalledError,
            'pip install "unbroken[mysqlclient]" (or one of: pymysql, m',
        ),
        (
            {"url": "mysql+pymysql://h/d"},
            DriverNotInstalledError,
            'pip install "unbroken[pymysql]"',
        ),
        (
            {"url": "postgresql://h/d", "is_async": True},
            DriverNotInstalledError,
            'pip install "unbroken[asyncpg]"',
        ),
    ],
)
def test_a_driver_that_is_missing_is_told_with_the_command(
    installed: Any, arguments: Any, error: Any, says: str
) -> None:
    installed()
    with pytest.raises(error) as caught:
        open_driver(**arguments)
    assert says in str(caught.value)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"url": "mysql+pymysql://h/d", "is_async": True},
            "but AsyncPool needs an async one: 'mysql+asyncmy://', 'mysql+aiomysql://'",
        ),
        (
            {"url": "postgresql+asyncpg://h/d"},
            "but Pool needs a blocking one (or use AsyncPool): 'postgresql+psycopg://'",
        ),
        ({"url": "mysql+aiomysql://h/d"}, "'mysql+mysqldb://'"),
        ({}, "give a database URL"),
        ({"connect": lambda: None}, "connect= needs driver="),
        ({"connect": 3, "driver": "pymysql"}, "must be a callable"),
        ({"connect": lambda: None, "driver": "pymsql"}, "did you mean 'pymysql'?"),
        ({"url": "mysql://h/d", "driver": "psycopg"}, "does not support mysql"),
        ({"url": "mysql+pymysql://h/d?read_timout=3"}, "did you mean 'read_timeout'?"),
        (
            {"url": "mysql+pymysql://h/d?read_timeout=soon"},
            "read_timeout='soon' in the URL is not a number of seconds above 0",
        ),
        ({"url": "mysql+pymysql://h/d?ssl_disabled=maybe"}, "not a boolean"),
        ({"url": "mysql+pymysql://h/d?client_flag=x"}, "not a whole number"),
        ({"url": "postgresql+psycopg://h/d?sslmod=require"}, "did you mean 'sslmode'?"),
        (
            {"url": "postgresql+asyncpg://h/d?statement_cache_size=x", "is_async": True},
            "not a whole number",
        ),
        ({"url": "sqlite:///f?isolation_level=odd"}, "one of none"),
        ({"url": "sqlite://?mode=ro"}, "need a file"),
    ],
)
def test_what_cannot_work_is_told_at_once(arguments: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_driver(**arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scheme_without_a_file_is_told_with_those_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = tuple(each for each in known() if each.name != "psycopg2")
    monkeypatch.setattr(unbroken.drivers, "known", lambda: others)
    with pytest.raises(
        DriverNotInstalledError, match=r"does not support .* yet; use 'postgresql\+psycopg://'"
    ):
        open_driver("postgresql+psycopg2://h/d")


def test_a_target_is_as_good_as_its_url() -> None:
    assert open_driver(parse("mysql+pymysql://h/d")).target == parse("mysql+pymysql://h/d")


@pytest.mark.parametrize(
    ("url", "is_async", "expected"),
    [
        (
            "mysql+pymysql://h/d?ssl_ca=/ca&ssl_check_hostname=false",
            False,
            {"ssl": {"ca": "/ca", "check_hostname": False}},
        ),
        (
            "mysql+pymysql://h/d?ssl_ca=/ca&ssl_verify_identity=true",
            False,
            {"ssl_ca": "/ca", "ssl_verify_identity": True},
        ),
        (
            "mysql+pymysql://h/d?autocommit=none&connect_timeout=3",
            False,
            {"autocommit": None, "connect_timeout": 3.0},
        ),
        (
            "mysql+mysqldb://h/d?ssl_ca=/ca&read_timeout=1.2",
            False,
            {"ssl": {"ca": "/ca"}, "read_timeout": 2},
        ),
        (
            "postgresql+psycopg://h/d?sslmode=require&application_name=x",
            False,
            {"sslmode": "require", "application_name": "x"},
        ),
        (
            "postgresql+asyncpg://h/d?ssl=require&application_name=x",
            True,
            {"dsn": "postgresql://?sslmode=require", "server_settings": {"application_name": "x"}},
        ),
        (
            "postgresql+asyncpg://h/d?sslmode=verify-ca&sslrootcert=/c%20a",
            True,
            {"dsn": "postgresql://?sslmode=verify-ca&sslrootcert=%2Fc%20a"},
        ),
        (
            "postgresql+asyncpg://h/d?prepared_statement_cache_size=0&command_timeout=3",
            True,
            {"statement_cache_size": 0, "command_timeout": 3.0},
        ),
    ],
)
def test_options_reach_the_driver_as_it_wants_them(
    url: str, is_async: bool, expected: dict[str, Any]
) -> None:
    arguments = open_driver(url, is_async=is_async)._arguments  # type: ignore[call-overload]
    assert {name: arguments.get(name) for name in expected} == expected
