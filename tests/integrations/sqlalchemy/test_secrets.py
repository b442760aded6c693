"""A password that SQLAlchemy's own ways read anew for each connection: ``do_connect`` and
``creator``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

import unbroken
from unbroken_drill.servers import PostgreSQL


class Secret:
    """What the application keeps: read at each connect."""

    def __init__(self, server: Any) -> None:
        self.server, self.text, self.asked = server, server.password, 0

    def __call__(self) -> str:
        self.asked += 1
        return self.text

    def rotate(self, new: str) -> None:
        """On the server and in the application."""
        user = self.server.user
        if isinstance(self.server, PostgreSQL):
            self.server.admin(f"ALTER USER {user} PASSWORD '{new}'")
        else:
            self.server.admin(f"ALTER USER '{user}' IDENTIFIED BY '{new}'")
        self.server.password = self.text = new


def by_event(face: Any, secret: Secret) -> sa.Engine:
    url = face.url().replace(f":{face.server.password}@", "@")
    engine = face.engine(url, pool_size=2)

    @sa.event.listens_for(engine, "do_connect")
    def give(_dialect: Any, _record: Any, _args: Any, params: dict[str, Any]) -> None:
        params["password"] = secret()

    return engine


def by_creator(face: Any, secret: Secret) -> sa.Engine:
    server = face.server
    module = {"pymysql": "pymysql", "mysqldb": "MySQLdb", "psycopg": "psycopg"}[face.name]
    connect = importlib.import_module(module).connect

    def create() -> Any:
        where = {"host": server.host, "port": server.port, "user": server.user}
        name = "dbname" if face.name == "psycopg" else "database"
        return connect(**where, password=secret(), **{name: server.database})

    return face.engine(pool_size=2, creator=create)


@pytest.mark.parametrize("way", [by_event, by_creator])
def test_the_password_is_read_at_each_connect_and_may_change(
    own_face: Any, way: Callable[[Any, Secret], sa.Engine], stats: Callable[[Any], Any]
) -> None:
    secret = Secret(own_face.server)
    engine = way(own_face, secret)
    own_face.warm(engine, 2)
    assert secret.asked >= 2
    secret.rotate("another-word")
    before, asked = own_face.warm(engine, 2), secret.asked  # sessions that are open stay
    own_face.server.kill_sessions()
    after = own_face.warm(engine, 2)
    assert not {*before} & {*after}
    assert secret.asked >= asked + 2
    assert stats(engine).connect_failures == 0


def test_a_password_that_sqlalchemy_would_change_is_refused_in_exact_words() -> None:
    with pytest.raises(unbroken.ConfigurationError, match="is not UTF-8 after its %-escapes"):
        sa.create_engine("mysql+pymysql://u:p%E9@h/d", plugins=["unbroken"])


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "postgresql+psycopg"])
@pytest.mark.parametrize(
    "password", ["hush@quiet", "hush@quiet/mute", "hush/quiet@mute", "hush@quiet:7/mute"]
)
def test_a_password_that_is_not_encoded_is_refused_without_a_part_of_it(
    scheme: str, password: str
) -> None:
    """SQLAlchemy ends the password at its first "@": the rest is a part of the host, the database
    or both.
    """
    with pytest.raises(unbroken.ConfigurationError, match=r"contains an '@'.*percent-encode") as it:
        sa.create_engine(f"{scheme}://app:{password}@db/shop", plugins=["unbroken"])
    assert not any(part in str(it.value) for part in ("hush", "quiet", "mute", ":7"))
    encoded = quote(password, safe="")
    engine = sa.create_engine(f"{scheme}://app:{encoded}@db/shop", plugins=["unbroken"])
    assert (engine.url.password, engine.url.host) == (password, "db")
