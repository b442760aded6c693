"""net/watcher.py: hang-ups and timers, on a thread and on a loop, over forks and reused numbers."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import os
import random
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from unbroken.net.watcher import LoopWatcher, ThreadWatcher


@pytest.fixture
def watcher():
    made = ThreadWatcher()
    yield made
    made.close()


@pytest.fixture
def errors(caplog):
    caplog.set_level(logging.ERROR, "unbroken.net")
    return lambda: [record for record in caplog.records if record.name == "unbroken.net"]


def wakeups(watcher: ThreadWatcher) -> int:
    """How often the watcher's thread has gone to sleep so far, by the kernel's book."""
    status = Path(f"/proc/self/task/{watcher._thread.native_id}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


# ---- hang-ups


@pytest.mark.parametrize("how", ["fin", "rst", "goodbye"])
def test_a_hang_up_is_reported_once(how, watcher, tcp_pair, reset, until):
    ours, theirs = tcp_pair()
    calls = []
    watcher.watch(ours.fileno(), lambda: calls.append(threading.current_thread().name))
    if how == "goodbye":
        theirs.sendall(b"last words")
    reset(theirs) if how == "rst" else theirs.close()
    until(lambda: calls)
    settled(watcher, until)
    assert calls == ["unbroken-watcher"]


def settled(watcher, until):
    """Wait until the watcher has gone around once more."""
    done = []
    watcher.at(time.monotonic(), lambda: done.append(1))
    until(lambda: done)


def test_a_connection_that_is_gone_when_its_watch_begins_is_reported(watcher, tcp_pair, until):
    ours, theirs = tcp_pair()
    theirs.close()
    until(lambda: select.select([ours], [], [], 0)[0])
    calls = []
    watcher.watch(ours.fileno(), lambda: calls.append(1))
    until(lambda: calls)


def test_a_real_server_that_hangs_up_is_reported(watcher, mariadb, postgres, sessions, until):
    calls = []
    maria, pg = sessions.pymysql(mariadb), sessions.psycopg(postgres)
    watcher.watch(sessions.fd(maria), lambda: calls.append("mariadb"))
    watcher.watch(pg.fileno(), lambda: calls.append("postgres"))
    assert sessions.ask(maria, "SELECT 1") == sessions.ask(pg, "SELECT 1") == 1
    assert calls == []
    mariadb.admin(f"KILL {maria.thread_id()}")
    until(lambda: calls == ["mariadb"])
    postgres.admin(f"SELECT pg_terminate_backend({pg.info.backend_pid})")
    until(lambda: calls == ["mariadb", "postgres"])


def test_traffic_and_a_dead_connection_wake_nobody(watcher, tcp_pair, until):
    ours, theirs = tcp_pair()
    dead, gone = tcp_pair()
    calls = []
    watcher.watch(ours.fileno(), lambda: calls.append("ours"))
    watcher.watch(dead.fileno(), lambda: calls.append("dead"))
    gone.close()
    until(lambda: calls)
    settled(watcher, until)
    until(lambda: asleep(watcher))
    before = wakeups(watcher)
    for _ in range(200):
        ours.sendall(b"question")
        theirs.recv(100)
        theirs.sendall(b"answer")
        ours.recv(100)
    assert wakeups(watcher) == before
    assert calls == ["dead"]


def asleep(watcher) -> bool:
    state = (
        Path(f"/proc/self/task/{watcher._thread.native_id}/stat")
        .read_text()
        .rsplit(")", 1)[1]
        .split()[0]
    )
    return state == "S" and watcher._wakes_at != -math.inf


def test_after_unwatch_nothing_is_reported(watcher, tcp_pair, until):
    ours, theirs = tcp_pair()
    calls = []
    watcher.watch(ours.fileno(), lambda: calls.append(1))
    watcher.unwatch(ours.fileno())
    watcher.unwatch(ours.fileno())
    theirs.close()
    settled(watcher, until)
    assert calls == []


def test_what_cannot_be_watched_is_left_alone(watcher, tcp_pair, tmp_path, errors, until):
    ours, _ = tcp_pair()
    fd = ours.fileno()
    ours.close()
    with open(tmp_path / "file", "w") as file:
        for number in (fd, -1, file.fileno()):
            watcher.watch(number, lambda: None)
            watcher.unwatch(number)
    settled(watcher, until)
    assert errors() == []


def test_a_callback_that_raises_is_logged_and_ends_nothing(watcher, tcp_pair, errors, until):
    pairs = [tcp_pair() for _ in range(3)]
    calls = []

    def fail():
        raise SystemExit("no")

    watcher.watch(pairs[0][0].fileno(), fail)
    watcher.watch(pairs[1][0].fileno(), lambda: 1 / 0)
    watcher.watch(pairs[2][0].fileno(), lambda: calls.append(1))
    for _, theirs in pairs[:2]:
        theirs.close()
    until(lambda: len(errors()) == 2)
    pairs[2][1].close()
    until(lambda: calls)
    assert {record.exc_info[0] for record in errors()} == {SystemExit, ZeroDivisionError}


# ---- numbers that are used again


def test_a_stale_report_never_reaches_the_numbers_next_user(watcher, tcp_pair, until):
    ours, theirs = tcp_pair()
    calls = []
    watcher.watch(ours.fileno(), lambda: calls.append("its own"))
    watcher._report([ours.fileno()])  # what the kernel said of the number's last user, handled late
    assert calls == []
    theirs.close()
    until(lambda: calls == ["its own"])


def test_a_number_that_was_closed_without_a_word_serves_its_next_user(
    watcher, tcp_pair, in_child, until
):
    """A child that still has the old socket open keeps the old registration alive in the kernel."""
    first, first_server = tcp_pair()
    fd = first.fileno()
    second, second_server = tcp_pair()
    calls = []
    watcher.watch(fd, lambda: calls.append("first"))
    keeps = os.dup(fd)
    os.dup2(second.fileno(), fd)
    watcher.watch(fd, lambda: calls.append("second"))
    first_server.close()
    settled(watcher, until)
    assert calls == []
    second_server.close()
    until(lambda: calls == ["second"])
    os.close(keeps)


def test_numbers_used_again_in_a_storm_are_never_confused(watcher):
    """Connections come and go on few numbers while their servers hang up at random."""
    wrong, seen, lock = [], [0], threading.Lock()
    stop = time.monotonic() + 2.0

    def life(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < stop:
            ours, theirs = socket.socketpair()
            state = {"hung up": False}

            def callback(state=state):
                if not state["hung up"]:
                    wrong.append(state)
                with lock:
                    seen[0] += 1

            watcher.watch(ours.fileno(), callback)
            if rng.random() < 0.5:
                state["hung up"] = True
                theirs.close()
                if rng.random() < 0.5:
                    time.sleep(0)
            watcher.unwatch(ours.fileno())
            ours.close()
            theirs.close()

    threads = [threading.Thread(target=life, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen[0] > 0
    assert watcher._callbacks == {}


# ---- timers


def test_timers_come_in_their_order_and_never_early(watcher, until):
    came = []
    now = time.monotonic()
    for delay in (0.09, 0.03, 0.06, 0.0, -5.0):
        watcher.at(now + delay, lambda delay=delay: came.append((delay, time.monotonic() - now)))
    until(lambda: len(came) == 5)
    assert [delay for delay, _ in came][-3:] == [0.03, 0.06, 0.09]
    assert all(after >= delay for delay, after in came)


def test_an_earlier_timer_wakes_the_thread(watcher, until):
    came = []
    watcher.at(time.monotonic() + 3600, lambda: came.append("late"))
    until(lambda: asleep(watcher))
    watcher.at(time.monotonic() + 0.01, lambda: came.append("early"))
    until(lambda: came == ["early"])


def test_a_cancelled_timer_does_not_come(watcher, until):
    came = []
    timer = watcher.at(time.monotonic() + 0.05, lambda: came.append("cancelled"))
    watcher.at(time.monotonic() + 0.06, lambda: came.append("kept"))
    assert timer.is_pending
    timer.cancel()
    timer.cancel()
    assert not timer.is_pending
    until(lambda: came)
    assert came == ["kept"]
    watcher.at(math.inf, lambda: came.append("never")).cancel()


def test_a_timer_may_set_the_next_one(watcher, until):
    came = []

    def again():
        came.append(time.monotonic())
        if len(came) < 5:
            watcher.at(time.monotonic() + 0.005, again)

    watcher.at(time.monotonic(), again)
    until(lambda: len(came) == 5)


def test_cancelled_timers_do_not_pile_up(watcher):
    for _ in range(5000):
        watcher.at(time.monotonic() + 60, lambda: None).cancel()
    assert len(watcher._timers) < 200


def test_without_timers_it_sleeps_for_good(watcher, tcp_pair, until):
    ours, _ = tcp_pair()
    watcher.watch(ours.fileno(), lambda: None)
    watcher.at(time.monotonic() + 0.01, lambda: None)
    until(lambda: watcher._wakes_at == math.inf and asleep(watcher))
    before = wakeups(watcher)
    time.sleep(0.3)
    assert wakeups(watcher) == before


# ---- one per process


@pytest.fixture
def process_watcher(monkeypatch):
    monkeypatch.setattr("unbroken.net.watcher._current", None)  # pools of other tests keep theirs
    yield ThreadWatcher.get()
    ThreadWatcher.get().close()


def test_there_is_one_per_process_and_it_starts_when_it_is_needed(process_watcher):
    assert ThreadWatcher.get() is process_watcher
    assert process_watcher._thread is None
    process_watcher.at(math.inf, lambda: None)
    assert process_watcher._thread is None
    process_watcher.at(time.monotonic() + 60, lambda: None)
    assert process_watcher._thread.daemon


def test_after_close_it_calls_nobody_and_another_one_is_given(
    process_watcher, tcp_pair, descriptors
):
    ours, theirs = tcp_pair()
    before = descriptors()
    calls = []
    process_watcher.watch(ours.fileno(), lambda: calls.append(1))
    process_watcher.at(time.monotonic() + 0.05, lambda: calls.append(2))
    thread = process_watcher._thread
    process_watcher.close()
    process_watcher.close()
    assert not thread.is_alive()
    assert descriptors() <= before
    theirs.close()
    process_watcher.watch(ours.fileno(), lambda: calls.append(3))
    process_watcher.at(0.0, lambda: calls.append(4))
    process_watcher.unwatch(ours.fileno())
    assert ThreadWatcher.get() is not process_watcher
    assert calls == []


def test_it_may_be_closed_on_its_own_thread(until):
    watcher = ThreadWatcher()
    watcher.at(0.0, watcher.close)
    until(lambda: not watcher.is_usable and watcher._thread is None and watcher._selector is None)


def raw_fork() -> int:
    return int(ctypes.PyDLL(None).fork())


@pytest.mark.parametrize("fork", [os.fork, raw_fork], ids=["os.fork", "fork(2)"])
def test_a_child_gets_its_own_and_leaves_the_parents_alone(
    fork, process_watcher, tcp_pair, in_child, until
):
    ours, theirs = tcp_pair()
    calls = []
    process_watcher.watch(ours.fileno(), lambda: calls.append("parent"))
    timer = process_watcher.at(time.monotonic() + 3600, lambda: None)
    until(lambda: asleep(process_watcher))

    def child():
        process_watcher.unwatch(ours.fileno())
        process_watcher.watch(ours.fileno(), lambda: None)
        process_watcher.at(0.0, lambda: None)
        timer.cancel()
        process_watcher.close()
        mine = ThreadWatcher.get()
        if fork is raw_fork:  # threads need Python's own fork; that it is another one must do
            return mine is not process_watcher
        came = threading.Event()
        left, right = socket.socketpair()
        mine.watch(left.fileno(), came.set)
        right.close()
        ours.close()
        gc.collect()
        return mine is not process_watcher and came.wait(10)

    before = wakeups(process_watcher)
    assert in_child(child, fork) == "True"
    assert wakeups(process_watcher) == before
    assert calls == []
    theirs.close()
    until(lambda: calls == ["parent"])


def test_a_child_closes_its_copies_of_the_watchers_descriptors(process_watcher, in_child, until):
    process_watcher.at(time.monotonic() + 3600, lambda: None)
    numbers = [process_watcher._selector.fileno(), process_watcher._wake.fd]

    def still_open():
        found = []
        for fd in numbers:
            with contextlib.suppress(OSError):
                found.append(os.fstat(fd))
        return len(found)

    assert still_open() == 2
    assert in_child(still_open) == "0"
    assert still_open() == 2


def test_it_goes_on_when_its_descriptors_are_closed_under_it(run_script):
    said = run_script("""
        import os, socket, threading, time
        from unbroken.net.watcher import ThreadWatcher
        watcher, gone, time_came = ThreadWatcher.get(), threading.Event(), threading.Event()
        ours, theirs = socket.socketpair()
        watcher.watch(ours.fileno(), gone.set)
        first = watcher._selector
        os.closerange(first.fileno(), first.fileno() + 1)
        watcher.at(time.monotonic() + 0.05, time_came.set)
        print(time_came.wait(10))
        deadline = time.monotonic() + 10
        while watcher._selector is first and time.monotonic() < deadline:
            time.sleep(0.01)
        theirs.close()
        print(gone.wait(10))
    """)
    assert said.split() == ["True", "True"]


# ---- on a loop


def test_on_a_loop_hang_ups_and_timers_are_reported(tcp_pair, errors):
    async def main():
        loop = asyncio.get_running_loop()
        watcher = LoopWatcher(loop)
        (ours, theirs), (kept, kept_server), (bad, bad_server) = tcp_pair(), tcp_pair(), tcp_pair()
        gone, came, calls = asyncio.Event(), asyncio.Event(), []
        watcher.watch(ours.fileno(), gone.set)
        watcher.watch(kept.fileno(), lambda: calls.append("unwatched"))
        watcher.watch(bad.fileno(), lambda: 1 / 0)
        watcher.unwatch(kept.fileno())
        watcher._report([ours.fileno()])
        assert not gone.is_set()
        for sock in (bad_server, kept_server, theirs):
            sock.close()
        await asyncio.wait_for(gone.wait(), 10)
        begun, arrived = time.monotonic(), []

        def due():
            arrived.append(time.monotonic())
            came.set()

        watcher.at(begun + 0.03, due)
        watcher.at(begun + 0.01, lambda: 1 / 0)
        watcher.at(begun + 0.02, lambda: calls.append("cancelled")).cancel()
        watcher.at(math.inf, lambda: calls.append("never")).cancel()
        await asyncio.wait_for(came.wait(), 10)
        assert arrived[0] >= begun + 0.03
        assert calls == []
        watcher.at(time.monotonic() + 0.01, lambda: calls.append("after close"))
        watcher.close()
        watcher.close()
        watcher.at(0.0, lambda: calls.append("after close"))
        watcher.watch(kept.fileno(), lambda: calls.append("after close"))
        await asyncio.sleep(0.03)
        assert calls == []

    asyncio.run(main())
    assert [record.exc_info[0] for record in errors()] == [ZeroDivisionError] * 2


def test_on_a_loop_a_dead_connection_does_not_spin(tcp_pair):
    async def main():
        watcher = LoopWatcher(asyncio.get_running_loop())
        ours, theirs = tcp_pair()
        gone = asyncio.Event()
        watcher.watch(ours.fileno(), gone.set)
        theirs.close()
        await asyncio.wait_for(gone.wait(), 10)
        turns, ready = [], watcher._ready
        watcher._ready = lambda: (turns.append(1), ready())
        asyncio.get_running_loop().add_reader(watcher._selector.fileno(), watcher._ready)
        await asyncio.sleep(0.05)
        watcher.close()
        assert turns == []

    asyncio.run(main())


def test_a_loop_watcher_may_be_closed_after_its_loop(tcp_pair, descriptors):
    ours, _ = tcp_pair()

    async def main():
        watcher = LoopWatcher(asyncio.get_running_loop())
        watcher.watch(ours.fileno(), lambda: None)
        watcher.at(time.monotonic() + 60, lambda: None)
        return watcher

    before = descriptors()
    asyncio.run(main()).close()
    assert descriptors() <= before


def test_a_child_does_not_touch_the_loop_of_its_parent(tcp_pair, in_child):
    async def main():
        watcher = LoopWatcher(asyncio.get_running_loop())
        ours, theirs = tcp_pair()
        gone = asyncio.Event()
        watcher.watch(ours.fileno(), gone.set)

        def child():
            watcher.unwatch(ours.fileno())
            watcher.close()
            return watcher.is_usable

        assert in_child(child) == "False"
        theirs.close()
        await asyncio.wait_for(gone.wait(), 10)
        watcher.close()

    asyncio.run(main())
