"""PgBouncer in front of a PostgreSQL server: session or transaction pooling, with its own ways to
fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import ClassVar, Literal

from unbroken_drill.messages import SERVER_CANNOT, SERVER_LATE, SERVER_NOT_HERE
from unbroken_drill.servers import certificates, folders
from unbroken_drill.servers.base import Server, Session, Value
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.postgresql import PostgreSQL
from unbroken_drill.servers.wire import postgres_query

_ADMIN = "admin"
_CONSOLE = "pgbouncer"  # the name of the administrator's database
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin")

_SETTINGS: Mapping[str, Value] = {
    "max_client_conn": 200,
    "default_pool_size": 20,
    "ignore_startup_parameters": "extra_float_digits",
    "server_login_retry": 1,  # seconds between attempts while PostgreSQL is down; 15 by default
}


class PgBouncer(Server):
    """PgBouncer on a port of its own, in front of *server*. It takes over the server's user,
    password and database.

    *mode* is the time for which a client keeps a server connection: ``session`` or ``transaction``.
    The program is the one that ``UNBROKEN_PGBOUNCER`` names, otherwise the ``pgbouncer`` in PATH or
    the usual places. :meth:`admin` uses its console (``PAUSE``, ``RESUME``, ``RECONNECT``, ``SHOW
    POOLS`` …); :meth:`sessions` are its clients.
    """

    backend: ClassVar[str] = "pgbouncer"
    scheme = "postgresql"
    hello = "SHOW VERSION"
    polite_signal = SIGTERM
    quick_signal = SIGKILL

    def __init__(
        self,
        server: PostgreSQL,
        mode: Literal["session", "transaction"] = "session",
        options: Mapping[str, Value] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: bool = False,
        binary: str | Path | None = None,
    ) -> None:
        super().__init__(
            options,
            user=server.user,
            password=server.password,
            database=server.database,
            host=host,
            port=port,
            tls=tls,
            binary=binary,
        )
        self.server, self.mode = server, mode

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``pgbouncer`` to run."""
        named = os.environ.get("UNBROKEN_PGBOUNCER")
        found = (
            named
            or shutil.which("pgbouncer")
            or shutil.which("pgbouncer", path=os.pathsep.join(_PLACES))
        )
        if found is None or not os.access(found, os.X_OK):
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    "pgbouncer is not installed: install pgbouncer (apt-get, dnf, brew), or set"
                    " UNBROKEN_PGBOUNCER to its path"
                )
            )
        if tls:
            certificates.require()
        return Path(found).resolve()

    @property
    def unix_socket(self) -> str:
        """The path of its socket."""
        return str(self._home / f".s.PGSQL.{self.port}")

    def _prepare(self, folder: Path) -> None:
        if self.tls:
            certificates.make(folder / "tls", self.host)
        _write(folder / "users", f'"{self.user}" "{self.password}"\n"{_ADMIN}" "not asked for"\n')
        _write(
            folder / "hba",
            f"local {_CONSOLE} {_ADMIN} trust\nlocal all all scram-sha-256\nhost all all 0.0.0.0/0"
            " scram-sha-256\n",
        )

    def _command(self, folder: Path) -> list[str | Path]:
        places: dict[str, Value] = {
            "listen_addr": self.host, "listen_port": self.port, "unix_socket_dir": str(folder),
            "auth_type": "hba", "auth_file": str(folder / "users"),
            "auth_hba_file": str(folder / "hba"), "admin_users": _ADMIN, "pool_mode": self.mode,
        }  # fmt: skip
        tls = folder / "tls"
        files: dict[str, Value] = {}
        if self.tls:
            files = {
                "client_tls_sslmode": "allow",
                "client_tls_cert_file": str(tls / "server.pem"),
                "client_tls_key_file": str(tls / "server.key"),
            }
        settings = {**_SETTINGS, **files, **self.options, **places}
        lines = "".join(f"{name} = {_plain(value)}\n" for name, value in settings.items())
        behind = f"host={self.server.host} port={self.server.port} dbname={self.database}"
        _write(
            folder / "pgbouncer.ini",
            f"[databases]\n{self.database} = {behind}\n[pgbouncer]\n{lines}",
        )
        return [self.binary, folder / "pgbouncer.ini"]

    def _welcome(self) -> None:
        pass  # its user and database are PostgreSQL's

    def _query(self, sql: str, database: str | None, timeout: float) -> list[tuple[str, ...]]:  # noqa: ARG002 - it has one console
        return postgres_query(self.unix_socket, _ADMIN, sql, _CONSOLE, timeout)

    def stop(self, timeout: float = 30.0) -> None:
        """End it, and its clients' sessions with it. (On a signal its versions differ in the
        clients that they wait for.)
        """
        self._own("stop")
        if self._process is not None and self.is_running:
            self.thaw()
            with contextlib.suppress(ServerError):  # it hangs up instead of answering
                self._query("SHUTDOWN", None, timeout)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerError(
                    SERVER_LATE(f"{self!r} did not stop within {timeout} s, so it was killed")
                ) from None
        self._ended()

    def sessions(self) -> list[Session]:
        """Return its clients, in no particular order."""
        rows = self._query("SHOW CLIENTS", None, 30.0)
        # type, user, database, state, addr, port … and, some columns later, a pointer that
        # identifies each one
        return [
            Session(
                int(next(value for value in row if value.startswith("0x")), 16),
                row[1],
                f"{row[4]}:{row[5]}",
                row[2],
                row[3],
            )
            for row in rows
            if row[1] == self.user
        ]

    def kill_sessions(self, timeout: float = 5.0) -> int:  # noqa: ARG002 - it gives when they are gone
        """Drop every client's connection at once, and PostgreSQL's with them. Accept new ones
        afterwards. Returns the number of clients.
        """
        count = len(self.sessions())
        self._query(f"KILL {self.database}", None, 30.0)
        self._query(f"RESUME {self.database}", None, 30.0)
        return count

    def _kill_session(self, number: int) -> bool:
        raise ServerError(
            SERVER_CANNOT(
                f"PgBouncer cannot drop the single client {number:#x}; use kill_sessions()"
            )
        )

    def _apply(self, options: Mapping[str, Value]) -> None:
        for name, value in options.items():
            self._query(f"SET {name} = '{_plain(value)}'", None, 30.0)

    def _present(self, name: str) -> Value:
        return next(row[1] for row in self._query("SHOW CONFIG", None, 30.0) if row[0] == name)

    def _socket_query(self, driver: str | None) -> dict[str, str]:
        return (
            {"unix_sock": self.unix_socket}
            if driver == "pg8000"
            else {"host": str(self._home), "port": str(self.port)}
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    folders.own(path)


def _plain(value: Value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
