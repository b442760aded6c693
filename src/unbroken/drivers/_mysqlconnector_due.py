"""mysql-connector: the answer to a COMMIT or ROLLBACK that is read later, before anything else is
sent, or together with the answer to the next statement.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers._mysql_exchange import KEPT, LONGEST_TEXT, TEXTS
from unbroken.drivers._mysqlconnector_exchange import (
    CLOSE,
    PING,
    PREPARE,
    QUERY,
    out_of_step,
    refuse_if_busy,
    status_of,
)

#: Commands that are not reported to any transaction.
_IDLE = frozenset({PING, CLOSE})
_OK = 0
_HEADER = 4  #: bytes: the length of a packet (3) and its number
_SHORTEST = _HEADER + 3
#: The connector sets this flag if the server can take attributes with a statement. Then two numbers
#: precede each text: no attributes, in one set.
_TAKES_ATTRIBUTES = 1 << 27
_NO_ATTRIBUTES = b"\x00\x01"


def texts_of(conn: Any) -> deque[bytes | None]:
    """Return the last statements that were sent since no transaction was open. None stands for an
    unknown statement.
    """
    texts: deque[bytes | None] = conn.__dict__.setdefault("_seen_texts", deque([None], TEXTS))
    return texts


def forget(conn: Any) -> None:
    """Discard the state of *conn*, which is about to have another session: no answer is due there,
    and nothing is known.
    """
    conn._seen_due = None
    conn.__dict__.pop("_seen_texts", None)


def send_at_once(conn: Any) -> None:
    """Send data on *conn*, of the pure Python form, without delay. By default the kernel holds a
    statement back until the peer has acknowledged the ROLLBACK before it.
    """
    with suppress(OSError):  # a unix socket, which holds nothing back
        conn._socket.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _head(conn: Any) -> bytes:
    """Return the bytes that precede the text of a statement without attributes."""
    return _NO_ATTRIBUTES if conn._client_flags & _TAKES_ATTRIBUTES else b""


def note(conn: Any, command: int, args: tuple[Any, ...]) -> None:
    """Note a command that is about to be sent.

    If it may change the effect of a COMMIT or ROLLBACK on this session, the session cannot be
    restored.
    """
    if command in _IDLE:
        return
    texts, status = texts_of(conn), status_of(conn)
    if status is not None and not status & _mysql.IN_TRANSACTION:
        texts.clear()
    sent = args[0] if command in (QUERY, PREPARE) and args else None
    if not isinstance(sent, bytes | bytearray) or len(sent) > LONGEST_TEXT:
        texts.append(None)
        _mysql.unknown_text(None, conn)
        return
    head, sent = _head(conn) if command == QUERY else b"", bytes(sent)
    text = sent[len(head) :] if sent.startswith(head) else None
    texts.append(text if command == QUERY else None)
    if _mysql.changes_ends(sent if text is None else text, conn):
        _mysql.note_chains(conn)
        _mysql.note_move(conn, _mysql.ANOTHER_USER)


def may_follow(conn: Any, command: int, args: tuple[Any, ...], how: dict[str, Any]) -> bool:
    """Return whether *command* may be sent before the answer that is due was read. It must be a
    statement, sent in the connector's usual way.
    """
    return (
        conn._seen_due is not None
        and conn._seen_flies
        and command == QUERY
        and len(args) == 1
        and how.keys() <= {"read_timeout", "write_timeout"}
    )


def to_leave(conn: Any, sql: str) -> tuple[bytes, int]:
    """Return the bytes to send for *sql*, a COMMIT or ROLLBACK, and the server's status once it is
    answered.

    Only called if the status is known.
    """
    status = status_of(conn)
    if status is None:
        raise out_of_step()
    return _head(conn) + sql.encode(), status & ~(_mysql.IN_TRANSACTION | _mysql.IN_READ_ONLY)


def left(conn: Any, after: int) -> None:
    """Note that the command was sent, and that the server's status will be *after*."""
    conn._seen_due = after
    texts_of(conn).clear()
    conn._seen_busy = False
    conn._handle_server_status(after)  # last: it marks the exchange as complete


def _heard(conn: Any, packet: Any, *, behind: bool) -> int:
    """Return the status in *packet*, the answer to that command.

    Raises the error of a lost connection if the packet is an error, or if a statement was sent
    *behind* it and the answer is not the expected one.
    """
    if packet is None or len(packet) < _SHORTEST or packet[_HEADER] != _OK:
        raise out_of_step()
    status = int(conn._protocol.parse_ok(packet)["status_flag"])
    if status & _mysql.MORE_RESULTS or (behind and (status ^ conn._seen_due) & KEPT):
        raise out_of_step()
    conn._seen_due = None
    return status


def _begin(conn: Any) -> None:
    refuse_if_busy(conn)
    conn._seen_status = None
    conn._seen_busy = True


def _end(conn: Any, status: int) -> None:
    conn._seen_busy = False
    conn._handle_server_status(status)  # last, as above


def take(conn: Any) -> None:
    """Read the answer that is due, if there is one."""
    if conn._seen_due is not None:
        _begin(conn)
        _end(conn, _heard(conn, conn._socket.recv(conn._read_timeout), behind=False))


async def take_async(conn: Any) -> None:
    """Do the same as :func:`take`."""
    if conn._seen_due is not None:
        _begin(conn)
        _end(conn, _heard(conn, await conn._socket.read(conn._read_timeout), behind=False))


def behind(conn: Any, send: Callable[..., Any], how: dict[str, Any]) -> Any:
    """Send a statement behind the command whose answer is due. Return the first packet of the
    answer to that statement.
    """
    send(**how, expect_response=False)
    limit = how.get("read_timeout") or conn._read_timeout
    _heard(conn, conn._socket.recv(limit), behind=True)
    return conn._socket.recv(limit)


async def behind_async(conn: Any, send: Callable[..., Awaitable[Any]], how: dict[str, Any]) -> Any:
    """Do the same as :func:`behind`."""
    await send(**how, expect_response=False)
    limit = how.get("read_timeout") or conn._read_timeout
    _heard(conn, await conn._socket.read(limit), behind=True)
    return await conn._socket.read(limit)
