"""Every driver on every server, and the process that its pool lives in."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from contextlib import AbstractContextManager, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unbroken_drill.servers import MariaDB, MySQL, PostgreSQL, Server

WORKER = Path(__file__).with_name("every_driver_worker.py")
MYSQL = [
    "pymysql",
    "mysqldb",
    "mariadbconnector",
    "mysqlconnector",
    "aiomysql",
    "asyncmy",
    "mysqlconnector_async",
]
POSTGRESQL = ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"]
if sysconfig.get_config_var("Py_GIL_DISABLED"):  # some have no release for free-threaded Pythons
    for _name, _module in {
        "mysqldb": "MySQLdb", "mariadbconnector": "mariadb", "psycopg2": "psycopg2",
        "asyncpg": "asyncpg",
    }.items():  # fmt: skip
        if find_spec(_module) is None:
            (POSTGRESQL if _name in POSTGRESQL else MYSQL).remove(_name)
KINDS: dict[str, tuple[type[Server], list[str]]] = {
    "mariadb": (MariaDB, MYSQL), "mysql": (MySQL, MYSQL), "postgresql": (PostgreSQL, POSTGRESQL),
}  # fmt: skip


def url_of(server: Server, driver: str, tls: bool, **more: object) -> str:
    """The URL of *server*, which has a certificate, for a driver of the lists above; *more* of its
    query's options win.
    """
    query: dict[str, object] = {}
    if isinstance(server, PostgreSQL):
        query = (
            {"sslmode": "verify-ca", "sslrootcert": str(server.ca_file)}
            if tls
            else {"sslmode": "disable"}
        )
    elif tls:
        query = {"ssl_ca": str(server.ca_file)}
    return server.url(driver.removesuffix("_async"), **{**query, **more})


class Worker:
    """A driver's pool in a process of its own, which does what lines say (see
    every_driver_worker.py).
    """

    def __init__(self, driver: str, url: str) -> None:
        self.driver = driver
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), driver, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, command: str) -> None:
        """Have it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return (
            json.loads(line)
            if line
            else {"failed": f"it ended with status {self._process.wait(5)}"}
        )

    def ask(self, command: str) -> Any:
        """Have it do something, and what it says then."""
        self.tell(command)
        return self.answer()

    def closing(self) -> AbstractContextManager[Worker]:
        """It, ended with the block."""
        return closing(self)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
