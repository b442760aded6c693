"""MySQL: the installed server, or Debian's newest, unpacked into the cache and run by its own
loader.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

from unbroken_drill.messages import SERVER_CANNOT, SERVER_NOT_HERE
from unbroken_drill.servers import certificates, debian, folders, processes
from unbroken_drill.servers.base import Value
from unbroken_drill.servers.errors import ServerUnavailable
from unbroken_drill.servers.mariadb import PLACES, MariaDB, as_flags

_PACKAGE, _SUITE, _PROGRAM = "mysql-server-core", "sid", "usr/sbin/mysqld"

#: Quick, and safe when the process (not the machine) is killed, as MariaDB's.
_SETTINGS: Mapping[str, Value] = {
    "skip_name_resolve": True,
    "innodb_flush_log_at_trx_commit": 2,
    "innodb_redo_log_capacity": "8M",
    "innodb_buffer_pool_size": "16M",
    "innodb_buffer_pool_dump_at_shutdown": False,
    "innodb_buffer_pool_load_at_startup": False,
    "performance_schema": False,
    "key_buffer_size": "1M",
    "disable_log_bin": True,
    "mysqlx": False,
}


class MySQL(MariaDB):
    """A MySQL server (8.0 or newer), for ``mysql+…://`` URLs.

    The program is the one that ``UNBROKEN_MYSQLD`` names, otherwise the ``mysqld`` in PATH or the
    usual places, if it is MySQL's (MariaDB installs one of that name too). Otherwise it is Debian's
    newest: :meth:`fetch` unpacks its packages, 50 MB, into the cache, once. Starting a server does
    so by itself if apt is available.

    Its users log in by ``caching_sha2_password``. It always offers TLS, with a certificate that it
    makes itself; ``tls=True`` makes one of a private CA.
    """

    backend: ClassVar[str] = "mysql"
    schemes: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``mysqld`` to run."""
        if tls:
            certificates.require()
        named = os.environ.get("UNBROKEN_MYSQLD")
        if named:
            if not os.access(named, os.X_OK):
                raise ServerUnavailable(
                    SERVER_NOT_HERE(f"UNBROKEN_MYSQLD={named}: no such program")
                )
            return Path(named).resolve()
        for place in (shutil.which("mysqld"), shutil.which("mysqld", path=os.pathsep.join(PLACES))):
            if place is not None and "MariaDB" not in _version(place):
                return Path(place).resolve()
        root = debian.unpacked(_PACKAGE, _SUITE, _PROGRAM)
        if root is None and debian.missing_tools():
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    "MySQL is not installed: install mysql-server (dnf, brew), or set"
                    " UNBROKEN_MYSQLD to the path of mysqld"
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

    def _start_of_command(self) -> list[str | Path]:
        root = self.binary.parents[2]
        if not (root / "complete").exists():
            return [self.binary]
        messages, plugins = root / "usr/share/mysql", root / "usr/lib/mysql/plugin"
        places: dict[str, Value] = {
            "lc_messages_dir": str(messages),
            "character_sets_dir": str(messages / "charsets"),
            "plugin_dir": str(plugins),
        }
        return [*debian.loader(root), self.binary, "--no-defaults", *as_flags(places)]

    def _prepare(self, folder: Path) -> None:
        if self.replicated:
            raise ServerUnavailable(
                SERVER_CANNOT("test servers of MySQL cannot replicate; use MariaDB")
            )
        if not self.binary.exists():
            self.fetch()
        user = processes.server_user()
        version = (
            processes.run([*self._start_of_command()[:4], "--version"], folder)
            .partition("Ver ")[2]
            .split()[0]
        )
        folders.unpack_template(
            f"mysql-{version}-{user.pw_name if user else 'self'}-1", self._install, folder / "data"
        )
        if self.tls:
            certificates.make(folder / "tls", self.host)

    def _install(self, data: Path) -> None:
        start = self._start_of_command()
        begin = start if len(start) > 1 else [*start, "--no-defaults"]
        quick = {
            name: _SETTINGS[name]
            for name in ("innodb_redo_log_capacity", "innodb_buffer_pool_size", "disable_log_bin")
        }
        processes.run(
            [*begin, "--initialize-insecure", f"--datadir={data}", *as_flags(quick)], data.parent
        )

    def _command(self, folder: Path) -> list[str | Path]:
        start = self._start_of_command()
        begin = start if len(start) > 1 else [*start, "--no-defaults"]
        (folder / "tmp").mkdir(exist_ok=True)
        folders.own(folder / "tmp")
        places: dict[str, Value] = {
            "datadir": str(folder / "data"), "tmpdir": str(folder / "tmp"),
            "socket": self.unix_socket, "pid_file": str(folder / "pid"), "bind_address": self.host,
            "port": self.port, "secure_file_priv": "NULL",
        }  # fmt: skip
        tls = (
            {"ssl_cert": "server.pem", "ssl_key": "server.key", "ssl_ca": "ca.pem"}
            if self.tls
            else {}
        )
        files: dict[str, Value] = {name: str(folder / "tls" / file) for name, file in tls.items()}
        return [*begin, *as_flags({**_SETTINGS, **self.options, **places, **files})]


@cache
def _version(program: str) -> str:
    try:
        return subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=20
        ).stdout
    except OSError:
        return "MariaDB"  # an unknown program, which does not run
