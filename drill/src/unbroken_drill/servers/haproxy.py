"""HAProxy before several servers: it follows the one that takes writes, or gets its target."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import ClassVar, NamedTuple

from unbroken_drill.messages import SERVER_CANNOT, SERVER_NOT_HERE, SERVER_REFUSED, SERVER_STATE
from unbroken_drill.servers import checks, debian, folders
from unbroken_drill.servers.base import Server, Session, Value
from unbroken_drill.servers.cluster import Cluster, wait_until
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.wire import Stream

_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin")
_PACKAGE, _SUITE, _PROGRAM = "haproxy", "stable", "usr/sbin/haproxy"

#: Lines of its section ``defaults``. A client or a server can be idle for an hour.
_SETTINGS: Mapping[str, Value] = {
    "timeout connect": "1s",
    "timeout client": "1h",
    "timeout server": "1h",
    "timeout check": "300ms",
    "retries": 2,
    "option redispatch": 1,
}
_CHECKED = "check inter 200ms fastinter 100ms downinter 100ms fall 2 rise 1"
_LISTEN = "db"
_RUNNING = "2"  # of srv_op_state
_NEVER_CHECKED = ("0", "1")  # of srv_check_status
_ONCE_DISABLED = 0x04  # in srv_admin_state: in the configuration, even if it was enabled later


class _State(NamedTuple):
    """A server's state in HAProxy."""

    usable: bool
    is_checked: bool

    @classmethod
    def of(cls, row: Sequence[str]) -> _State:
        """Return the state in a line of ``show servers state``.

        be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight
        srv_time_since_last_change srv_check_status srv_check_result …
        """
        admin = int(row[6]) & ~_ONCE_DISABLED
        return cls(row[5] == _RUNNING and not admin, row[10] not in _NEVER_CHECKED)


class HAProxy(Server):
    """HAProxy on a port of its own, before *servers* (or a cluster). It takes over their user,
    password and database.

    With *follow* it checks each server five times a second, whether it takes writes. That is a
    PostgreSQL that is no standby, a MariaDB that is not read-only, or a Galera node that is ready.
    It sends clients to the first that does. A server that fails two checks loses its clients.
    Without *follow* the first server has all clients until :meth:`switch`.

    *options* are lines of its section ``defaults`` (``{"retries": 3}``). The program is the one
    that ``UNBROKEN_HAPROXY`` names, otherwise the ``haproxy`` in PATH or the usual places,
    otherwise Debian's. :meth:`fetch` unpacks Debian's packages, 15 MB, into the cache, once.
    Starting it does so by itself if apt is available. :meth:`admin` uses its stats socket (``show
    servers state``); :meth:`sessions` are its clients.
    """

    backend: ClassVar[str] = "haproxy"
    scheme = ""  # of the servers behind it
    hello = "show info"
    polite_signal = SIGTERM
    quick_signal = SIGKILL

    def __init__(
        self,
        servers: Sequence[Server] | Cluster[Server],
        options: Mapping[str, Value] | None = None,
        *,
        follow: bool = True,
        host: str = "127.0.0.1",
        port: int | None = None,
        binary: str | Path | None = None,
    ) -> None:
        self.servers = list(servers.servers if isinstance(servers, Cluster) else servers)
        first = self.servers[0]
        super().__init__(
            options,
            user=first.user,
            password=first.password,
            database=first.database,
            host=host,
            port=port,
            binary=binary,
        )
        self.follow, self._to = follow, first

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``haproxy`` to run, or where :meth:`fetch` will put it."""
        if tls:
            raise ServerUnavailable(
                SERVER_CANNOT(
                    "HAProxy only passes TLS through; set TLS up on the servers behind it"
                )
            )
        named = os.environ.get("UNBROKEN_HAPROXY")
        if named and not os.access(named, os.X_OK):
            raise ServerUnavailable(SERVER_NOT_HERE(f"UNBROKEN_HAPROXY={named}: no such program"))
        found = (
            named
            or shutil.which("haproxy")
            or shutil.which("haproxy", path=os.pathsep.join(_PLACES))
        )
        if found:
            return Path(found).resolve()
        root = debian.unpacked(_PACKAGE, _SUITE, _PROGRAM)
        if root is None and debian.missing_tools():
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    "haproxy is not installed: install haproxy (apt-get, dnf, brew), or set"
                    " UNBROKEN_HAPROXY to its path"
                )
            )
        return (root or folders.cache_folder() / f"debian-{_SUITE}-{_PACKAGE}") / _PROGRAM

    @classmethod
    def fetch(cls) -> Path:
        """Return the program as :meth:`find` does; fetch it first if it is missing.

        Raises ServerUnavailable with the reason if that fails.
        """
        program = cls.find()
        if not program.exists():
            debian.unpack(_PACKAGE, _SUITE, _PROGRAM)
        return program

    @property
    def unix_socket(self) -> str:
        """The path of its stats socket."""
        return str(self._home / "stats")

    def _prepare(self, folder: Path) -> None:  # noqa: ARG002 - it keeps nothing there
        if not self.binary.exists():
            self.fetch()

    def _command(self, folder: Path) -> list[str | Path]:
        settings = {**_SETTINGS, **self.options}
        lines = [
            "global", f"stats socket {self.unix_socket} mode 600 level admin", "nbthread 1",
            "defaults", "mode tcp", *(f"{name} {value}" for name, value in settings.items()),
            f"listen {_LISTEN}", f"bind {self.host}:{self.port}",
            *(checks.lines(self.servers[0]) if self.follow else []),
            *(self._server_line(server) for server in self.servers),
        ]  # fmt: skip
        config = folder / "haproxy.cfg"
        config.write_text("".join(f"{line}\n" for line in lines))
        folders.own(config)
        root = self.binary.parents[2]
        start = debian.loader(root) if (root / "complete").exists() else []
        return [*start, self.binary, "-db", "-q", "-f", config]

    def _server_line(self, server: Server) -> str:
        where = f"server {self._name_of(server)} {server.host}:{server.port}"
        if not self.follow:
            return where if server is self._to else f"{where} disabled"
        spare = "" if server is self.servers[0] else " backup"
        return f"{where} {_CHECKED} on-marked-down shutdown-sessions{spare}"

    def _name_of(self, server: Server) -> str:
        if server not in self.servers:
            raise ServerError(SERVER_STATE(f"{server!r} is not behind {self!r}"))
        return f"s{self.servers.index(server)}"

    def _welcome(self) -> None:
        pass  # its user and database are those of the servers behind it

    def _query(self, sql: str, database: str | None, timeout: float) -> list[tuple[str, ...]]:  # noqa: ARG002 - it has one console
        """Return one command's answer, a line each, split at spaces."""
        with Stream(self.unix_socket, timeout) as stream:
            stream.send(sql.encode() + b"\n")
            text = stream.rest().decode(errors="replace")
        if text.startswith(("Unknown command", "No such", "Permission denied", "Require")):
            raise ServerError(SERVER_REFUSED(text.splitlines()[0]))
        return [tuple(line.split()) for line in text.splitlines() if line]

    # ---- the target of its clients

    @property
    def serving(self) -> list[Server]:
        """Return the servers that new clients can be sent to now; the first of them gets them."""
        return [server for server in self.servers if self._states()[self._name_of(server)].usable]

    def _states(self) -> dict[str, _State]:
        rows = self._query(f"show servers state {_LISTEN}", None, 30.0)
        return {row[3]: _State.of(row) for row in rows if len(row) > 11 and row[1] == _LISTEN}

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until it answers, and has checked each server once."""
        super().wait_ready(timeout)
        if self.follow:
            wait_until(
                lambda: all(state.is_checked for state in self._states().values()),
                f"the first checks of {self!r}",
                timeout,
            )

    def switch(self, to: Server, *, cut: bool = True) -> None:
        """Send all clients to *to* from now on (with ``follow=False``).

        *cut*: end the sessions with the other servers. Otherwise they continue, like connections to
        a name that leads elsewhere now.
        """
        if self.follow:
            raise ServerError(
                SERVER_STATE(f"{self!r} follows the server that takes writes; pass follow=False")
            )
        self._to = to
        self._state(to, "ready")
        for server in self.servers:
            if server is not to:
                self._state(server, "maint")
                if cut:
                    self._cut(server)

    def _state(self, server: Server, state: str) -> None:
        self._query(f"set server {_LISTEN}/{self._name_of(server)} state {state}", None, 30.0)

    def _cut(self, server: Server) -> None:
        name = f"{_LISTEN}/{self._name_of(server)}"
        self._query(f"shutdown sessions server {name}", None, 30.0)

    def wait_serving(self, server: Server | None = None, timeout: float = 10.0) -> None:
        """Wait until its checks have found that *server* (default: any) takes writes."""
        wait_until(
            lambda: (server in self.serving[:1]) if server else bool(self.serving),
            f"{self!r} sending its clients to {server or 'anybody'!r}",
            timeout,
        )

    # ---- queries

    def url(self, driver: str | None = None, *, unix: bool = False, **query: object) -> str:
        """Return the URL in the spelling of the servers behind it, with its own port."""
        first = self.servers[0]
        mine = first.url(driver, unix=unix, **query)
        return mine.replace(f"@{first.host}:{first.port}/", f"@{self.host}:{self.port}/", 1)

    def sessions(self) -> list[Session]:
        """Return its clients; their *database* is the name of their server."""
        found = []
        for row in self._query("show sess", None, 30.0):
            fields = dict(re.findall(r"(\w+)=(\S+)", " ".join(row)))
            if fields.get("fe") == _LISTEN:
                number = int(row[0].rstrip(":"), 16)
                found.append(Session(number, self.user, fields["src"], fields["srv"], ""))
        return found

    def kill_sessions(self, timeout: float = 5.0) -> int:
        """End all its clients' sessions and wait until they are gone. Returns their number."""
        count = len(self.sessions())
        for server in self.servers:
            self._cut(server)
        wait_until(lambda: not self.sessions(), f"the end of the sessions of {self!r}", timeout)
        return count

    def _kill_session(self, number: int) -> bool:
        return bool(self._query(f"shutdown session {number:#x}", None, 30.0) or True)

    def _apply(self, options: Mapping[str, Value]) -> None:
        raise ServerError(
            SERVER_STATE(f"HAProxy reads {', '.join(options)} only at its start; call restart()")
        )

    def _present(self, name: str) -> Value:
        return {**_SETTINGS, **self.options}.get(name, "")

    def _socket_query(self, driver: str | None) -> dict[str, str]:  # noqa: ARG002 - as the base has it
        raise ServerError(SERVER_CANNOT("HAProxy listens only on TCP"))
