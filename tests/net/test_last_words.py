"""net/last_words.py: the formats, any bytes at all, and what real servers leave."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.net.last_words import Words, parse, peek
from unbroken.net.liveness import Liveness, look


def mysql(payload: bytes, number: int = 0) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def mysql_error(code: int, text: bytes, state: bytes = b"#HY000") -> bytes:
    return mysql(b"\xff" + struct.pack("<H", code) + state + text)


def pg(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def pg_error(code: bytes, text: bytes) -> bytes:
    return pg(b"E", b"SFATAL\0VFATAL\0C" + code + b"\0M" + text + b"\0Fpostgres.c\0\0")


NOTICES = {
    "notice": pg(b"N", b"SNOTICE\0C00000\0Mhello\0\0"),
    "status": pg(b"S", b"TimeZone\0UTC\0"),
    "notification": pg(b"A", b"\0\0\0\x01news\0payload\0"),
}


@pytest.mark.parametrize("backend", ["mysql", "mariadb"])
def test_a_mysql_error_packet_is_understood(backend):
    data = mysql_error(4031, b"The client was disconnected by the server because of inactivity.")
    assert parse(data, backend) == Words(
        4031, "The client was disconnected by the server because of inactivity."
    )


def test_a_mysql_error_without_a_sqlstate_is_understood():
    assert parse(mysql_error(1040, b"Too many connections", b""), "mysql") == Words(
        1040, "Too many connections"
    )


def test_a_progress_packet_is_passed_over():
    progress = mysql(b"\xff\xff\xff\x01\x01\x02\x00\x00\x00")
    assert parse(progress, "mariadb") is None
    assert parse(progress + mysql_error(1927, b"Connection was killed"), "mariadb") == Words(
        1927, "Connection was killed"
    )


def test_a_compressed_mysql_error_is_understood():
    inner = mysql_error(1927, b"Connection was killed")
    assert parse(len(inner).to_bytes(3, "little") + b"\0" + b"\0\0\0" + inner, "mariadb") == Words(
        1927, "Connection was killed"
    )


@pytest.mark.parametrize("before", [*NOTICES.values(), b"".join(NOTICES.values()), b""])
def test_a_postgres_error_is_understood_behind_whatever_came_first(before):
    data = before + pg_error(b"57P01", b"terminating connection due to administrator command")
    assert parse(data, "postgresql") == Words(
        "57P01", "terminating connection due to administrator command"
    )


def test_a_postgres_error_is_understood_behind_an_answer_that_nobody_has_read():
    goodbye = pg_error(b"57P01", b"terminating connection due to administrator command")
    simple = pg(b"C", b"ROLLBACK\0") + pg(b"Z", b"I")
    extended = pg(b"1", b"") + pg(b"2", b"") + pg(b"n", b"") + simple
    for answer in (simple, extended, extended + extended):
        found = parse(answer + goodbye, "postgresql")
        assert found is not None
        assert found.code == "57P01"
        assert parse(answer, "postgresql") is None


def test_notices_alone_are_no_last_words():
    assert parse(b"".join(NOTICES.values()), "postgresql") is None


def test_tls_records_and_other_protocols_are_not_guessed_at():
    for record in (
        b"\x15\x03\x03\x00\x13" + b"\xff" * 19,
        b"\x17\x03\x03\x01\xff" + b"\xff" * 0x1FF,
    ):
        for backend in ("mysql", "mariadb", "postgresql", "sqlite", ""):
            assert parse(record, backend) is None


def test_the_text_is_one_line_of_bounded_length_without_control_characters():
    words = parse(
        pg_error(b"57P01", b" one\r\n\ttwo\x1b[31m\xc2\x85\xe2\x80\xa8three\xff" + b"x" * 5000),
        "postgresql",
    )
    assert words is not None
    assert words.text.startswith("one two [31m three")
    assert len(words.text) == 200
    assert words.text.isprintable()


@given(st.binary(max_size=300), st.sampled_from(["mysql", "mariadb", "postgresql"]))
def test_any_bytes_at_all_are_survived(data, backend):
    words = parse(data, backend)
    assert words is None or (len(words.text) <= 200 and words.text.isprintable())


@given(st.integers(1, 0xFFFE), st.binary(max_size=400), st.binary(max_size=40))
def test_any_mysql_error_is_found_and_a_part_of_it_never_is(code, text, rest):
    whole = mysql_error(code, text)
    found = parse(whole + rest, "mysql")
    assert found is not None
    assert found.code == code
    assert found.text.isprintable()
    for cut in range(len(whole)):
        assert parse(whole[:cut], "mysql") is None


@given(
    st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=5, max_size=5), st.binary(max_size=400)
)
def test_any_postgres_error_is_found_and_a_part_of_it_never_is(code, text):
    whole = pg_error(code.encode(), text.replace(b"\0", b""))
    found = parse(NOTICES["notice"] + whole, "postgresql")
    assert found is not None
    assert found.code == code
    assert found.text.isprintable()
    for cut in range(len(whole)):
        assert parse(whole[:cut], "postgresql") is None


# ---- real sockets and servers


def test_a_peek_takes_nothing_and_waits_for_nothing(tcp_pair, until):
    ours, theirs = tcp_pair()
    assert peek(ours.fileno(), "mariadb") is None
    data = mysql_error(4031, b"inactivity")
    theirs.sendall(data)
    until(lambda: peek(ours.fileno(), "mariadb") == Words(4031, "inactivity"))
    assert peek(ours.fileno(), "mariadb") == Words(4031, "inactivity")
    assert ours.recv(100) == data


def test_a_peek_at_a_closed_or_reset_socket_gives_nothing(tcp_pair, reset, until):
    ours, theirs = tcp_pair()
    reset(theirs)
    assert peek(ours.fileno(), "mysql") is None
    fd = ours.fileno()
    ours.close()
    assert peek(fd, "mysql") is None
    assert peek(-1, "mysql") is None


def test_what_mariadb_left_unread_is_understood(mariadb, sessions, until):
    conn = sessions.pymysql(mariadb)
    fd, number = sessions.fd(conn), conn.thread_id()
    conn._execute_command(3, "SELECT SLEEP(60)")  # COM_QUERY, whose answer nobody reads
    until(
        lambda: mariadb.admin(
            f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {number} AND INFO LIKE"
            " 'SELECT SLEEP%'"
        )
    )
    mariadb.admin(f"KILL QUERY {number}")
    until(lambda: peek(fd, "mariadb"))
    assert peek(fd, "mariadb") == Words(1317, "Query execution was interrupted")


def test_mariadb_says_that_it_is_full(new_mariadb, until):
    server = new_mariadb({"max_connections": 10})
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection((server.host, server.port)))
            for _ in range(12)
        ]
        until(lambda: peek(crowd[-1].fileno(), "mariadb"))
        assert peek(crowd[-1].fileno(), "mariadb") == Words(1040, "Too many connections")


def test_a_mariadb_that_ends_an_idle_session_says_nothing(mariadb, sessions, until):
    killed, idle = sessions.pymysql(mariadb), sessions.pymysql(mariadb)
    mariadb.admin(f"KILL {killed.thread_id()}")
    with idle.cursor() as cursor:
        cursor.execute("SET SESSION wait_timeout = 1")
    for conn in (killed, idle):
        fd = sessions.fd(conn)
        until(lambda fd=fd: look(fd) is Liveness.DEAD)
        assert peek(fd, "mariadb") is None
        assert look(fd) is Liveness.DEAD, "the peek must not hide the death"


@pytest.mark.parametrize(
    ("setting", "act", "code"),
    [
        ("SELECT 1", "SELECT pg_terminate_backend({})", "57P01"),
        ("SET idle_session_timeout = '100ms'", "", "57P05"),
        ("SET idle_in_transaction_session_timeout = '100ms'; BEGIN", "", "25P03"),
    ],
)
def test_postgres_says_why_it_ended_a_session(setting, act, code, postgres, sessions, until):
    conn = sessions.psycopg(postgres)
    fd, pid = conn.fileno(), conn.info.backend_pid
    for statement in setting.split("; "):
        conn.execute(statement)
    if act:
        postgres.admin(act.format(pid))
    until(lambda: peek(fd, "postgresql"))
    words = peek(fd, "postgresql")
    assert words is not None
    assert words.code == code
    assert words.text.startswith("terminating connection")


def test_a_postgres_that_shuts_down_says_so(new_postgres, sessions, until):
    server = new_postgres()
    conn = sessions.psycopg(server)
    server.stop()
    until(lambda: peek(conn.fileno(), "postgresql"))
    assert peek(conn.fileno(), "postgresql") == Words(
        "57P01", "terminating connection due to administrator command"
    )


def test_under_tls_the_words_are_not_understood(new_postgres, sessions, until):
    server = new_postgres(tls=True)
    conn = sessions.psycopg(server, sslmode="require")
    server.kill_sessions()
    until(lambda: look(conn.fileno()) is Liveness.DEAD)
    assert peek(conn.fileno(), "postgresql") is None
