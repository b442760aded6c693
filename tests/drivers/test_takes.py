"""What a driver takes is its own: none of it is claimed as a misspelled setting."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields

import pytest

from unbroken.drivers import known
from unbroken.drivers._takes import _ALL, _OPTIONS, _SAYS, takes
from unbroken.hints import stray
from unbroken.settings import Settings

NAMES = [each.name for each in fields(Settings)]


def test_each_driver_with_a_server_is_known() -> None:
    assert set(_OPTIONS) == {each.name for each in known()} - {"sqlite"}
    assert takes("sqlite") is takes("oracledb") is None


@pytest.mark.parametrize("driver", _OPTIONS)
def test_nothing_that_a_driver_takes_is_claimed(driver: str) -> None:
    of_driver = takes(driver)
    assert of_driver is not None
    claimed = {name: stray(name, NAMES, of_driver, _ALL) for name in of_driver}
    assert {name for name, hint in claimed.items() if hint is not None} == set()


@pytest.mark.parametrize("driver", _SAYS)
def test_the_lists_hold_what_the_installed_version_takes(driver: str) -> None:
    module, path = _SAYS[driver]
    found = pytest.importorskip(module)
    for name in path.split("."):
        found = getattr(found, name)
    parameters = inspect.signature(found).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert named - {"self"} - set(_OPTIONS[driver].split()) == set()


def test_the_lists_hold_what_libpq_and_mysql_connector_take() -> None:
    pq = pytest.importorskip("psycopg").pq
    ours = set(_OPTIONS["psycopg"].split())
    assert {each.keyword.decode() for each in pq.Conninfo.get_defaults()} - ours == set()
    connector = importlib.import_module("mysql.connector.constants")
    ours = set(_OPTIONS["mysqlconnector"].split())
    assert {*connector.DEFAULT_CONFIGURATION, *connector.CNX_POOL_ARGS} - ours == set()


@pytest.mark.parametrize("each", [each for each in known() if each.name in _OPTIONS])
def test_what_a_url_may_hold_is_among_them(each: object) -> None:
    """An option that our own URL understands is no misspelling of a setting in another body."""
    file = importlib.import_module(each.file)  # type: ignore[attr-defined]
    for table in ("_OPTIONS", "_KINDS"):
        for name in getattr(file, table, ()):
            assert stray(name, NAMES, takes(each.name) or (), _ALL) in (None, ""), name  # type: ignore[attr-defined]
