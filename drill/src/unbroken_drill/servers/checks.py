"""HAProxy's check whether it can use a server, as lines of its configuration.

HAProxy logs in by the server's own protocol, as a user without a password and without rights, and
runs one query. No other program has to listen beside the server.
"""

from __future__ import annotations

import struct

from unbroken_drill.messages import SERVER_CANNOT
from unbroken_drill.servers.base import CHECKER, Server
from unbroken_drill.servers.errors import ServerError
from unbroken_drill.servers.mariadb import MariaDB
from unbroken_drill.servers.mysql import MySQL
from unbroken_drill.servers.postgresql import PostgreSQL

#: LONG_PASSWORD, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION, PLUGIN_AUTH
_MYSQL_FLAGS = 0x1 | 0x200 | 0x2000 | 0x8000 | 0x80000
_UTF8MB4 = 45

_WRITABLE = b"\3SELECT CONCAT('writes=', 1 - @@read_only)"
_READY = (
    b"\3BEGIN"  # a Galera node that is not ready refuses it, and answers a SELECT without a table
)


def lines(server: Server) -> list[str]:
    """Return the check that succeeds while *server* takes writes: a primary that is not read-only,
    or a ready node.
    """
    if isinstance(server, PostgreSQL):
        return _postgresql()
    if isinstance(server, MariaDB) and not isinstance(server, MySQL):
        return _mariadb()
    raise ServerError(SERVER_CANNOT(f"HAProxy cannot check {server!r} here; pass follow=False"))


def _postgresql() -> list[str]:
    names = f"user\0{CHECKER}\0database\0postgres\0\0".encode()
    query = b"SELECT pg_is_in_recovery()\0"
    return [
        "option tcp-check",
        "tcp-check connect",
        _send(struct.pack(">II", len(names) + 8, 3 << 16) + names),
        "tcp-check expect binary 5a0000000549",  # ReadyForQuery, idle
        _send(b"Q" + struct.pack(">I", len(query) + 4) + query),
        "tcp-check expect binary 440000000b00010000000166",  # a row: f
        _send(b"X\0\0\0\4"),
    ]


def _mariadb() -> list[str]:
    head = struct.pack("<IIB23x", _MYSQL_FLAGS, 1 << 24, _UTF8MB4)
    login = head + CHECKER.encode() + b"\0\0mysql_native_password\0"
    return [
        "option tcp-check",
        "tcp-check connect",
        f"tcp-check expect binary {b'mysql_native_password'.hex()}",  # the end of its greeting
        _send(_packet(1, login)),
        "tcp-check expect binary 07000002",  # OK
        _send(_packet(0, _READY)),
        "tcp-check expect binary 0700000100",  # OK
        _send(_packet(0, _WRITABLE)),
        "tcp-check expect string writes=1",
        _send(_packet(0, b"\1")),
    ]


def _packet(number: int, body: bytes) -> bytes:
    return struct.pack("<I", len(body))[:3] + bytes([number]) + body


def _send(data: bytes) -> str:
    return f"tcp-check send-binary {data.hex()}"
