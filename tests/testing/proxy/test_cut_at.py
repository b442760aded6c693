"""Cuts at a statement: each form, with text, prepared and pipelined statements, and where
statements cannot be read.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

import psycopg
import pymysql
import pytest
from pymysql.constants import COMMAND

from unbroken_drill import ProxyError

from .conftest import CLOSE_WAIT, CLOSED, Line, until

LOST = (pymysql.err.OperationalError, psycopg.OperationalError)


def insert_and_commit(conn: Any, table: str, number: int) -> None:
    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"INSERT INTO {table} VALUES ({number})")
        cursor.execute("COMMIT")


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_after_a_commit_the_row_is_stored_and_the_client_has_no_answer(
    plain_line: Line, how: Any
) -> None:
    table, client = plain_line.table(), plain_line.client()
    cut = plain_line.proxy.cut_at("COMMIT", how=how)
    heard = client.kernel.bytes_in
    client.ask("BEGIN")
    client.ask(f"INSERT INTO {table} VALUES (1)")
    before_commit = client.kernel.bytes_in
    assert before_commit > heard
    with pytest.raises(LOST):
        client.ask("COMMIT")
    until(lambda: client.kernel.state == (CLOSE_WAIT if how == "fin" else CLOSED))
    # the FIN counts as one byte
    assert client.kernel.bytes_in - before_commit == (1 if how == "fin" else 0)
    assert plain_line.stored(table) == [1]
    cut.wait(1)
    assert (cut.hits, cut.connections) == (1, (1,))
    until(lambda: not plain_line.server.sessions())
    insert_and_commit(plain_line.client().conn, table, 2)  # times=1: that was it
    assert plain_line.stored(table) == [1, 2]


def test_before_a_commit_the_row_is_not_stored_and_the_server_never_heard_of_it(
    plain_line: Line,
) -> None:
    table = plain_line.table()
    cut = plain_line.proxy.cut_at("COMMIT", before=True, times=2)
    for _ in range(2):
        client = plain_line.client()
        client.ask("BEGIN")
        client.ask(f"INSERT INTO {table} VALUES (1)")
        n = len(plain_line.proxy.connections)
        before = plain_line.info(n).to_server
        with pytest.raises(LOST):
            client.ask("COMMIT")
        assert plain_line.info(n).to_server == before
    until(lambda: not plain_line.server.sessions())
    assert plain_line.stored(table) == []
    assert cut.connections == (1, 2)
    insert_and_commit(plain_line.client().conn, table, 3)
    assert plain_line.stored(table) == [3]


@pytest.mark.parametrize("before", [False, True])
def test_a_statement_that_was_sent_before_the_call_is_not_cut(
    plain_line: Line, before: bool
) -> None:
    """Also if the proxy has not read it yet: a pool sends a COMMIT, and does not wait."""
    table, proxy, client = plain_line.table(), plain_line.proxy, plain_line.client()
    client.ask("BEGIN")
    client.ask(f"INSERT INTO {table} VALUES (1)")

    def send_and_call() -> Any:  # in the proxy's thread, which can read nothing between the two
        send(client.conn, "COMMIT")
        return proxy.cut_at("COMMIT", before=before)

    cut = proxy._do(send_and_call)
    until(lambda: plain_line.stored(table) == [1])
    assert cut.hits == 0
    other = plain_line.client()
    with pytest.raises(LOST):
        insert_and_commit(other.conn, table, 2)
    assert cut.connections == (2,)


def send(conn: Any, sql: str) -> None:
    """Send *sql* without waiting for the answer."""
    if isinstance(conn, psycopg.Connection):
        conn.pgconn.send_query(sql.encode())
    else:
        conn._execute_command(COMMAND.COM_QUERY, sql)


@pytest.mark.parametrize("before", [False, True])
def test_statements_in_autocommit_are_cut_at_by_their_beginning_or_a_pattern(
    plain_line: Line, before: bool
) -> None:
    table = plain_line.table()
    for number, statement in enumerate(
        [f"INSERT INTO {table}", re.compile(rf"(?i)into {table}\s.*\(1\)")]
    ):
        client = plain_line.client()
        cut = plain_line.proxy.cut_at(statement, before=before)
        with pytest.raises(LOST):
            client.ask(f"INSERT INTO {table} VALUES ({number})")
        cut.wait(1)
    until(lambda: not plain_line.server.sessions())
    assert plain_line.stored(table) == ([] if before else [0, 1])


@pytest.mark.parametrize("before", [False, True])
def test_a_prepared_statement_is_cut_at_when_it_is_executed(plain_line: Line, before: bool) -> None:
    table = plain_line.table()
    with ExitStack() as stack:
        execute = prepared(plain_line, table, stack)
        execute(1)
        execute(2)
        cut = plain_line.proxy.cut_at(f"INSERT INTO {table}", before=before)
        with pytest.raises(Exception):  # noqa: B017 - each driver's own
            execute(3)
        cut.wait(1)
    until(lambda: not plain_line.server.sessions())
    assert plain_line.stored(table) == ([1, 2] if before else [1, 2, 3])


def prepared(line: Line, table: str, stack: ExitStack) -> Any:
    """Something that executes one prepared INSERT, autocommitted, with a number."""
    if not line.is_mysql:
        client = line.client()
        return lambda number: client.conn.execute(
            f"INSERT INTO {table} VALUES (%s)", (number,), prepare=True
        )
    import mysql.connector

    server = line.server
    conn = stack.enter_context(
        mysql.connector.connect( host="127.0.0.1", port=line.proxy.port, user=server.user, password=server.password, database=server.database, autocommit=True, ssl_disabled=True, use_pure=True, ),  # noqa: E501
    )  # fmt: skip
    cursor = conn.cursor(prepared=True)
    return lambda number: cursor.execute(f"INSERT INTO {table} VALUES (%s)", (number,))


def test_in_a_pipeline_the_answers_before_it_arrive(servers: Any) -> None:
    with ExitStack() as stack:
        line = Line(servers("postgresql"), False, stack)
        table, client = line.table(), line.client()
        cut = line.proxy.cut_at(f"INSERT INTO {table} VALUES (2)")
        with pytest.raises(LOST), client.conn.pipeline() as pipeline:
            client.conn.execute(f"INSERT INTO {table} VALUES (1)")
            first = client.conn.execute("SELECT 41 + 1")
            pipeline.sync()
            client.conn.execute(f"INSERT INTO {table} VALUES (2)")
            pipeline.sync()
        assert first.fetchone() == (42,)
        assert cut.hits == 1
        assert line.stored(table) == [1, 2]


def test_a_cut_is_for_the_connections_that_were_meant_and_is_forgotten_when_healed(
    plain_line: Line,
) -> None:
    first, second = plain_line.client(), plain_line.client()
    cut = plain_line.proxy.cut_at("SELECT", on=2)
    assert first.ask() == 1
    with pytest.raises(LOST):
        second.ask()
    assert cut.connections == (2,)
    plain_line.proxy.cut_at("SELECT")
    plain_line.proxy.heal()
    assert first.ask() == 1
    with pytest.raises(
        ProxyError, match=r"no cut at 'SELECT' within 0\.01 s: 0 of 1; was it executed\?"
    ):
        plain_line.proxy.cut_at("SELECT").wait(0.01)


def test_a_cut_whose_answer_never_came_waits_for_the_next_statement(plain_line: Line) -> None:
    """The server ends the session before it has answered: that was no cut, and it is still to come,
    whatever was ordered meanwhile.
    """
    sleep = "SELECT SLEEP(30)" if plain_line.is_mysql else "SELECT pg_sleep(30)"
    cut = plain_line.proxy.cut_at("SELECT")
    client = plain_line.client()
    asked = client.in_background(sleep)
    until(lambda: cut.left == 0)
    plain_line.proxy.cut_at("DELETE")
    plain_line.server.kill_sessions()
    # MySQL's servers may answer the KILL with an error first, which is an answer
    until(lambda: cut.left == 1 or cut.hits)
    assert isinstance(asked.wait(), Exception)
    if not cut.hits:
        with pytest.raises(LOST):
            plain_line.client().ask()
    assert cut.hits == 1


def test_where_tls_hides_the_statements_that_is_said_at_once_and_never_silently_not_matched(
    servers: Any,
) -> None:
    for kind in ("mariadb", "postgresql"):
        with ExitStack() as stack:
            line = Line(servers(kind), True, stack)
            cut = line.proxy.cut_at("SELECT")  # nobody there yet
            client = line.client()
            (event,) = [event for event in line.proxy.events if event.name == "unreadable"]
            assert "the client uses TLS" in event.text
            assert client.ask() == 1  # it goes on, unread
            with pytest.raises(
                ProxyError, match="no cut at 'SELECT': connection 1: the client uses TLS"
            ):
                cut.wait(5)
            with pytest.raises(
                ProxyError, match=r"connection 1: the client uses TLS .* connect without TLS"
            ):
                line.proxy.cut_at("SELECT")
            line.proxy.cut_at("SELECT", on="new")  # not about that one


def test_where_the_protocol_is_another_that_is_said(servers: Any) -> None:
    with ExitStack() as stack:
        line = Line(servers("mariadb"), False, stack)
        line.protocol = "postgresql"
        line.proxy = line.before((line.server.host, line.server.port))
        line.client()
        assert any(
            event.name == "unreadable" and "does not speak PostgreSQL's protocol" in event.text
            for event in line.proxy.events
        )
