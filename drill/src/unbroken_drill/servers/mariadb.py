"""MariaDB: the distribution's ``mariadbd``, with a private data folder."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, ClassVar

from unbroken_drill.messages import SERVER_LATE, SERVER_NOT_HERE, SERVER_STATE
from unbroken_drill.servers import certificates, folders, processes
from unbroken_drill.servers.base import CHECKER, Server, Session, Value
from unbroken_drill.servers.cluster import wait_until
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.wire import mysql_query

#: Folders of the server's program outside PATH.
PLACES = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/libexec",
    "/usr/local/bin",
    "/opt/homebrew/opt/mariadb/bin",
    "/usr/local/opt/mariadb/bin",
)
_LOCK_WAIT_TIMEOUT = 1205
_NO_SUCH_THREAD = 1094  # ER_NO_SUCH_THREAD: it ended by itself before it was killed

#: Small, quick, and safe when killed. The log is written (not flushed) at each commit, so a crash
#: of the process, though not of the machine, loses nothing acknowledged. The doublewrite buffer
#: stays on, because a SIGKILL can leave a page half written.
_SETTINGS: Mapping[str, Value] = {
    "skip_name_resolve": True,
    "innodb_flush_log_at_trx_commit": 2,
    "innodb_log_file_size": "8M",
    "innodb_buffer_pool_size": "16M",
    "innodb_buffer_pool_dump_at_shutdown": False,
    "innodb_buffer_pool_load_at_startup": False,
    "performance_schema": False,
    "key_buffer_size": "1M",
    "aria_pagecache_buffer_size": "1M",
    "character_set_server": "utf8mb4",
}

#: For a server that others can follow: every change is in its binary log from its first start on.
_REPLICATED: Mapping[str, Value] = {
    "log_bin": "log",
    "log_slave_updates": True,
    "gtid_strict_mode": True,
    "rpl_semi_sync_slave_enabled": True,
    "rpl_semi_sync_master_wait_point": "AFTER_SYNC",
    "rpl_semi_sync_master_timeout": 3_600_000,
}
_REPLICATOR = "unbroken_replica"
_SEMI_SYNC = "rpl_semi_sync_master_enabled"


class MariaDB(Server):
    """A MariaDB server, for ``mysql+…://`` and ``mariadb+…://`` URLs.

    The program is the one that ``UNBROKEN_MARIADBD`` names, otherwise ``mariadbd`` in PATH or in
    the usual folders for servers. ``mariadb-install-db`` is searched beside it and in PATH.

    With ``replicated=True``, :meth:`replica` returns a second server that follows it by GTID.
    :meth:`promote` and :meth:`switchover` change their roles. :class:`MariaDBCluster` manages them
    together.
    """

    backend: ClassVar[str] = "mariadb"
    scheme = "mysql"
    schemes: ClassVar[Mapping[str, str]] = {"mariadbconnector": "mariadb"}
    polite_signal = SIGTERM
    quick_signal = SIGKILL

    #: The server that it follows as a replica; None: a primary, or alone.
    upstream: MariaDB | None = None

    def __init__(
        self,
        options: Mapping[str, Value] | None = None,
        *,
        replicated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(options, **kwargs)
        self.replicated = replicated
        self._replicators = self.password  #: the replicas' password, which does not change

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``mariadbd`` to run."""
        named = os.environ.get("UNBROKEN_MARIADBD")
        found = (
            named
            or shutil.which("mariadbd")
            or shutil.which("mariadbd", path=os.pathsep.join(PLACES))
        )
        if found is None:
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    "mariadbd is not installed: install mariadb-server (apt-get, dnf, brew), or set"
                    " UNBROKEN_MARIADBD to its path"
                )
            )
        if not os.access(found, os.X_OK):
            raise ServerUnavailable(SERVER_NOT_HERE(f"UNBROKEN_MARIADBD={named}: no such program"))
        if tls:
            certificates.require()
        return Path(found).resolve()

    @property
    def unix_socket(self) -> str:
        """The path of the server's socket."""
        return str(self._home / "s")

    def _prepare(self, folder: Path) -> None:
        version = (
            processes.run([self.binary, "--no-defaults", "--version"], folder)
            .split("Ver ")[-1]
            .split()[0]
        )
        user = processes.server_user()
        name = f"mariadb-{version}-{user.pw_name if user else 'self'}-1".replace("/", "_")
        folders.unpack_template(name, self._install, folder / "data")
        if self.tls:
            certificates.make(folder / "tls", self.host)

    def _install(self, data: Path) -> None:
        base = self.binary.parent.parent
        beside = os.pathsep.join(str(base / name) for name in ("bin", "sbin", "scripts"))
        tool = shutil.which(
            "mariadb-install-db", path=f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        )
        if tool is None:
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    f"no mariadb-install-db beside {self.binary} or in PATH; install mariadb-server"
                )
            )
        flags = [
            "--no-defaults",
            f"--basedir={base}",
            f"--datadir={data}",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ]
        processes.run(
            [
                tool,
                *flags,
                *as_flags(
                    {n: _SETTINGS[n] for n in ("innodb_log_file_size", "innodb_buffer_pool_size")}
                ),
            ],
            data.parent,
        )

    def _command(self, folder: Path) -> list[str | Path]:
        (folder / "tmp").mkdir(exist_ok=True)
        folders.own(folder / "tmp")
        places: dict[str, Value] = {
            "basedir": str(self.binary.parent.parent),
            "datadir": str(folder / "data"),
            "tmpdir": str(folder / "tmp"),
            "socket": self.unix_socket,
            "pid_file": str(folder / "pid"),
            "bind_address": self.host,
            "port": self.port,
        }
        tls = {"ssl_cert": "server.pem", "ssl_key": "server.key"} if self.tls else {}
        files: dict[str, Value] = {name: str(folder / "tls" / file) for name, file in tls.items()}
        if self.replicated:
            places |= {**_REPLICATED, "server_id": self.port}
        return [
            self.binary,
            "--no-defaults",
            *as_flags({**_SETTINGS, **self.options, **places, **files}),
        ]

    def _welcome(self) -> None:
        if self.upstream is not None:
            return self._replicate(self.upstream)
        name, password = f"{_text(self.user)}@'%'", _text(self.password)
        self._query(
            f"CREATE DATABASE {_name(self.database)}; CREATE USER {name} IDENTIFIED BY {password};"
            f"GRANT ALL ON {_name(self.database)}.* TO {name}; CREATE USER {CHECKER}@'%'",
            None,
            30.0,
        )
        if self.replicated:
            self._query(
                f"CREATE USER {_REPLICATOR}@'%' IDENTIFIED BY {_text(self._replicators)};"
                f"GRANT REPLICATION SLAVE ON *.* TO {_REPLICATOR}@'%'",
                None,
                30.0,
            )
        return None

    def _query(self, sql: str, database: str | None, timeout: float) -> list[tuple[str, ...]]:
        return mysql_query(self.unix_socket, "root", sql, database, timeout)

    def sessions(self) -> list[Session]:
        """Return the sessions of the application's user, oldest first."""
        rows = self._query(
            "SELECT id, user, host, COALESCE(db, ''), command FROM information_schema.processlist"
            f" WHERE user = {_text(self.user)} ORDER BY id",
            None,
            30.0,
        )
        return [Session(int(number), *rest) for number, *rest in rows]

    def _kill_session(self, number: int) -> bool:
        try:
            self._query(f"KILL {number}", None, 30.0)
        except ServerError as error:
            if error.number != _NO_SUCH_THREAD:
                raise
            return False
        return True

    def _apply(self, options: Mapping[str, Value]) -> None:
        changes = [f"GLOBAL {_name(name)} = {_value(value)}" for name, value in options.items()]
        self._query(f"SET {', '.join(changes)}", None, 30.0)  # one statement: all or none

    def _present(self, name: str) -> Value:
        return self._query(f"SELECT @@GLOBAL.{_name(name)}", None, 30.0)[0][0]

    def _socket_query(self, driver: str | None) -> dict[str, str]:  # noqa: ARG002 - all drivers spell it alike
        return {"unix_socket": self.unix_socket}

    def change_password(self, password: str) -> None:
        """Give the application's user another password; its sessions continue."""
        name = f"{_text(self.user)}@'%'"
        self._query(f"ALTER USER {name} IDENTIFIED BY {_text(password)}", None, 30.0)
        self.password = password

    # ---- a primary and its replicas

    def replica(self, *, synchronous: bool = False) -> MariaDB:
        """Return a started, read-only replica of this server, which follows within milliseconds.

        *synchronous*: from now on a COMMIT is answered only after a replica has it too.
        """
        if not self.replicated:
            raise ServerError(SERVER_STATE(f"{self!r} has no binary log; pass replicated=True"))
        made = type(self)(
            dict(self.options), replicated=True, user=self.user, password=self.password,
            database=self.database, host=self.host, tls=self.tls, binary=self.binary,
        )  # fmt: skip
        made._replicators = self._replicators
        made._become_replica(self)
        made.start()
        try:
            made._wait_following(synchronous=synchronous)
        except BaseException:
            made.close()
            raise
        return made

    def _become_replica(self, upstream: MariaDB) -> None:
        self.upstream = upstream
        self.options["read_only"] = True
        self.options.pop(_SEMI_SYNC, None)

    def _replicate(self, upstream: MariaDB) -> None:
        self._query(
            f"CHANGE MASTER TO MASTER_HOST = '{upstream.host}', MASTER_PORT = {upstream.port},"
            f" MASTER_USER = '{_REPLICATOR}', MASTER_PASSWORD = {_text(upstream._replicators)},"
            " MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1; START SLAVE",
            None,
            30.0,
        )

    def _wait_following(self, *, synchronous: bool) -> None:
        assert self.upstream is not None, "a replica"
        self.wait_caught_up(self.upstream)
        if synchronous:
            self.upstream.set(**{_SEMI_SYNC: True})

    def wait_caught_up(self, primary: MariaDB, timeout: float = 30.0) -> None:
        """Wait until this replica has everything that *primary* has committed so far."""
        where = primary._query("SELECT @@GLOBAL.gtid_binlog_pos", None, 30.0)[0][0]
        asked = f"SELECT MASTER_GTID_WAIT('{where}', {timeout})"
        if self._query(asked, None, timeout + 5.0) != [("0",)]:
            said = self._query("SHOW SLAVE STATUS", None, 30.0)
            raise ServerError(
                SERVER_LATE(f"{self!r} did not reach {where} within {timeout:g} s: {said}")
            )

    @property
    def is_read_only(self) -> bool:
        """Whether it refuses the application's writes. Raises ServerError if it does not answer."""
        return self._query("SELECT @@GLOBAL.read_only", None, 5.0) == [("1",)]

    def set_read_only(self, on: bool = True) -> None:
        """Refuse the application's writes from now on (error 1290), or take them again.

        If statements that wait for a lock delay this for a second, the application's sessions are
        ended, as the usual tools for a switchover do.
        """
        self.options["read_only"] = on
        change = f"SET STATEMENT lock_wait_timeout = 1 FOR SET GLOBAL read_only = {on:d}"
        deadline = time.monotonic() + 30.0
        while True:
            try:
                self._query(change, None, 30.0)
                return
            except ServerError as error:
                if error.number != _LOCK_WAIT_TIMEOUT or time.monotonic() > deadline:
                    raise
                self.kill_sessions()

    def promote(self, timeout: float = 30.0) -> None:
        """Make this replica a primary: it applies all received data, then takes writes."""
        if self.upstream is None:
            raise ServerError(SERVER_STATE(f"{self!r} is not a replica"))
        self._query("STOP SLAVE IO_THREAD", None, timeout)
        wait_until(self._has_applied_all, f"the promotion of {self!r}", timeout)
        self._query("STOP SLAVE; RESET SLAVE ALL", None, timeout)
        self.upstream = None
        self.set_read_only(False)

    def _has_applied_all(self) -> bool:
        row = self._query("SHOW SLAVE STATUS", None, 30.0)[0]
        # received: Master_Log_File, Read_Master_Log_Pos; applied: Relay_Master_Log_File,
        # Exec_Master_Log_Pos
        return (row[5], row[6]) == (row[9], row[21])

    def follow(self, primary: MariaDB, *, synchronous: bool = False, rebuild: bool = True) -> None:
        """Make this server a replica of *primary*.

        *rebuild*: its data is discarded first, because it may have changes that *primary* does not
        have. Without it, *primary* must have all of them.
        """
        self._become_replica(primary)
        if rebuild:
            self.kill()
            shutil.rmtree(self._home / "data")
            self._prepare(self._home)
            self.start()
            self._replicate(primary)
        else:
            self.start()
            where = self._query("SELECT @@GLOBAL.gtid_binlog_pos", None, 30.0)[0][0]
            self._query(
                f"SET GLOBAL read_only = 1, {_SEMI_SYNC} = 0; STOP SLAVE; RESET SLAVE ALL;"
                f"SET GLOBAL gtid_slave_pos = '{where}'",
                None,
                30.0,
            )
            self._replicate(primary)
        self._wait_following(synchronous=synchronous)

    def switchover(self, to: MariaDB, *, synchronous: bool = False) -> None:
        """Give this primary's role to its replica *to*, in order: nothing is lost.

        This server becomes read-only; *to* catches up and is promoted; then this server becomes its
        replica.
        """
        self.set_read_only()
        to.wait_caught_up(self)
        to.promote()
        self.follow(to, synchronous=synchronous, rebuild=False)


def as_flags(options: Mapping[str, Value]) -> list[str]:
    """Return *options* as arguments of a command line."""
    return [f"--{name.replace('_', '-')}={_plain(value)}" for name, value in options.items()]


def _plain(value: Value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _value(value: Value) -> str:
    """Return a value for SET GLOBAL: numbers bare (the server refuses them quoted), all others
    quoted.
    """
    plain = _plain(value)
    try:
        float(plain)
    except ValueError:
        return _text(plain)
    return plain


def _text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
