"""A password that a Django backend of the application's own reads anew for each connection, in
``get_connection_params``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from django.db import connections

from unbroken.django.mysql.base import DatabaseWrapper as OverMySQL
from unbroken.django.postgresql.base import DatabaseWrapper as OverPostgreSQL

from .test_django import wait_until

BASES = {"mysql": OverMySQL, "postgresql": OverPostgreSQL}


@pytest.fixture(params=["mysql", "postgresql"])
def server(
    request: pytest.FixtureRequest,
    new_mariadb: Callable[..., Any],
    new_postgres: Callable[..., Any],
) -> Any:
    return new_mariadb() if request.param == "mysql" else new_postgres()


@pytest.fixture
def asked(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The alias "secret", whose backend notes each time that it is asked for a password."""
    kind = "mysql" if server.backend in ("mysql", "mariadb") else "postgresql"
    found: list[str] = []

    class DatabaseWrapper(BASES[kind]):  # type: ignore[misc,valid-type] # chosen here
        def get_connection_params(self) -> dict[str, Any]:
            params: dict[str, Any] = super().get_connection_params()
            found.append(server.password)
            params["password"] = server.password
            return params

    package, module = ModuleType("with_secret"), ModuleType("with_secret.base")
    package.__path__ = []
    module.DatabaseWrapper = DatabaseWrapper  # type: ignore[attr-defined] # that is the module
    monkeypatch.setitem(sys.modules, "with_secret", package)
    monkeypatch.setitem(sys.modules, "with_secret.base", module)
    given = {
        "ENGINE": "with_secret", "NAME": server.database, "USER": server.user, "PASSWORD": "",
        "HOST": server.host, "PORT": server.port, "OPTIONS": {"unbroken": {}},
    }  # fmt: skip
    connections.settings["secret"] = connections.configure_settings({"default": {}, "x": given})[
        "x"
    ]
    yield found
    connections["secret"].close()
    connections["secret"].close_pool()
    del connections["secret"]
    connections.settings.pop("secret", None)


def one() -> None:
    with connections["secret"].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    connections["secret"].close()


def test_the_password_is_read_at_each_connect_and_may_change(server: Any, asked: list[str]) -> None:
    first = server.password
    one()
    one()
    assert set(asked) == {first}
    server.admin(
        f"ALTER USER {server.user} PASSWORD 'another-word'"
        if server.backend == "postgresql"
        else f"ALTER USER '{server.user}' IDENTIFIED BY 'another-word'"
    )
    server.password = "another-word"
    one()  # the session that is open stays
    server.kill_sessions()
    wait_until(lambda: not server.sessions())
    one()
    assert asked[-1] == "another-word"
    assert connections["secret"].unbroken_pool.stats().connect_failures == 0
