"""An alias of several hosts, whose passwords change and whose servers stop to take writes."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction

from unbroken.integrations.django.checks import check_settings
from unbroken.pool import servers
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

HERE = Path(__file__).parent
SOON = 2.0
_numbers = itertools.count(1)


class Site:
    """Two servers that let the same user in, and aliases that lead there."""

    def __init__(self, kind: str, first: Server, second: Server, stack: ExitStack) -> None:
        self.kind, self.first, self.second, self.stack = kind, first, second, stack
        user = first.user if kind == "postgresql" else f"'{first.user}'@'%'"
        how = "PASSWORD" if kind == "postgresql" else "IDENTIFIED BY"
        second.admin(f"ALTER USER {user} {how} '{first.password}'")
        self.port = "SELECT inet_server_port()" if kind == "postgresql" else "SELECT @@port"

    def alias(
        self, *, engine: str = "", options: Any = None, pool: Any = None, **given: Any
    ) -> Any:
        """The wrapper of a new alias."""
        name, server = f"cluster{next(_numbers)}", self.first
        found = {
            "ENGINE": engine or f"unbroken.django.{self.kind}", "NAME": server.database,
            "USER": server.user, "PASSWORD": server.password, **given,
            "OPTIONS": {**(options or {}), "unbroken": pool or {}},
        }  # fmt: skip
        connections.settings[name] = connections.configure_settings({"default": {}, name: found})[
            name
        ]
        self.stack.callback(self.forget, name)
        return connections[name]

    def forget(self, name: str) -> None:
        if name not in connections.settings:
            return
        connections[name].close()
        connections[name].close_pool()
        del connections[name]
        connections.settings.pop(name)

    def change(self, password: str) -> None:
        """The first server takes *password* from now on, and no other."""
        server = self.first
        if isinstance(server, PostgreSQL):
            server.admin(f"ALTER USER {server.user} PASSWORD '{password}'")
            return
        for (host,) in server.admin(f"SELECT host FROM mysql.user WHERE user = '{server.user}'"):
            server.admin(f"ALTER USER '{server.user}'@'{host}' IDENTIFIED BY '{password}'")

    @property
    def spellings(self) -> list[dict[str, Any]]:
        a, b = self.first, self.second
        return [
            {"HOST": f"{a.host},{b.host}", "PORT": f"{a.port},{b.port}"},
            {"HOST": f"{a.host}:{a.port}, {b.host}:{b.port}"},
        ]

    @property
    def here(self) -> dict[str, Any]:
        return {"HOST": self.first.host, "PORT": self.first.port}


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, tuple[Server, Server]]]:
    with ExitStack() as stack:
        yield {
            kind: (stack.enter_context(make()), stack.enter_context(make()))
            for kind, make in (("mysql", MariaDB), ("postgresql", PostgreSQL))
        }


@pytest.fixture(params=["mysql", "postgresql"])
def site(request: pytest.FixtureRequest, pairs: Any) -> Iterator[Site]:
    servers._records.clear()
    with ExitStack() as stack:
        found = Site(request.param, *pairs[request.param], stack)
        stack.callback(found.first.thaw)
        yield found


def ask(wrapper: Any, sql: str) -> Any:
    """The first value of *sql*, as a request."""
    try:
        with wrapper.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]
    finally:
        wrapper.close()


def test_a_frozen_first_host_hides_nothing_in_each_spelling(site: Site) -> None:
    site.first.freeze()
    for given in site.spellings:
        servers._records.clear()
        wrapper = site.alias(**given, pool={"target": "primary"})
        began = time.monotonic()
        assert int(ask(wrapper, site.port)) == site.second.port
        assert time.monotonic() - began < SOON
        assert wrapper.unbroken_pool.stats().hosts == {f"127.0.0.1:{site.second.port}": 1}


def test_one_host_may_have_its_port_behind_it(site: Site) -> None:
    wrapper = site.alias(HOST=f"{site.first.host}:{site.first.port}")
    assert int(ask(wrapper, site.port)) == site.first.port


def test_libpqs_word_for_the_role_is_understood(site: Site) -> None:
    wrapper = site.alias(**site.here, options={"target_session_attrs": "read-write"})
    assert int(ask(wrapper, site.port)) == site.first.port
    assert wrapper.unbroken_pool.settings.target == "read-write"


def test_a_list_that_cannot_be_read_is_improper_at_once(site: Site) -> None:
    for given in ({"HOST": "a,b", "PORT": "1,2,3"}, {"HOST": "a,a"}, {"HOST": "a,"}):
        wrapper = site.alias(**given)
        with pytest.raises(ImproperlyConfigured, match=wrapper.alias) as caught:
            ask(wrapper, "SELECT 1")
        assert [each.id for each in check_settings()] == ["unbroken.E001"]
        site.forget(wrapper.alias)
        assert "\n" not in str(caught.value)
        assert site.first.password not in str(caught.value)


def test_databases_are_created_at_the_first_host_that_answers(site: Site) -> None:
    wrapper = site.alias(**site.spellings[0], PASSWORD=lambda: site.first.password)
    with wrapper._nodb_cursor() as cursor:
        cursor.execute(site.port)
        assert int(cursor.fetchone()[0]) == site.first.port


@pytest.mark.parametrize("place", ["PASSWORD", "OPTIONS", "get_connection_params"])
def test_a_password_that_changes_fails_nobody(site: Site, place: str) -> None:
    given, own = [site.first.password], {"engine": ""}
    read = lambda: given[-1]  # noqa: E731 - as settings have it
    settings: dict[str, Any] = {"PASSWORD": read}
    if place == "OPTIONS":
        settings = {"PASSWORD": "", "options": {"password": read}}
    if place == "get_connection_params":
        settings, own["engine"] = {}, _backend(site.kind, read)
    wrapper = site.alias(**site.here, **settings, **own)
    timer = threading.Timer(1.0, lambda: given.append("another-secret"))
    try:
        assert ask(wrapper, "SELECT 1") == 1
        site.change("another-secret")
        site.first.kill_sessions()
        timer.start()
        assert ask(wrapper, "SELECT 1") == 1
        timer.join()
        site.first.kill_sessions()
        assert ask(wrapper, "SELECT 1") == 1
    finally:
        site.change(site.first.password)


def _backend(kind: str, read: Callable[[], str]) -> str:
    """The name of a backend of the application's own, which reads its password."""
    import importlib
    import types

    name = f"backend_of_tests_{kind}"
    base: Any = importlib.import_module(f"unbroken.django.{kind}.base").DatabaseWrapper

    class DatabaseWrapper(base):  # type: ignore[misc]
        def get_connection_params(self) -> dict[str, Any]:
            params: dict[str, Any] = super().get_connection_params()
            params["password"] = read()
            return params

    sys.modules[name] = types.ModuleType(name)
    sys.modules[f"{name}.base"] = module = types.ModuleType(f"{name}.base")
    module.DatabaseWrapper = DatabaseWrapper  # type: ignore[attr-defined]
    return name


def test_a_password_that_stands_in_the_settings_is_refused_at_once(site: Site) -> None:
    wrapper = site.alias(**site.here, PASSWORD="wrong-one")
    began = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        ask(wrapper, "SELECT 1")
    assert time.monotonic() - began < 1.5
    assert "wrong-one" not in str(caught.value)


def test_first_writes_wait_for_a_server_that_takes_none(site: Site) -> None:
    off: dict[str, Any] = {"default_transaction_read_only": "on"}
    on: dict[str, Any] = {"default_transaction_read_only": "off"}
    if site.kind == "mysql":
        off, on = {"read_only": 1}, {"read_only": 0}
    wrapper = site.alias(**site.here)
    with wrapper.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS kept")
        cursor.execute("CREATE TABLE kept (n INT PRIMARY KEY)")
        cursor.execute("INSERT INTO kept VALUES (0)")
    wrapper.close()
    site.first.set(**off)
    timer = threading.Timer(1.5, lambda: site.first.set(**on))
    timer.start()
    try:
        with transaction.atomic(using=wrapper.alias), wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO kept VALUES (1)")
            cursor.execute("INSERT INTO kept VALUES (2)")
        wrapper.close()
    finally:
        timer.join()
    assert int(ask(wrapper, "SELECT count(*) FROM kept")) == 3
    assert wrapper.unbroken_pool.stats().outages == 1
    with wrapper.cursor() as cursor:
        cursor.execute("DROP TABLE kept")


OTHERS = [
    ("mysql", "import pymysql; pymysql.install_as_MySQLdb()"),
    ("postgresql", "sys.modules['psycopg'] = None"),
]


@pytest.mark.skipif("pymysql" in str(sys.modules.get("MySQLdb")), reason="it is that process")
@pytest.mark.parametrize(("kind", "prepare"), OTHERS, ids=["pymysql", "psycopg2"])
def test_all_of_it_holds_with_the_other_driver(kind: str, prepare: str) -> None:
    program = f"import sys; {prepare}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    chosen = f"{kind} and not other_driver"
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", "-rA"),
            *("-k", chosen, str(HERE / "test_django_clusters.py")),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=HERE.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
