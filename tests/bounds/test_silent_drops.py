"""A network that loses everything and tells nobody: each body answers or fails in a bounded time,
and recovers by itself.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import unbroken
from unbroken.mongo import MongoClient
from unbroken.net.borrow import borrowed
from unbroken_drill import FaultProxy

from .bodies import KINDS
from .conftest import Crowd, Outcome

LIMIT = 2.0
#: What a busy machine may add, beside the kernel's own rounding.
SLACK = 3.0


def table_of(crowd: Crowd, servers: Callable[[bool], Any]) -> str:
    name = "kept"
    for is_mysql in {KINDS[name].is_mysql for name in crowd.bodies}:
        server = servers(is_mysql)
        server.admin(f"DROP TABLE IF EXISTS {name}")
        server.admin(f"CREATE TABLE {name} (who VARCHAR(80) NOT NULL)")
        if not is_mysql:
            server.admin(f'ALTER TABLE {name} OWNER TO "{server.user}"')
    return name


def later(outcomes: dict[str, Outcome], seconds: float) -> dict[str, str]:
    return {name: str(outcome) for name, outcome in outcomes.items() if outcome.seconds > seconds}


def test_a_statement_into_a_silent_network_ends_within_the_send_timeout_with_every_body(
    crowd: Any,
) -> None:
    # One connection each: on a busy machine a second one may have been opened beside the first,
    # which falls silent as well
    made: Crowd = crowd(list(KINDS), send_timeout=LIMIT, max_size=1)

    def ask(name: str, body: Any) -> Any:
        made.proxies[name].blackhole("lose", on="existing")
        return body.work("SELECT 2")

    outcomes = made.all(ask)
    assert later(outcomes, LIMIT + SLACK) == {}
    lost = {
        name: str(o)
        for name, o in outcomes.items()
        if o.error is not None and isinstance(o.error, unbroken.PoolTimeoutError)
    }
    assert lost == {}
    again = made.all(lambda _name, body: body.work("SELECT 3"))
    assert {name: str(o) for name, o in again.items() if o.value != 3} == {}


def test_a_commit_into_a_silent_network_is_unknown_with_every_body(
    crowd: Any, servers: Any
) -> None:
    made: Crowd = crowd(list(KINDS), send_timeout=LIMIT, max_size=2)
    table = table_of(made, servers)

    def write(name: str, body: Any) -> Any:
        return body.work(
            f"INSERT INTO {table} VALUES ('{name}')",
            lambda: made.proxies[name].blackhole("lose", on="existing"),
        )

    outcomes = made.all(write)
    assert later(outcomes, LIMIT + SLACK) == {}
    wrong = {
        name: str(o)
        for name, o in outcomes.items()
        if not isinstance(o.error, unbroken.CommitUnknownError)
    }
    assert wrong == {}


def test_the_silence_is_found_also_while_an_answer_is_awaited_that_takes_long(crowd: Any) -> None:
    """Nothing is unacknowledged then: it is keepalive that finds out."""
    made: Crowd = crowd(
        ["pymysql", "mysqldb", "psycopg2", "async-asyncpg"], send_timeout=LIMIT, max_size=1
    )

    def ask(name: str, body: Any) -> Any:
        timer = threading.Timer(0.5, lambda: made.proxies[name].blackhole("lose", on="existing"))
        timer.start()
        return body.work(
            "SELECT SLEEP(30)" if KINDS[name].is_mysql else "SELECT pg_sleep(30)::text"
        )

    outcomes = made.all(ask)
    assert {name: str(o) for name, o in outcomes.items() if o.error is None} == {}
    assert later(outcomes, LIMIT + 1.5 + SLACK) == {}


BIG = f"SELECT LENGTH('{'x' * 12_000_000}')"


def test_a_server_that_answers_but_does_not_read_is_not_taken_for_a_silent_network(
    crowd: Any,
) -> None:
    """As one that waits for a lock in the middle of a COPY: the kernel's user timeout alone would
    end it.
    """
    made: Crowd = crowd(
        ["pymysql", "mysqldb", "psycopg", "async-asyncpg", "sqlalchemy-pg8000"],
        send_timeout=1.0,
        max_size=1,
    )

    def ask(name: str, body: Any) -> Any:
        made.proxies[name].stall(way="up")
        timer = threading.Timer(4.0, made.proxies[name].heal)
        timer.start()
        return body.work(BIG)

    outcomes = made.all(ask)
    assert {name: str(o) for name, o in outcomes.items() if o.value != 12_000_000} == {}


def test_a_server_that_did_not_read_and_then_falls_silent_is_found(crowd: Any) -> None:
    made: Crowd = crowd(["pymysql", "psycopg"], send_timeout=1.0, max_size=1)

    def ask(name: str, body: Any) -> Any:
        made.proxies[name].stall(way="up")
        timer = threading.Timer(2.0, lambda: made.proxies[name].blackhole("lose", on="existing"))
        timer.start()
        return body.work(BIG)

    outcomes = made.all(ask)
    assert {
        name: str(o) for name, o in outcomes.items() if o.error is None or o.seconds < 2.0
    } == {}
    assert later(outcomes, 2.0 + 2 * 1.0 + SLACK) == {}


def test_every_connection_of_a_pool_and_of_mongodbs_client_has_the_kernels_bounds(
    crowd: Any, mongodb: Any
) -> None:
    made: Crowd = crowd(list(KINDS))
    made.come_to_rest()
    ports = {proxy.port: name for name, proxy in made.proxies.items()}
    with (
        FaultProxy((mongodb.host, mongodb.port)) as proxy,
        MongoClient(proxy.url(mongodb.url(None, directConnection="true"))) as client,
    ):
        client.admin.command("ping")
        ports[proxy.port] = "mongodb"
        found = list(bounds_of_sockets(set(ports)))
    assert {ports[port] for port, _ in found} == set(ports.values())
    assert {bounds for _, bounds in found} == {(False, 1, 6, 2, 12000)}


def bounds_of_sockets(ports: set[int]) -> Iterator[tuple[int, tuple[bool, ...]]]:
    """For each of this process's sockets to one of *ports*: whether a started program inherits it,
    keepalive, user timeout.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), borrowed(int(name)) as sock:
            port = sock.getpeername()[1] if sock.family == socket.AF_INET else 0
            if port in ports:
                options = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
                options += [
                    sock.getsockopt(socket.IPPROTO_TCP, each)
                    for each in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
                ]
                yield port, (os.get_inheritable(int(name)), *options)


@pytest.mark.soak
def test_the_same_with_default_settings(crowd: Any) -> None:
    made: Crowd = crowd(list(KINDS))

    def ask(name: str, body: Any) -> Any:
        made.proxies[name].blackhole("lose", on="existing")
        return body.work("SELECT 2")

    assert later(made.all(ask), 20.0) == {}
    again = made.all(lambda _name, body: body.work("SELECT 3"))
    assert {name: str(o) for name, o in again.items() if o.value != 3} == {}
