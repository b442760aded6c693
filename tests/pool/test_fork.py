"""Forks: a child has sessions of its own, and whatever it does, or does not do, its parent's
sessions live on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from unbroken_drill.servers import PostgreSQL

from .every_driver import url_of

HEAD = """
from contextlib import closing
import gc, multiprocessing, os, sys, threading, time, traceback
import unbroken

sys.path.insert(0, FOLDER)
from raw_fork import raw_fork as raw

url, mysql = sys.argv[1], sys.argv[2] == "True"
pool = unbroken.Pool(url, max_size=3, acquire_timeout=10)

def session(conn):
    with closing(conn.cursor()) as cursor:
        cursor.execute("SELECT CONNECTION_ID()" if mysql else "SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def ask():
    with pool.connection() as conn:
        return session(conn)

def warm(number=3):
    held = [pool.acquire() for _ in range(number)]
    sessions = sorted(session(conn) for conn in held)
    for conn in held:
        conn.rollback()
        pool.release(conn)
    return sessions

def all_of_mine():
    "Every idle session of this process, by asking each."
    held = [pool.acquire(timeout=5) for _ in range(pool.stats().idle)]
    sessions = sorted(session(conn) for conn in held)
    for conn in held:
        conn.rollback()
        pool.release(conn)
    return sessions

def wait(pid):
    "The child's exit status; one that hangs is ended."
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"

def child(work, fork=os.fork, leave=os._exit):
    "Fork, do *work* in the child, leave it by *leave*; (exit status, what work gave)."
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = fork()
    if pid == 0:
        try:
            answer = repr(work())
        except SystemExit:
            raise  # a grandchild's own end
        except BaseException:
            answer = traceback.format_exc()
        os.write(writer, answer.encode())
        os.close(writer)
        leave(0)
    os.close(writer)
    status = wait(pid)
    if status == "hangs":
        return status, ""  # a child of its own may hold the pipe open for ever
    with open(reader) as file:
        return status, file.read()
"""


@pytest.fixture
def run(script, face):
    def run(text, **kwargs):
        return script(
            HEAD.replace("FOLDER", repr(str(Path(__file__).parent))) + text,
            face.url(),
            face.is_mysql,
            **kwargs,
        )

    return run


FORKS = ["os.fork", "raw"]
LEAVES = ["os._exit", "sys.exit"]
BOTH = [("os.fork", "os._exit"), ("raw", "sys.exit")]


@pytest.mark.parametrize(("fork", "leave"), BOTH)
def test_a_child_gets_sessions_of_its_own_and_the_parent_keeps_all_of_its(run, fork, leave):
    said = run(f"""
before = warm()
for _ in range(3):
    status, answer = child(lambda: sorted({{ask() for _ in range(5)}}), {fork}, {leave})
    assert status == 0, (status, answer)
    theirs = eval(answer)
    assert not set(theirs) & set(before), (theirs, before)
    assert all_of_mine() == before
assert pool.stats().opened == 3
print("well")
""")
    assert said == "well"


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("fork", FORKS)
def test_a_child_that_never_touches_the_pool_ends_nobodys_session(run, fork, leave):
    said = run(f"""
before = warm()
for _ in range(3):
    status, answer = child(lambda: (gc.collect(), None)[1], {fork}, {leave})
    assert (status, answer) == (0, "None"), (status, answer)
    assert all_of_mine() == before
assert pool.stats().opened == 3
print("well")
""")
    assert said == "well"


def test_a_child_that_falls_off_the_end_of_the_program_ends_nobodys_session(run):
    said = run("""
before = warm()
pid = raw()
if pid:
    assert wait(pid) == 0
    assert all_of_mine() == before
    print("well")
""")
    assert said == "well"


def test_multiprocessing_children_work_and_harm_nobody(run):
    said = run("""
before = warm()
context = multiprocessing.get_context("fork")
with context.Pool(3) as workers:
    theirs = workers.starmap(ask, [()] * 12)
assert not set(theirs) & set(before)
process = context.Process(target=ask)
process.start()
process.join(20)
assert process.exitcode == 0
assert all_of_mine() == before
print("well")
""")
    assert said == "well"


@pytest.mark.parametrize("fork", FORKS)
def test_nested_forks_each_have_their_own(run, fork):
    said = run(f"""
before = warm()

def middle():
    mine = ask()
    status, theirs = child(ask, {fork}, sys.exit)
    assert status == 0, theirs
    assert ask() == mine
    return [mine, eval(theirs)]

status, answer = child(middle, {fork}, sys.exit)
assert status == 0, answer
assert len(set(eval(answer)) | set(before)) == 5
assert all_of_mine() == before
print("well")
""")
    assert said == "well"


@pytest.mark.parametrize(("fork", "leave"), BOTH)
def test_a_fork_inside_a_block_leaves_the_parents_transaction_alone(run, fork, leave, face):
    table = face.table()
    said = run(f"""
warm()
with pool.connection() as conn:
    mine = session(conn)
    with closing(conn.cursor()) as cursor:
        cursor.execute("INSERT INTO {table} VALUES (1)")
    status, answer = child(ask, {fork}, {leave})
    assert status == 0, answer
    assert int(answer) != mine
    assert session(conn) == mine
    with closing(conn.cursor()) as cursor:
        cursor.execute("INSERT INTO {table} VALUES (2)")
print("well")
""")
    assert said == "well"
    assert face.stored(table) == [1, 2]


@pytest.mark.parametrize("fork", FORKS)
def test_a_child_that_leaves_the_parents_block_is_told_and_stores_nothing(run, fork, face):
    table = face.table()
    said = run(f"""
conn = None

def work():
    try:
        lease.__exit__(None, None, None)
    except unbroken.NotYoursError as error:
        assert "parent" in str(error)
        return ask() != mine
    return "not told"

lease = pool.connection()
conn = lease.__enter__()
mine = session(conn)
with closing(conn.cursor()) as cursor:
    cursor.execute("INSERT INTO {table} VALUES (1)")
assert child(work, {fork}, sys.exit) == (0, "True")
assert session(conn) == mine
lease.__exit__(None, None, None)
print("well")
""")
    assert said == "well"
    assert face.stored(table) == [1]


@pytest.mark.parametrize("fork", FORKS)
def test_an_inherited_connection_that_was_lent_may_be_released_or_dropped_in_the_child(run, fork):
    said = run(f"""
held = [pool.acquire(), pool.acquire()]
before = [session(conn) for conn in held]

def work():
    try:
        pool.release(held.pop())
    except unbroken.NotYoursError:
        pass
    held.clear()
    gc.collect()
    return ask() in before

assert child(work, {fork}, sys.exit) == (0, "False")
assert [session(conn) for conn in held] == before
print("well")
""")
    assert said == "well"


def test_a_child_forked_while_threads_wait_in_line_is_not_held_up_by_them(run):
    said = run("""
held = [pool.acquire() for _ in range(3)]
waiters = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
for thread in waiters:
    thread.start()
while pool.stats().waiting < 4:
    time.sleep(0.001)
status, answer = child(lambda: (ask(), pool.stats().waiting, pool.stats().used), os.fork, sys.exit)
assert status == 0, answer
assert eval(answer)[1:] == (0, 0)
for conn in held:
    pool.release(conn)
for thread in waiters:
    thread.join(10)
    assert not thread.is_alive()
assert pool.stats().idle == 3
print("well")
""")
    assert said == "well"


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork_while_another_thread_is_inside_the_locks_does_not_hang_the_child(run, fork):
    said = run(f"""
before = warm()
inside, out = threading.Event(), threading.Event()

def hold():
    with pool._state.lock, pool._state.server.lock, pool._state.runtime.watcher.lock:
        inside.set()
        out.wait(20)

thread = threading.Thread(target=hold, daemon=True)  # else Python itself waits for it in the child of a fork that it did not see
thread.start()
inside.wait()
status, answer = child(lambda: (ask(), pool.check().idle, pool.resize(max_size=2), pool.close()), {fork}, sys.exit)
out.set()
thread.join()
assert status == 0, answer
assert all_of_mine() == before
print("well")
""")  # noqa: E501
    assert said == "well"


def test_forks_in_the_middle_of_heavy_traffic_are_all_well(run):
    said = run("""
stop = threading.Event()
errors = []

def user():
    while not stop.is_set():
        try:
            ask()
        except Exception as error:
            errors.append(error)

warm()  # a child of a fork beside a thread's first use of OpenSSL may find its locks taken for ever: docs/contract.md
threads = [threading.Thread(target=user, daemon=True) for _ in range(6)]
for thread in threads:
    thread.start()
for i in range(12):
    status, answer = child(ask, os.fork, sys.exit if i % 2 else os._exit)
    assert status == 0 and answer.isdigit(), (status, answer)
stop.set()
for thread in threads:
    thread.join(10)
assert errors == [], errors
assert pool.stats().opened <= 3
print("well")
""")  # noqa: E501
    assert said == "well"


FIRST_CONNECTS = """
users = [threading.Thread(target=lambda: [ask() for _ in range(20)], daemon=True) for _ in range(6)]
for thread in users:
    thread.start()
answers = [child(ask) for _ in range(12)]
for thread in users:
    thread.join(20)
assert all(status == 0 and answer.isdigit() for status, answer in answers), answers
print("well")
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_fork_in_the_middle_of_a_first_connect_by_tls_hangs_no_child(script, driver):
    """Without care, a child inherits OpenSSL's locks, taken by a thread that it has not: once in
    some 60 forks with psycopg.
    """
    head = HEAD.replace("FOLDER", repr(str(Path(__file__).parent)))
    with PostgreSQL(tls=True) as server:
        for _ in range(40):
            assert (
                script(head + FIRST_CONNECTS, url_of(server, driver, tls=True), False, timeout=300)
                == "well"
            )


def test_many_children_at_once_ask_for_their_own_session_all_the_time(run):
    said = run("""
before = warm()

def work():
    seen = {ask() for _ in range(100)}
    return sorted(seen)

pipes = []
for _ in range(3):
    reader, writer = os.pipe()
    pid = raw()
    if pid == 0:
        os.write(writer, repr(work()).encode())
        sys.exit(0)
    os.close(writer)
    pipes.append((pid, reader))
mine = {ask() for _ in range(100)}
assert mine <= set(before)
groups = [set(before)]
for pid, reader in pipes:
    assert wait(pid) == 0
    groups.append(set(eval(open(reader).read())))
assert sum(map(len, groups)) == len(set.union(*groups)), groups
assert all_of_mine() == before
print("well")
""")
    assert said == "well"


def test_a_closed_pool_stays_closed_in_the_child(run):
    said = run("""
warm()
pool.close()
def work():
    try:
        ask()
    except unbroken.PoolClosedError:
        return "closed"
assert child(work) == (0, "'closed'")
print("well")
""")
    assert said == "well"


def test_the_parents_pool_is_not_closed_by_a_child_that_closes_its_own(run):
    said = run("""
before = warm()
assert child(lambda: (ask(), pool.close())[1], os.fork, sys.exit) == (0, "None")
assert all_of_mine() == before
print("well")
""")
    assert said == "well"


def test_a_child_is_warned_of_leaks_and_kept_warm_like_its_parent(run):
    said = run("""
pool = unbroken.Pool(url, min_size=2, max_size=3)
while pool.stats().idle < 2:
    time.sleep(0.005)
def work():
    pool.stats()
    deadline = time.monotonic() + 10
    while pool.stats().idle < 2:
        assert time.monotonic() < deadline
        ask()
        time.sleep(0.005)
    return pool.stats().idle
assert child(work, raw, sys.exit) == (0, "2")
assert pool.stats().opened == 2
print("well")
""")
    assert said == "well"
