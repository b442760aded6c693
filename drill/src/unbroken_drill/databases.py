"""Servers that tests share, and a fresh database on one of them for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import count
from typing import Any

from unbroken_drill.servers import MariaDB, MongoDB, MySQL, PostgreSQL, Server

KINDS: dict[str, type[Server]] = {
    "mariadb": MariaDB,
    "mysql": MySQL,
    "postgres": PostgreSQL,
    "mongodb": MongoDB,
}


class SharedServers:
    """One server of each kind, started when it is requested. A context manager that ends all of
    them.
    """

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}
        self._numbers = count(1)

    def __enter__(self) -> SharedServers:
        return self

    def __exit__(self, *_exc: object) -> None:
        for server in self._servers.values():
            server.close()

    def get(self, kind: str) -> Any:
        """Return the running server of *kind* (of :data:`KINDS`).

        Raises ServerUnavailable, whose one line names the package to install.
        """
        if kind not in self._servers:
            self._servers[kind] = KINDS[kind]().start()
        return self._servers[kind].start()

    @contextlib.contextmanager
    def fresh(self, kind: str) -> Iterator[Any]:
        """Yield the same server with an empty ``database`` of its own within the block.

        Afterwards all changes to the server are undone. It is thawed and started again, and gets
        its settings back (by a restart if they were changed). The database is dropped with all its
        sessions.
        """
        server = self.get(kind)
        usual, options = server.database, dict(server.options)
        name = f"test_{next(self._numbers)}"
        _create(server, name)
        server.database = name
        try:
            yield server
        finally:
            try:
                _heal(server, options)
                _drop(server, name)
            finally:
                server.database = usual


def _create(server: Server, name: str) -> None:
    if isinstance(server, PostgreSQL):
        server.admin(f'CREATE DATABASE {name} OWNER "{server.user}"')
    elif not isinstance(server, MongoDB):  # where a database begins with its first document
        server.admin(f"CREATE DATABASE {name}; GRANT ALL ON {name}.* TO '{server.user}'@'%'")


def _heal(server: Server, options: dict[str, Any]) -> None:
    if server.is_running:
        server.thaw()
        if server.options != options:
            server.stop()
    server.options = options
    server.start()


def _drop(server: Server, name: str) -> None:
    if isinstance(server, MongoDB):
        server.command({"dropDatabase": 1}, name)
        return
    for session in server.sessions():
        if session.database == name:  # an open transaction would hold it
            server._kill_session(session.id)
    with contextlib.ExitStack() as stack:
        if isinstance(server, PostgreSQL):
            server.database = "postgres"
            stack.callback(setattr, server, "database", name)
        server.admin(
            f"DROP DATABASE {name}{' WITH (FORCE)' if isinstance(server, PostgreSQL) else ''}"
        )
