"""The few parts of each protocol that an administrator needs: log in over a unix socket, run SQL,
read text rows.

So a test can watch and control a server without any driver, and the driver under test does not
judge itself. Each call is one connection. Sources: MariaDB knowledge base "Client/Server Protocol",
PostgreSQL manual "Frontend/Backend Protocol" (simple query).
"""

from __future__ import annotations

import socket
import struct

from unbroken_drill.messages import SERVER_GONE, SERVER_REFUSED
from unbroken_drill.servers.errors import ServerError

Rows = list[tuple[str, ...]]

# capability flags: LONG_PASSWORD, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION, MULTI_STATEMENTS,
# MULTI_RESULTS, PLUGIN_AUTH
_MYSQL_FLAGS = 0x1 | 0x200 | 0x2000 | 0x8000 | 0x10000 | 0x20000 | 0x80000
_MYSQL_CONNECT_WITH_DB = 0x8
_MYSQL_MORE_RESULTS = 0x8
_UTF8MB4 = 45
_POSTGRES_VERSION_3 = 196608


class Stream:
    """A unix socket that is read by exact sizes."""

    def __init__(self, path: str, timeout: float) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self.path, self.timeout = path, timeout
        self._buffer = b""

    def __enter__(self) -> Stream:
        try:
            self.sock.connect(self.path)
        except OSError as error:
            self.sock.close()
            raise ServerError(SERVER_GONE(f"no server answers at {self.path}: {error}")) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def exactly(self, size: int) -> bytes:
        """Return the next *size* bytes. Raises ServerError if they do not come."""
        while len(self._buffer) < size:
            try:
                more = self.sock.recv(65536)
            except TimeoutError as error:
                raise ServerError(
                    SERVER_GONE(f"no answer from {self.path} within {self.timeout} s")
                ) from error
            except OSError as error:
                raise ServerError(
                    SERVER_GONE(f"the server at {self.path} closed the connection: {error}")
                ) from error
            if not more:
                raise ServerError(SERVER_GONE(f"the server at {self.path} closed the connection"))
            self._buffer += more
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def rest(self) -> bytes:
        """Return all bytes until the other side hangs up."""
        found = self._buffer
        try:
            while more := self.sock.recv(65536):
                found += more
        except OSError as error:
            raise ServerError(
                SERVER_GONE(f"incomplete answer from {self.path}: {error}")
            ) from error
        return found

    def send(self, data: bytes) -> None:
        """Send all of *data*. Raises ServerError if the other side hung up."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise ServerError(
                SERVER_GONE(f"the server at {self.path} closed the connection: {error}")
            ) from error


def mysql_query(
    path: str, user: str, sql: str, database: str | None = None, timeout: float = 30.0
) -> Rows:
    """Run *sql* (several statements too) as *user*, who has no password. Returns the last
    statement's rows.
    """
    with Stream(path, timeout) as stream:
        _mysql_login(stream, user, database)
        _mysql_send(stream, 0, b"\x03" + sql.encode())
        rows: Rows = []
        more = True
        while more:
            rows, more = _mysql_result(stream)
        _mysql_send(stream, 0, b"\x01")
        return rows


def _mysql_login(stream: Stream, user: str, database: str | None) -> None:
    number, _greeting = _mysql_packet(stream)
    flags = _MYSQL_FLAGS | (_MYSQL_CONNECT_WITH_DB if database else 0)
    name = database.encode() + b"\0" if database else b""
    hello = (
        struct.pack("<IIB23x", flags, 1 << 24, _UTF8MB4)
        + user.encode()
        + b"\0\0"
        + name
        + b"mysql_native_password\0"
    )
    _mysql_send(stream, number + 1, hello)
    number, answer = _mysql_packet(stream)
    if answer[:1] == b"\xfe":
        # another plugin: for any of them, an empty password is an empty answer
        _mysql_send(stream, number + 1, b"")
        _mysql_packet(stream)


def _mysql_send(stream: Stream, number: int, body: bytes) -> None:
    stream.send(struct.pack("<I", len(body))[:3] + bytes([number]) + body)


def _mysql_packet(stream: Stream) -> tuple[int, bytes]:
    """Return the next packet's number and body. An ERR packet is raised."""
    head = stream.exactly(4)
    body = stream.exactly(int.from_bytes(head[:3], "little"))
    if body[:1] == b"\xff":
        code = int.from_bytes(body[1:3], "little")
        # '#' and five characters of SQLSTATE precede the text, except before the login
        text = body[9:] if body[3:4] == b"#" else body[3:]
        raise ServerError(SERVER_REFUSED(f"({code}) {text.decode(errors='replace')}"), code)
    return head[3], body


def _mysql_result(stream: Stream) -> tuple[Rows, bool]:
    """Return one statement's rows, and whether another statement's follow."""
    _, body = _mysql_packet(stream)
    if body[0] == 0:  # OK: affected rows, insert id, status
        _, at = _mysql_number(body, 1)
        _, at = _mysql_number(body, at)
        return [], bool(body[at] & _MYSQL_MORE_RESULTS)
    columns, _ = _mysql_number(body, 0)
    for _ in range(columns + 1):  # the definitions, and an EOF packet
        _mysql_packet(stream)
    rows: Rows = []
    while True:
        _, body = _mysql_packet(stream)
        if body[0] == 0xFE and len(body) < 9:  # EOF: warnings, status
            return rows, bool(body[3] & _MYSQL_MORE_RESULTS)
        rows.append(_mysql_row(body, columns))


def _mysql_row(body: bytes, columns: int) -> tuple[str, ...]:
    values, at = [], 0
    for _ in range(columns):
        if body[at] == 0xFB:  # NULL
            values.append("")
            at += 1
            continue
        size, at = _mysql_number(body, at)
        values.append(body[at : at + size].decode(errors="replace"))
        at += size
    return tuple(values)


def _mysql_number(body: bytes, at: int) -> tuple[int, int]:
    """Return a length-encoded integer at *at*, and where it ends."""
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(body[at])
    if size is None:
        return body[at], at + 1
    return int.from_bytes(body[at + 1 : at + 1 + size], "little"), at + 1 + size


def postgres_query(path: str, user: str, sql: str, database: str, timeout: float = 30.0) -> Rows:
    """Run *sql* (several statements too) as *user*, whom the server trusts. Returns the last
    statement's rows.
    """
    with Stream(path, timeout) as stream:
        names = f"user\0{user}\0database\0{database}\0application_name\0unbroken admin\0\0".encode()
        stream.send(struct.pack(">II", len(names) + 8, _POSTGRES_VERSION_3) + names)
        _postgres_answer(stream)
        text = sql.encode() + b"\0"
        stream.send(b"Q" + struct.pack(">I", len(text) + 4) + text)
        rows = _postgres_answer(stream)
        stream.send(b"X\0\0\0\4")
        return rows


def _postgres_answer(stream: Stream) -> Rows:
    """Read until the server is ready for more, then raise its error, if any. If the server ends the
    session, raise immediately.
    """
    rows: Rows = []
    error: ServerError | None = None
    while True:
        head = stream.exactly(5)
        kind, body = head[:1], stream.exactly(int.from_bytes(head[1:], "big") - 4)
        if kind == b"Z":
            if error:
                raise error
            return rows
        if kind == b"T":
            rows = []
        elif kind == b"D":
            rows.append(_postgres_row(body))
        elif kind == b"E":
            fields = {
                part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part
            }
            error = ServerError(
                SERVER_REFUSED(f"({fields.get(b'C')}) {fields.get(b'M')}"), fields.get(b"C")
            )
            if fields.get(b"V") in ("FATAL", "PANIC"):
                raise error
        elif kind == b"R" and body[:4] != b"\0\0\0\0":
            raise ServerError(
                SERVER_REFUSED(
                    f"the server at {stream.path} requires a password from its administrator"
                )
            )


def _postgres_row(body: bytes) -> tuple[str, ...]:
    (count,) = struct.unpack_from(">H", body)
    values, at = [], 2
    for _ in range(count):
        (size,) = struct.unpack_from(">i", body, at)
        at += 4
        values.append(body[at : at + max(size, 0)].decode(errors="replace"))
        at += max(size, 0)
    return tuple(values)
