"""net/ under gevent's monkey patching, each in an interpreter of its own.

Nothing may block the hub.
"""

from __future__ import annotations

import textwrap

import pytest

HEAD = """
from gevent import monkey; monkey.patch_all()
import _thread, gc, os, socket, sys, threading, time
import gevent
from unbroken.net.liveness import Liveness, look, poller, segments_sent, sweep
from unbroken.net.watcher import ThreadWatcher
from unbroken.net.fork_guard import abort, fork_mark, identity, sever
from unbroken.net.keepalive import apply
from unbroken.net.last_words import peek

def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    listener.close()
    return ours, theirs

def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.001)

beats = []
def heart():
    while True:
        beats.append(time.monotonic())
        gevent.sleep(0.005)
"""


@pytest.fixture
def run(run_script):
    return lambda script: run_script(HEAD + textwrap.dedent(script))


def test_a_hang_up_is_seen_although_gevents_poll_is_blind_for_it(run):
    said = run("""
        ours, theirs = pair()
        poll = poller(ours.fileno())
        assert poll(0) == [] and look(ours.fileno()) is Liveness.ALIVE
        theirs.sendall(b"goodbye")
        theirs.close()
        until(lambda: look(ours.fileno()) is Liveness.DEAD)
        print(type(poll).__name__, poll(0) != [], sweep([ours.fileno()]))
    """)
    assert said.startswith("builtin_function_or_method True {")
    assert "DEAD" in said


def test_patching_after_the_import_is_noticed(run_script):
    said = run_script("""
        import socket
        from unbroken.net.liveness import Liveness, look
        from unbroken.net.watcher import ThreadWatcher
        from gevent import monkey; monkey.patch_all()
        import gevent, time
        ours, theirs = socket.socketpair()
        came = []
        ThreadWatcher.get().watch(ours.fileno(), lambda: came.append(1))
        theirs.close()
        deadline = time.monotonic() + 10
        while not came and time.monotonic() < deadline:
            gevent.sleep(0.001)
        print(came, look(ours.fileno()) is Liveness.DEAD)
    """)
    assert said == "[1] True"


def test_the_watcher_is_a_greenlet_and_never_blocks_the_hub(run):
    said = run("""
        gevent.spawn(heart)
        watcher = ThreadWatcher.get()
        ours, theirs = pair()
        came = []
        where = []
        watcher.watch(ours.fileno(), lambda: (came.append("hung up"), where.append(_thread.get_native_id())))
        watcher.at(time.monotonic() + 0.1, lambda: came.append("time"))
        watcher.at(time.monotonic() + 0.05, lambda: came.append("sooner"))
        watcher.at(time.monotonic() + 0.02, lambda: came.append("cancelled")).cancel()
        until(lambda: came == ["sooner", "time"])
        theirs.close()
        until(lambda: came == ["sooner", "time", "hung up"])
        assert watcher._thread.name == "unbroken-watcher"
        print(where == [os.getpid()], len(beats) > 5)
        watcher.close()
        assert ThreadWatcher.get() is not watcher
    """)  # noqa: E501
    assert said == "True True"


def test_an_idle_watcher_does_not_keep_the_hub_alive(run):
    assert (
        run("""
        watcher = ThreadWatcher.get()
        ours, theirs = pair()
        watcher.watch(ours.fileno(), lambda: None)
        watcher.at(time.monotonic() + 3600, lambda: None)
        gevent.spawn(gevent.sleep, 0.01)
        gevent.get_hub().join()
        print("ended")
    """)
        == "ended"
    )


def test_a_killed_watcher_greenlet_is_replaced(run):
    assert (
        run("""
        watcher = ThreadWatcher.get()
        ours, theirs = pair()
        came = []
        watcher.watch(ours.fileno(), lambda: came.append("hung up"))
        gevent.sleep(0.01)
        gevent.killall([g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead])
        assert watcher._thread is None
        theirs.close()
        watcher.at(time.monotonic() + 0.01, lambda: came.append("time"))
        until(lambda: sorted(came) == ["hung up", "time"])
        print("well")
    """)  # noqa: E501
        == "well"
    )


def test_a_child_gets_a_watcher_of_its_own(run):
    said = run("""
        parent = ThreadWatcher.get()
        ours, theirs = pair()
        came = []
        parent.watch(ours.fileno(), lambda: came.append("parent"))
        gevent.sleep(0.01)
        mark, who = fork_mark(), identity(ours.fileno())
        pid = os.fork()
        if pid == 0:
            assert mark[0] == 0
            assert sever(ours.fileno(), who)
            parent.unwatch(ours.fileno())
            mine = ThreadWatcher.get()
            assert mine is not parent
            left, right = socket.socketpair()
            mine.watch(left.fileno(), lambda: came.append("child"))
            mine.at(time.monotonic() + 0.01, lambda: came.append("time"))
            right.close()
            until(lambda: sorted(came) == ["child", "time"])
            os.write(1, b"child well; ")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0 and came == []
        theirs.close()
        until(lambda: came == ["parent"])
        print("parent well")
    """)
    assert said == "child well; parent well"


def test_an_abort_wakes_a_greenlet_that_reads(run):
    said = run("""
        ours, theirs = pair()
        reader = gevent.spawn(ours.recv, 10)
        gevent.sleep(0.01)
        assert apply(ours.fileno(), 30)
        assert abort(ours.fileno(), identity(ours.fileno()))
        print(reader.get(timeout=10), peek(ours.fileno(), "mysql"), segments_sent(ours.fileno()))
    """)
    assert said == "b'' None None"


def test_a_greenlets_fork_does_not_wait_for_the_connect_of_another_which_it_stops(run):
    said = run("""
        from unbroken.net import forks

        forks.PATIENCE = 50.0

        def connect():
            with forks.Connecting():
                gevent.sleep(0.2)

        greenlet = gevent.spawn(connect)
        gevent.sleep(0)
        assert len(forks._connects) == 1
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(1 if forks._connects else 0)
        assert time.monotonic() - began < forks.PATIENCE
        assert os.waitpid(pid, 0)[1] == 0
        greenlet.get()
        assert forks._connects == forks._forks == {}
        print("well")
        """)
    assert said == "well"
