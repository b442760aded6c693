"""The readers of MySQL's and PostgreSQL's protocols, fed with anything, in any pieces."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken_drill.proxy import mysql, postgresql
from unbroken_drill.proxy.cuts import Cut, Reader
from unbroken_drill.proxy.mysql import MySQLReader
from unbroken_drill.proxy.postgresql import PostgreSQLReader
from unbroken_drill.proxy.statement_tap import StatementTap

READERS = [MySQLReader, PostgreSQLReader]
Talk = list[tuple[str, bytes]]  #: who says what, in turn: "up" or "down"


def packet(number: int, body: bytes) -> bytes:
    return struct.pack("<I", len(body))[:3] + bytes([number]) + body


def greeting(flags: int = 0xFFFFFFFF) -> bytes:
    low, high = struct.pack("<H", flags & 0xFFFF), struct.pack("<H", flags >> 16)
    return packet(
        0,
        b"\x0a8.0.36\0"
        + b"\1\0\0\0"
        + b"12345678\0"
        + low
        + b"\x2d\2\0"
        + high
        + b"\x15"
        + bytes(10)
        + b"123456789012\0",
    )


def login(flags: int = 0x200) -> bytes:
    return packet(1, struct.pack("<IIB23x", flags, 1 << 24, 45) + b"app\0\0")


OK = b"\0\0\0\2\0\0\0"
MYSQL_LOGIN: Talk = [("down", greeting()), ("up", login()), ("down", packet(2, OK))]


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def startup(code: int = 196608, body: bytes = b"user\0app\0\0") -> bytes:
    return struct.pack(">II", len(body) + 8, code) + body


READY = message(b"Z", b"I")
PG_LOGIN: Talk = [
    ("up", startup()),
    ("down", message(b"R", bytes(4)) + message(b"S", b"a\0b\0") + READY),
]
DONE = message(b"C", b"COMMIT\0")


def heard(
    reader: Reader, talk: Talk, cut: Callable[[bytes], list[bytes]] = lambda data: [data]
) -> tuple[list[str], list[tuple[int, str]]]:
    """Statements, and which answers began and ended, in the order they were noticed."""
    texts: list[str] = []
    answers: list[tuple[int, str]] = []
    for who, data in talk:
        for piece in cut(data):
            if who == "up":
                for spoken in reader.up(piece):
                    assert 0 <= spoken.start < spoken.end <= len(piece)
                    texts.append(spoken.text)
            else:
                for answer in reader.down(piece):
                    assert 0 <= answer.at <= len(piece)
                    answers.append((answer.ticket, "end" if answer.complete else "begin"))
    return texts, answers


MYSQL_TALKS: dict[str, tuple[Talk, list[str]]] = {
    "a text": ([*MYSQL_LOGIN, ("up", packet(0, b"\x03COMMIT")), ("down", packet(1, OK))], ["COMMIT"]),  # noqa: E501
    "prepared": ( [ *MYSQL_LOGIN, ("up", packet(0, b"\x16INSERT INTO t VALUES (?)")), ("down", packet(1, b"\0\7\0\0\0\0\0\1\0\0\0\0")), ("up", packet(0, b"\x17\7\0\0\0\0\1\0\0\0")), ("down", packet(1, OK)), ("up", packet(0, b"\x19\7\0\0\0") + packet(0, b"\x03COMMIT")), ("down", packet(1, OK)), ], ["INSERT INTO t VALUES (?)", "COMMIT"], ),  # noqa: E501
    "executed before the prepare is answered": ( [ *MYSQL_LOGIN, ("up", packet(0, b"\x16COMMIT") + packet(0, b"\xfa\xff\xff\xff\xff\0\0")), ("down", packet(1, b"\0\7\0\0\0\0\0\0\0\0\0\0") + packet(1, OK)), ], ["COMMIT"], ),  # noqa: E501
    "rows, then more": ( [ *MYSQL_LOGIN, ("up", packet(0, b"\x03SELECT 1")), ("down", packet(1, b"\1") + packet(2, b"def") + packet(3, b"\xfe\0\0\2\0") + packet(4, b"\x011") + packet(5, b"\xfe\0\0\2\0")), ("up", packet(0, b"\x0e")), ("down", packet(1, OK)), ("up", packet(0, b"\x03commit;")), ("down", packet(1, OK)), ], ["SELECT 1", "commit;"], ),  # noqa: E501
}  # fmt: skip
ATTRIBUTES = MySQLReader()  # a login in which query attributes are agreed upon
PG_TALKS: dict[str, tuple[Talk, list[str]]] = {
    "a text": ([*PG_LOGIN, ("up", message(b"Q", b"COMMIT\0")), ("down", DONE + READY)], ["COMMIT"]),
    "extended": ( [ *PG_LOGIN, ("up", message(b"P", b"s\0INSERT INTO t VALUES ($1)\0\0\0") + message(b"D", b"Ss\0") + message(b"S")), ("down", message(b"1") + message(b"t", b"\0\0") + message(b"n") + READY), ("up", message(b"B", b"\0s\0\0\0\0\0\0\0") + message(b"E", b"\0\0\0\0\0") + message(b"S")), ("down", message(b"2") + message(b"C", b"INSERT 0 1\0") + READY), ("up", message(b"Q", b"COMMIT\0")), ("down", DONE + READY), ], ["INSERT INTO t VALUES ($1)", "COMMIT"], ),  # noqa: E501
    "many at once": ( [ *PG_LOGIN, ("up", message(b"P", b"\0BEGIN\0\0\0") + message(b"B", b"\0\0\0\0\0\0\0\0") + message(b"E", b"\0\0\0\0\0") + message(b"S") + message(b"P", b"\0COMMIT\0\0\0") + message(b"B", b"\0\0\0\0\0\0\0\0") + message(b"E", b"\0\0\0\0\0") + message(b"S")), ("down", message(b"1") + message(b"2") + message(b"C", b"BEGIN\0") + READY + message(b"1") + message(b"2") + DONE + READY), ], ["BEGIN", "COMMIT"], ),  # noqa: E501
    "the server has no TLS": ( [("up", startup(80877103, b"")), ("down", b"N"), *PG_LOGIN, ("up", message(b"Q", b"COMMIT\0")), ("down", DONE + READY)], ["COMMIT"], ),  # noqa: E501
}  # fmt: skip
TALKS = [
    pytest.param(MySQLReader, *talk, id=f"mysql {name}") for name, talk in MYSQL_TALKS.items()
] + [
    pytest.param(PostgreSQLReader, *talk, id=f"postgresql {name}")
    for name, talk in PG_TALKS.items()
]


@pytest.mark.parametrize(("reader", "talk", "texts"), TALKS)
def test_statements_are_read_and_each_ones_answer_is_known(
    reader: type[Any], talk: Talk, texts: list[str]
) -> None:
    found, answers = heard(made := reader(), talk)
    assert found == texts
    assert made.unreadable is None
    begun = [ticket for ticket, what in answers if what == "begin"]
    assert begun == [ticket for ticket, what in answers if what == "end"]
    assert len(begun) >= len(texts)


@pytest.mark.parametrize(("reader", "talk", "texts"), TALKS)
@given(data=st.data())
def test_the_pieces_in_which_a_stream_comes_make_no_difference(
    reader: type[Any], talk: Talk, texts: list[str], data: Any
) -> None:
    def cut(chunk: bytes) -> list[bytes]:
        places = sorted(data.draw(st.sets(st.integers(1, max(1, len(chunk) - 1)), max_size=6)))
        return [
            chunk[a:b] for a, b in zip([0, *places], [*places, len(chunk)], strict=True) if a < b
        ]

    assert heard(reader(), talk, cut) == heard(reader(), talk)
    assert heard(reader(), talk, lambda chunk: [bytes([each]) for each in chunk]) == heard(
        reader(), talk
    )


@pytest.mark.parametrize("reader", READERS)
@given(
    talk=st.lists(st.tuples(st.sampled_from(["up", "down"]), st.binary(max_size=200)), max_size=20),
    logged_in=st.booleans(),
)
def test_no_bytes_make_a_reader_raise(reader: type[Any], talk: Talk, logged_in: bool) -> None:
    before = (MYSQL_LOGIN if reader is MySQLReader else PG_LOGIN) if logged_in else []
    heard(reader(), before + talk)


@given(bodies=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=80)), max_size=12))
def test_no_mysql_command_makes_the_reader_raise(bodies: list[tuple[int, bytes]]) -> None:
    talk = [("up", packet(0, bytes([kind]) + body)) for kind, body in bodies]
    heard(
        MySQLReader(),
        [("down", greeting()), ("up", login(0x8000200)), ("down", packet(2, OK)), *talk],
    )


@given(
    bodies=st.lists(
        st.tuples(st.sampled_from(b"QPBESFHCDXdcf"), st.binary(max_size=80)), max_size=12
    )
)
def test_no_postgresql_message_makes_the_reader_raise(bodies: list[tuple[int, bytes]]) -> None:
    heard(
        PostgreSQLReader(),
        [
            *PG_LOGIN,
            *(("up", message(bytes([kind]), body)) for kind, body in bodies),
            ("down", READY * 5),
        ],
    )


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "talk", "why"),
    [
        (
            MySQLReader,
            [("down", greeting()), ("up", packet(1, struct.pack("<IIB23x", 0xA00, 1 << 24, 45)))],
            mysql.TLS,
        ),
        (MySQLReader, [("down", greeting()), ("up", login(0x220))], mysql.COMPRESSED),
        (MySQLReader, [("down", greeting()), ("up", login(0x4000200))], mysql.COMPRESSED),
        (MySQLReader, [("down", packet(0, b"SSH-2.0-OpenSSH"))], mysql.FOREIGN),
        (PostgreSQLReader, [("up", startup(80877103, b"")), ("down", b"S")], postgresql.TLS),
        (PostgreSQLReader, [("up", startup(80877104, b"")), ("down", b"G")], postgresql.GSS),
        (PostgreSQLReader, [("up", b"\x16\3\1\2\0\1")], postgresql.TLS),
        (PostgreSQLReader, [("up", b"GET / HTTP/1.1\r\n\r\n")], postgresql.FOREIGN),
        (PostgreSQLReader, [("up", startup(12345678))], postgresql.FOREIGN),
    ],
)
def test_what_cannot_be_read_is_said(reader: type[Any], talk: Talk, why: str) -> None:
    heard(made := reader(), talk)
    assert made.unreadable == why
    assert heard(made, [("up", b"\x07\0\0\0\x03COMMIT"), ("up", message(b"Q", b"COMMIT\0"))]) == (
        [],
        [],
    )


def test_a_server_without_compression_is_read_though_the_client_would_compress() -> None:
    made = MySQLReader()
    texts, _ = heard(
        made,
        [
            ("down", greeting(0xFFFFFFFF & ~0x4000020)),
            ("up", login(0x220)),
            ("up", packet(0, b"\x03COMMIT")),
        ],
    )
    assert (texts, made.unreadable) == (["COMMIT"], None)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (b"\x03\0\1", "COMMIT"),
        (b"\x03\1\1\0\1\x08\0\1n" + struct.pack("<q", 7), "COMMIT"),  # one attribute, n=7
        (b"\x03\2\1\1\1\x06\0\1a\xfe\0\1b\3xyz", "COMMIT"),  # one that is NULL, one text
        (b"\x03\1\1\0\1\x0c\0\1d\4\xe8\7\1\1", "COMMIT"),  # a date
    ],
)
def test_query_attributes_before_the_text_are_skipped(before: bytes, text: str) -> None:
    login_with = [("down", greeting()), ("up", login(0x8000200)), ("down", packet(2, OK))]
    assert heard(MySQLReader(), [*login_with, ("up", packet(0, before + b"COMMIT"))])[0] == [text]


def test_a_continued_packet_is_one_statement() -> None:
    reader = MySQLReader()
    heard(reader, MYSQL_LOGIN)
    long = packet(0, b"\x03INSERT INTO t" + b" " * (0xFFFFFF - 14)) + packet(1, b"VALUES (1)")
    assert [spoken.text[:13] for spoken in reader.up(long)] == ["INSERT INTO t"]
    assert [spoken.text for spoken in reader.up(packet(0, b"\x03COMMIT"))] == ["COMMIT"]


# -- what passes at a cut --------------------------------------------------------------------------


def cut_at(statement: Any, **more: Any) -> Cut:
    return Cut(
        statement, **({"before": False, "times": 1, "on": "all", "how": "fin", "count": 0} | more)
    )


@pytest.mark.parametrize(
    ("statement", "text", "hit"),
    [
        ("COMMIT", "COMMIT", True),
        ("COMMIT", " commit ;", True),
        ("COMMIT", "COMMITTED", False),
        ("COMMIT", "SELECT 'COMMIT'", False),
        ("insert into rows", "INSERT  INTO\n rows(n) VALUES (1)", True),
        ("insert into rows", "INSERT INTO rows_2 VALUES (1)", False),
        (re.compile(r"INTO \w+_2"), "INSERT INTO rows_2 VALUES (1)", True),
        (re.compile("commit"), "COMMIT", False),
    ],
)
def test_a_text_begins_a_statement_and_a_pattern_is_found_in_it(
    statement: Any, text: str, hit: bool
) -> None:
    assert cut_at(statement).matches(1, text) is hit


@pytest.mark.parametrize(
    ("on", "meant"), [("all", [1, 2, 3]), ("existing", [1, 2]), ("new", [3]), (2, [2])]
)
def test_a_cut_covers_the_connections_that_were_meant(on: Any, meant: list[int]) -> None:
    cut = cut_at("COMMIT", on=on, count=2)
    assert [n for n in (1, 2, 3) if cut.matches(n, "COMMIT")] == meant


@given(data=st.data())
def test_the_client_never_hears_a_byte_of_the_answer_and_everything_before_it(data: Any) -> None:
    """Two batches at once: the first one's answer passes whole, of the second one's nothing,
    whatever the pieces.
    """
    tap, cut = StatementTap(1, PostgreSQLReader()), cut_at("COMMIT")
    talk = PG_TALKS["many at once"][0]
    for who, said in talk[:-1]:
        passed, due = tap.up(said, [cut]) if who == "up" else tap.down(said)
        assert (passed, due) == (said, None)
    answer = talk[-1][1]
    first = answer.index(READY) + len(READY)
    places = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1), max_size=8)))
    out, found = b"", None
    for a, b in zip([0, *places], [*places, len(answer)], strict=True):
        passed, found = tap.down(answer[a:b])
        out += passed
    assert (out, found) == (answer[:first], cut)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_before_a_statement_its_last_byte_never_passes(size: int) -> None:
    for reader, talk in (
        (MySQLReader, MYSQL_TALKS["rows, then more"][0]),
        (PostgreSQLReader, PG_TALKS["extended"][0]),
    ):
        tap, cut, whole, passed = StatementTap(1, reader()), cut_at("COMMIT", before=True), b"", b""
        due: Cut | None = None
        for who, said in talk:
            for at in range(0, len(said), size):
                if who == "down":
                    tap.down(said[at : at + size])
                    continue
                passing, due = tap.up(said[at : at + size], [cut])
                whole, passed = whole + said[at : at + size], passed + passing
                if due:
                    break
            if due:
                break
        assert due is cut
        assert whole.startswith(passed)
        assert len(passed) < len(whole)
        assert b"commit" not in whole[: len(passed)].lower()[:-6]


def test_a_cut_whose_answer_never_came_is_for_another_connection() -> None:
    tap, cut = StatementTap(1, MySQLReader()), cut_at("COMMIT")
    for who, said in [*MYSQL_LOGIN, ("up", packet(0, b"\x03COMMIT"))]:
        assert (tap.up(said, [cut]) if who == "up" else tap.down(said)) == (said, None)
    assert cut.left == 0
    tap.give_back()
    assert cut.left == 1
