"""Recognizes a server by the first bytes from its port: one of the expected kind, or another one.

MySQL: "Protocol::HandshakeV10" and ERR_Packet; PostgreSQL: "SSL Session Encryption" of its manual.
Other servers' first bytes were observed on their ports.
"""

from __future__ import annotations

import re

#: PostgreSQL's request for TLS, which it answers with one byte.
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
#: Ends a line for servers that wait for one.
END_OF_LINE = b"\r\n\r\n"


def questions(backend: str) -> tuple[bytes, ...]:
    """Return the bytes to send to a port, one after the other, until it answers. A MySQL server
    sends its greeting first, and gets time for it.
    """
    return (
        (SSL_REQUEST, END_OF_LINE) if backend == "postgresql" else (b"", SSL_REQUEST, END_OF_LINE)
    )


#: Names of the servers that can be recognized by their first bytes.
NAMES = {"mysql": "MySQL", "mariadb": "MariaDB", "postgresql": "PostgreSQL"}
_MOST = 40
_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"SSH-\d"), "SSH"),
    (re.compile(rb"HTTP/\d|<(?:!DOCTYPE|html)", re.IGNORECASE), "HTTP"),
    (re.compile(rb"\d{3}[ -].*(?:SMTP|mail)", re.IGNORECASE | re.DOTALL), "SMTP"),
    (re.compile(rb"-(?:ERR|NOAUTH|DENIED|LOADING)\b|\+PONG"), "Redis"),
    (re.compile(rb"[\x14-\x17]\x03[\x00-\x04]"), "TLS"),
)


def is_of(backend: str, said: bytes) -> bool:
    """Return whether a server of *backend* may begin with *said*: MySQL unrequested, PostgreSQL in
    answer to :data:`SSL_REQUEST`.
    """
    if backend == "postgresql":
        return _is_postgresqls(said)
    return _is_mysqls(said)


#: The postmaster's text when it can start no process for a client. It is in no packet
#: (``report_fork_failure_to_client``).
_NO_PROCESS = b"Ecould not fork new process for connection"


def _is_postgresqls(said: bytes) -> bool:
    # its answer, and then its error about the bytes behind the request
    if said[:1] == b"N" and said[1:2] == b"E":
        said = said[1:]
    elif said[:1] == b"S" and re.match(rb"[\x14-\x17]\x03", said[1:]):
        return True
    if said[:1] == b"E":  # an error: it is starting, say, or of a version without TLS
        is_packet = len(said) < 5 or 4 <= int.from_bytes(said[1:5], "big") < 30000
        return is_packet or said.startswith(_NO_PROCESS)
    return said in (b"S", b"N")


#: The maximum number of an error packet that answers a login.
_FIRST = 8


def _is_mysqls(said: bytes) -> bool:
    """Return whether *said* is a packet of MySQL's own. The greeting is the first of its session;
    an error may be a later one, because a proxy passes on its server's packet.
    """
    if len(said) < 5:  # cut short, unless it is PostgreSQL's
        return said not in (b"S", b"N")
    length = int.from_bytes(said[:3], "little")
    number, kind = said[3], said[4]
    is_begin = (number == 0 and kind in (9, 10)) or (number < _FIRST and kind == 0xFF)
    return 2 < length < 4096 and is_begin


def told(backend: str, said: bytes) -> str:
    """Describe a port that begins with *said* and does not belong to *backend*, in one line."""
    return f"answers, but is not a {NAMES[backend]} server: it sent {shown(said)}{_guess(said)}"


def shown(said: bytes) -> str:
    """Return the beginning of *said* in printable characters, in quotes."""
    line = said.splitlines()[0] if said.splitlines() else said
    cut = line[:_MOST]
    text = "".join(chr(each) if 32 <= each < 127 else f"\\x{each:02x}" for each in cut)
    return f'"{text}…"' if len(cut) < len(line) else f'"{text}"'


def _guess(said: bytes) -> str:
    names = [name for pattern, name in _OTHERS if pattern.match(said)]
    if not names and len(said) >= 5 and _is_mysqls(said):
        names = ["MySQL"]
    if not names and said in (b"S", b"N"):
        names = ["PostgreSQL"]
    return f" ({names[0]}?)" if names else ""
