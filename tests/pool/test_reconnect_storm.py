"""Many pools that know nothing of each other before one server that is stopped and started: the
server's own count tells each how many there are.

So many as matter do not run here. What all make together is set so low that a few pools show it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest

import unbroken
from unbroken.brain import pace
from unbroken.pool import knowledge
from unbroken.pool.servers import Server

from .test_outage import accepting

POOLS = 24
RATE = 80.0  #: attempts a second of all of them together
BEFORE = POOLS / (sum(pace.REFUSED_PACE) / 2)  #: … at the pace of one that is alone

MAKES = {"postgresql": ("new_postgres", "psycopg"), "mariadb": ("new_mariadb", "pymysql")}


@pytest.fixture(params=sorted(MAKES))
def make(request):
    """What starts a server of the test's own, and the driver for it."""
    fixture, driver = MAKES[request.param]
    return request.getfixturevalue(fixture), driver


@pytest.fixture
def server(make):
    return make[0]({"max_connections": 200})


@pytest.fixture
def pools(make, server, monkeypatch):
    """Pools with a record of the server each, as in processes of their own."""
    monkeypatch.setattr(knowledge, "server_of", lambda *_: Server())
    monkeypatch.setattr(pace, "REFUSED_RATE", RATE)
    monkeypatch.setattr(pace, "BUSY_RATE", RATE)
    url = server.url(make[1])
    made = [
        unbroken.Pool(url, max_size=1, outage_wait=60, acquire_timeout=60) for _ in range(POOLS)
    ]
    yield made
    for pool in made:
        pool.close()


def ask(conn):
    with conn.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()


def crowd(pool):
    return pool._state.server.outage.crowd


def failures(pools):
    return sum(pool.stats().connect_failures for pool in pools)


def test_a_server_says_how_many_there_are_and_all_together_ask_it_no_more_often_than_a_few_would(
    server, pools, until
):
    served: list[list[float]] = [[] for _ in range(POOLS)]
    stop = threading.Event()

    def user(number):
        while not stop.is_set():
            pools[number].run(ask)
            served[number].append(time.monotonic())
            stop.wait(0.02)

    threads = [threading.Thread(target=user, args=(number,)) for number in range(POOLS)]
    for thread in threads:
        thread.start()
    try:
        # the first to ask have not seen all: each asks again when it has grown, or after a minute
        until(lambda: all(crowd(pool).number is not None for pool in pools), 20)
        for pool in pools:
            crowd(pool).next_count = 0.0
        until(lambda: all(POOLS <= crowd(pool).size <= 2 * POOLS for pool in pools), 20)
        server.stop()
        until(lambda: all(pool.stats().away_for > 0.5 for pool in pools), 20)
        before, began = failures(pools), time.monotonic()
        until(lambda: time.monotonic() - began >= 2.0)
        rate = (failures(pools) - before) / (time.monotonic() - began)
        probe, back = accepting(server)
        server.start()
        probe.join(30)
        until(lambda: all(each[-1] > back[0] for each in served), 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert rate <= 1.5 * RATE, "a pause is anything between its limit and a half of that"
    assert rate <= BEFORE / 5
    firsts = [min(when for when in each if when > back[0]) - back[0] for each in served]
    assert min(firsts) < 0.3  # 50 ms, on a machine that does nothing else
    assert max(firsts) < 4 * pace.LONGEST_BUSY


CHILD = """
import json, sys, threading, time
import unbroken
from unbroken.brain import pace
pace.REFUSED_RATE = pace.BUSY_RATE = float(sys.argv[2])
pool = unbroken.Pool(sys.argv[1], max_size=1, outage_wait=120, acquire_timeout=120)
crowd, tries = pool._state.server.outage.crowd, []
def watch():
    while True:
        stats = pool.stats()
        tries.append((time.monotonic(), stats.connect_failures, stats.away_for))
        time.sleep(0.05)
def ask():
    pool.run(lambda conn: conn.execute("SELECT 1"))
    time.sleep(0.05)
while crowd.number is None:
    ask()
print("ready", flush=True)
sys.stdin.readline()  # all are there: count them again
crowd.next_count = 0.0
while crowd.next_count == 0.0:
    ask()
print("counted", flush=True)
threading.Thread(target=watch, daemon=True).start()
while pool.stats().outages == 0:
    ask()
print(json.dumps({"first": time.monotonic(), "tries": tries, "size": crowd.size}))
"""


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_hundred_processes(new_postgres):
    """As above, with processes."""
    number, rate = 100, 400.0
    server = new_postgres({"max_connections": 200})
    command = [sys.executable, "-c", CHILD, server.url("psycopg"), str(rate)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("all\n")
            child.stdin.flush()
        for child in children:
            assert child.stdout.readline() == "counted\n"
        server.stop()
        stopped = time.monotonic()
        time.sleep(5)
        probe, back = accepting(server)
        server.start()
        probe.join(60)
        found = [json.loads(child.communicate(timeout=120)[0]) for child in children]
    finally:
        for child in children:
            child.kill()
    assert all(each["size"] >= 0.8 * number for each in found)

    def failed(each, until):
        return max((count for when, count, _ in each["tries"] if when < until), default=0)

    seconds = 3.5
    attempts = sum(
        failed(each, stopped + 1 + seconds) - failed(each, stopped + 1) for each in found
    )
    firsts = [each["first"] - back[0] for each in found]
    print(
        f"{number} processes: {attempts / seconds:.0f} attempts/s, first served {min(firsts):.3f} s"
        f" after the server accepts, all {max(firsts):.3f} s"
    )
    assert 0 < attempts / seconds <= 1.5 * rate
    assert -0.05 < min(firsts) < 0.25
    assert max(firsts) < 5.0
