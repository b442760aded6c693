"""The few parts of MongoDB's protocol that an administrator needs: one command over a unix socket,
and its answer.

Sources: the MongoDB manual, "MongoDB Wire Protocol" (OP_MSG), and bsonspec.org for the types in
commands.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from unbroken_drill.messages import SERVER_REFUSED
from unbroken_drill.servers.errors import ServerError
from unbroken_drill.servers.wire import Stream

_OP_MSG = 2013


def mongo_command(
    path: str, command: Mapping[str, Any], database: str = "admin", timeout: float = 30.0
) -> dict[str, Any]:
    """Run *command* in *database* and return its answer. Raises ServerError, with the server's
    code, if it refuses.
    """
    body = b"\0" * 5 + encode({**command, "$db": database})
    with Stream(path, timeout) as stream:
        stream.send(struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body)
        (size,) = struct.unpack("<i", stream.exactly(4))
        answer, _ = decode(stream.exactly(size - 4)[12 + 5 :], 0)
    if not answer.get("ok"):
        raise ServerError(
            SERVER_REFUSED(f"({answer.get('code')}) {answer.get('errmsg')}"), answer.get("code")
        )
    return answer


def encode(document: Mapping[str, Any]) -> bytes:
    """Return *document* in BSON: text, numbers, booleans, None, documents and lists of them."""
    items = b"".join(_element(name, value) for name, value in document.items())
    return struct.pack("<i", len(items) + 5) + items + b"\0"


def _element(name: str, value: Any) -> bytes:
    kind, data = _value(value)
    return kind + name.encode() + b"\0" + data


def _value(value: Any) -> tuple[bytes, bytes]:
    if isinstance(value, bool):
        return b"\x08", bytes([value])
    if value is None:
        return b"\x0a", b""
    if isinstance(value, int):
        return b"\x12", struct.pack("<q", value)
    if isinstance(value, float):
        return b"\x01", struct.pack("<d", value)
    if isinstance(value, str):
        text = value.encode() + b"\0"
        return b"\x02", struct.pack("<i", len(text)) + text
    if isinstance(value, Mapping):
        return b"\x03", encode(value)
    return b"\x04", encode({str(index): item for index, item in enumerate(value)})


#: These types keep their bytes, because nothing reads them: object ids, dates, timestamps, 128-bit
#: decimals. The smallest and the greatest key have none.
_SIZES = {0x07: 12, 0x09: 8, 0x11: 8, 0x13: 16, 0xFF: 0, 0x7F: 0, 0x06: 0}


def decode(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """Return the document that begins at *at*, and where it ends."""
    (size,) = struct.unpack_from("<i", data, at)
    end, at, out = at + size - 1, at + 4, {}
    while at < end:
        kind, stop = data[at], data.index(b"\0", at + 1)
        out[data[at + 1 : stop].decode()], at = _decoded(kind, data, stop + 1)
    return out, end + 1


def _decoded(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind == 0x01:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind in (0x02, 0x0D, 0x0E):
        (size,) = struct.unpack_from("<i", data, at)
        return data[at + 4 : at + 3 + size].decode(errors="replace"), at + 4 + size
    if kind in (0x03, 0x04):
        document, after = decode(data, at)
        return (list(document.values()) if kind == 0x04 else document), after
    if kind == 0x05:
        (size,) = struct.unpack_from("<i", data, at)
        return data[at + 5 : at + 5 + size], at + 5 + size
    if kind == 0x08:
        return bool(data[at]), at + 1
    if kind == 0x0A:
        return None, at
    if kind == 0x10:
        return struct.unpack_from("<i", data, at)[0], at + 4
    if kind == 0x12:
        return struct.unpack_from("<q", data, at)[0], at + 8
    if kind in _SIZES:
        return data[at : at + _SIZES[kind]], at + _SIZES[kind]
    raise ServerError(
        SERVER_REFUSED(
            f"the server's answer holds a value of kind {kind:#x}, which this client cannot read"
        )
    )
