"""Functions become units of work by a setting or the environment, and are run again then."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

import unbroken
from unbroken import ConfigurationError

# -- the settings ----------------------------------------------------------------------------------


def run(program: str, **environment: str) -> str:
    given = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


@pytest.mark.parametrize(
    ("made", "environment"),
    [
        ("unbroken.Pool('sqlite:///:memory:', units=['{0}:Store.put', '{0}:Base'])", ""),
        ("unbroken.Pool('sqlite:///:memory:?units={0}:Store.put,{0}:Base')", ""),
        ("unbroken.Pool('sqlite:///:memory:')", "{0}:Store.put, {0}:Base"),
        ("unbroken.Pool('sqlite:///:memory:', units=['{0}:Base'])", "{0}:Store.put"),
        (
            "unbroken.AsyncPool('mysql+asyncmy://u@127.0.0.1/d',"
            " units=('{0}:Store.put', '{0}:Base'))",
            "",
        ),
        (
            "create_engine('mysql+pymysql://u@127.0.0.1/d?plugin=unbroken&units={0}:Store.put,{0}:Base')",
            "",
        ),
        (
            "create_engine('mysql+pymysql://u@127.0.0.1/d', plugins=['unbroken'],"
            " unbroken=dict(units=['{0}:Store.put', '{0}:Base']))",
            "",
        ),
        (
            "create_engine('mysql+pymysql://u@127.0.0.1/d', plugins=['unbroken'])",
            "{0}:Store.put,{0}:Base",
        ),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_setting_or_the_environment_names_them(write, made, environment, when):
    name = write()
    program = f"""
        import unbroken
        from sqlalchemy import create_engine
        {"import " + name if when == "before" else ""}
        pool = {made.format(name)}
        import {name}
        store = {name}.Store()
        print(*(unit is not None for unit in (store.put("k")[3], store.inherited(), store.other())))
    """
    assert run(program, UNBROKEN_UNITS=environment.format(name)) == "True True False\n"


@pytest.mark.parametrize("wrong", ["collections:OrderedDict", [7], 7, None, {}])
def test_names_in_a_setting_are_a_list(wrong):
    with pytest.raises(ConfigurationError, match=r"units=.* must be a list of names"):
        unbroken.Pool("sqlite:///:memory:", units=wrong)


@pytest.mark.parametrize("environment", ["", "collectionz:OrderedDict"])
def test_a_wrong_name_in_a_setting_is_told_when_the_pool_is_made(monkeypatch, environment):
    monkeypatch.setenv("UNBROKEN_UNITS", environment)
    with pytest.raises(ConfigurationError, match="did you mean 'collections'"):
        unbroken.Pool(
            "sqlite:///:memory:", **({} if environment else {"units": ["collectionz:OrderedDict"]})
        )


# -- what it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["Pool", "SQLAlchemy"])
def test_a_lost_connection_costs_the_caller_of_an_adopted_method_nothing(
    write, adopt, unbroken_postgres, way
):
    opened = {"Pool": "pool.connection()", "SQLAlchemy": "engine.begin()"}[way]
    execute = {"Pool": "conn.execute", "SQLAlchemy": "conn.exec_driver_sql"}[way]
    module = importlib.import_module(
        name := write(f"""
            import unbroken, sqlalchemy
            url = {unbroken_postgres.url("psycopg")!r}
            pool = unbroken.Pool(url)
            engine = sqlalchemy.create_engine(url, plugins=["unbroken"])
            calls = 0

            class Store:
                def put(self, number, between):
                    global calls
                    calls += 1
                    with {opened} as conn:
                        {execute}("INSERT INTO adopted VALUES (1)")
                        between(calls)
                        {execute}("INSERT INTO adopted VALUES (2)")
                    return number
        """)
    )
    unbroken_postgres.admin("CREATE TABLE adopted (n int)")
    unbroken_postgres.admin(f"GRANT ALL ON adopted TO {unbroken_postgres.user}")
    adopt(f"{name}:Store")
    try:
        assert (
            module.Store().put(7, lambda calls: calls == 1 and unbroken_postgres.kill_sessions())
            == 7
        )
        assert module.calls == 2
        assert [row[0] for row in unbroken_postgres.admin("SELECT n FROM adopted ORDER BY n")] == [
            "1",
            "2",
        ]
    finally:
        module.pool.close()
        module.engine.dispose()
        unbroken_postgres.admin("DROP TABLE adopted")
