"""A pool under gevent's monkey patching, each in an interpreter of its own.

Nothing may block the hub.
"""

from __future__ import annotations

import pytest

HEAD = """
import _thread, time
from gevent import monkey; real = _thread.start_new_thread, time.sleep; monkey.patch_all()
import sys, threading, time
import gevent
import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL

name, mysql = sys.argv[1], sys.argv[1] != "psycopg"
beats, ticks, stop = [], [], []

def heart():
    while not stop:
        beats.append(time.monotonic())
        gevent.sleep(0.005)

def clock():
    "A thread of the system's: it stops only when the machine has no time for this process."
    while not stop:
        ticks.append(time.monotonic())
        real[1](0.005)

def begin(pool):
    "Count from here: what is imported and read from disk at the first connect, and a server's making, are nobody's doing."
    pool.check(timeout=30)
    beats.clear()
    ticks.clear()

def longest(times):
    return max(b - a for a, b in zip(times, times[1:]))

def goes_on(seconds):
    "Whether the hub was never silent for so long, but for when the whole process was."
    return longest(beats) < seconds + 2 * longest(ticks)

def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.002)

def ask(conn, sql="SELECT 41 + 1"):
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]

def slow(conn, seconds):
    return ask(conn, f"SELECT SLEEP({seconds})" if mysql else f"SELECT pg_sleep({seconds})")

def whole(pool):
    until(lambda: (s := pool.stats()).used == s.waiting == s.opening == 0 and s.idle == s.size)
    return pool.stats().size <= pool.stats().max_size

ticker = gevent.spawn(heart)
real[0](clock, ())
"""  # noqa: E501

DRIVERS = ["pymysql", "psycopg"]


@pytest.fixture(params=DRIVERS)
def run(request, script, faces):
    server = request.getfixturevalue("postgres" if request.param == "psycopg" else "mariadb")
    face = faces(request.param, server)

    def go(text, **kwargs):
        return script(HEAD + f"\nurl = {face.url()!r}\n" + text, request.param, **kwargs)

    go.face = face
    return go


@pytest.fixture(params=DRIVERS)
def run_own(request, script):
    """The script makes its own server: what stops one waits for it, which must not be the hub's
    business.
    """

    def go(text, **kwargs):
        return script(
            HEAD
            + "\nserver = (MariaDB if mysql else PostgreSQL)().start()\nurl = server.url(name)\n"
            + text,
            request.param,
            **kwargs,
        )

    return go


def test_a_hundred_greenlets_share_five_connections_and_the_hub_goes_on(run):
    said = run("""
pool = unbroken.Pool(url, max_size=5, acquire_timeout=20)
begin(pool)
ids, most = set(), []

def work(i):
    for _ in range(3):
        with pool.connection() as conn:
            ids.add(id(conn))
            most.append(pool.stats().used)
            slow(conn, 0.005)
            assert ask(conn) == 42

jobs = [gevent.spawn(work, i) for i in range(100)]
gevent.joinall(jobs, timeout=40, raise_error=True)
assert all(job.successful() for job in jobs)
assert max(most) == 5 and len(ids) <= 5, (max(most), len(ids))
assert whole(pool)
assert pool.stats().acquired == 300 + 1
assert len(beats) > 20
assert goes_on(0.5), (longest(beats), longest(ticks))
print("well")
""")
    assert said == "well"


def test_waiting_in_line_is_fair_and_ends_in_time(run):
    said = run("""
pool = unbroken.Pool(url, max_size=1)
held = pool.acquire()
served = []
jobs = []
for i in range(5):
    jobs.append(gevent.spawn(lambda i=i: (pool.release(pool.acquire()), served.append(i))))
    until(lambda: pool.stats().waiting == i + 1)
try:
    pool.acquire(timeout=0.2)
except unbroken.PoolTimeoutError as error:
    assert "waiting 6" in str(error), error
else:
    raise AssertionError
assert served == []
pool.release(held)
gevent.joinall(jobs, timeout=10, raise_error=True)
assert served == [0, 1, 2, 3, 4], served
print("well")
""")
    assert said == "well"


def test_kills_and_a_restart_are_no_error_to_any_greenlet(run_own):
    said = run_own("""
pool = unbroken.Pool(url, max_size=5, acquire_timeout=30, outage_wait=30)
begin(pool)
done = []

def work(i):
    times = 0
    while not done or times < 2:
        assert pool.run(ask) == 42
        times += 1
    return times

jobs = [gevent.spawn(work, i) for i in range(40)]
for _ in range(5):
    gevent.sleep(0.05)
    server.kill_sessions()
server.restart(down=0.3)
done.append(1)
gevent.joinall(jobs, timeout=40, raise_error=True)
assert all(job.successful() for job in jobs)
assert whole(pool)
assert pool.stats().outages >= 1
assert goes_on(2.0), (longest(beats), longest(ticks))
print("well")
pool.close()
server.close()
""")
    assert said == "well"


def test_the_watcher_evicts_what_was_killed_without_any_traffic(run_own):
    said = run_own("""
pool = unbroken.Pool(url, max_size=5)
held = [pool.acquire() for _ in range(5)]
for conn in held:
    pool.release(conn)
server.kill_sessions()
until(lambda: pool.stats().size == 0, 3.0)
assert pool.run(ask) == 42
print("well")
pool.close()
server.close()
""")
    assert said == "well"


def test_a_deadline_ends_a_slow_statement_and_the_hub_goes_on_meanwhile(run):
    said = run("""
pool = unbroken.Pool(url)
pool.check()
before = len(beats)
started = time.monotonic()
try:
    pool.run(lambda conn: slow(conn, 20), deadline=0.5)
except unbroken.DeadlineExceeded:
    pass
else:
    raise AssertionError("no deadline")
assert time.monotonic() - started < 5
assert len(beats) - before > 20, len(beats) - before
assert pool.run(ask) == 42
print("well")
""")
    assert said == "well"


def test_a_greenlet_that_is_killed_leaves_its_connection_to_the_others(run):
    said = run("""
pool = unbroken.Pool(url, max_size=2)

def hold():
    with pool.connection() as conn:
        slow(conn, 20)

jobs = [gevent.spawn(hold) for _ in range(2)]
until(lambda: pool.stats().used == 2)
waiting = gevent.spawn(pool.run, ask)
until(lambda: pool.stats().waiting == 1)
gevent.killall(jobs)
assert waiting.get(timeout=10) == 42
assert whole(pool)
print("well")
""")
    assert said == "well"


def test_a_gevent_timeout_around_an_acquire_swallows_no_connection(run):
    said = run("""
pool = unbroken.Pool(url, max_size=1, acquire_timeout=20)

def impatient():
    for _ in range(20):
        with gevent.Timeout(0.003, False):
            with pool.connection() as conn:
                ask(conn)
                gevent.sleep(0.001)

jobs = [gevent.spawn(impatient) for _ in range(10)]
gevent.joinall(jobs, timeout=30, raise_error=True)
assert all(job.successful() for job in jobs)
assert whole(pool)
assert pool.run(ask) == 42
print("well")
""")
    assert said == "well"


def test_a_leak_is_reported_with_its_place(run):
    said = run("""
import logging
found = []
class Note(logging.Handler):
    def emit(self, record):
        found.append(record.getMessage())
logging.getLogger("unbroken").addHandler(Note())
pool = unbroken.Pool(url, leak_after=0.2)

def hold():
    conn = pool.acquire()
    until(lambda: found)
    pool.release(conn)

gevent.spawn(hold).get(timeout=10)
assert " in hold" in found[0], found
assert "has ended" not in found[0], found
print("well")
""")
    assert said == "well"


def test_a_forked_worker_has_sessions_of_its_own(run):
    said = run("""
import os, tempfile
pool = unbroken.Pool(url)
me = "SELECT CONNECTION_ID()" if mysql else "SELECT pg_backend_pid()"
mine = pool.run(ask, me)
where = tempfile.mktemp()
pid = os.fork()
if pid == 0:
    with open(where + ".new", "w") as out:
        out.write(str(pool.run(ask, me)))
    os.rename(where + ".new", where)
    os._exit(0)
until(lambda: os.path.exists(where))  # the hub must turn: a blocking read would keep gevent's fork from its work
with open(where) as answer:
    theirs = int(answer.read())
os.unlink(where)
assert theirs != mine
assert pool.run(ask, me) == mine
print("well")
""")  # noqa: E501
    assert said == "well"
