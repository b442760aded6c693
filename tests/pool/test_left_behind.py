"""Connections whose ``with`` block, or call of ``run``, was left by an exception before a line of
``__exit__`` could run.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading

import greenlet
import pytest

import unbroken
from unbroken.pool.holder import thread_frames
from unbroken.pool.lease import Lease

pytestmark = pytest.mark.skipif(
    thread_frames() is None, reason="without the interpreter's lock no thread's stack can be read"
)

#: Seconds. Looks for what was left behind come every 0.2 s, rarer in a large process with
#: greenlets, and it is seen twice.
SOON = 15.0


class StrikeError(Exception):
    """What a signal handler or a time limit raises."""


@contextlib.contextmanager
def striking_at_the_end():
    """Raise where a signal handler would: at the first instruction of ``Lease.__exit__``, once."""
    struck = False

    def at_call(frame, event, _arg):
        nonlocal struck
        if event == "call" and frame.f_code is Lease.__exit__.__code__ and not struck:
            struck = True
            sys.setprofile(None)
            raise StrikeError

    sys.setprofile(at_call)
    try:
        yield
    finally:
        sys.setprofile(None)


def in_a_block(face, pool):
    with pool.connection() as conn:
        face.session(conn)


def with_a_deadline(face, pool):
    with pool.connection(deadline=60) as conn:
        face.session(conn)


def failing(face, pool):
    with pool.connection() as conn:
        face.session(conn)
        raise ValueError


def by_run(face, pool):
    pool.run(face.session)


def in_a_unit(face, pool):
    @unbroken.replayable
    def unit():
        in_a_block(face, pool)

    unit()


@pytest.mark.parametrize(
    "use", [in_a_block, with_a_deadline, failing, by_run, in_a_unit], ids=lambda use: use.__name__
)
def test_a_place_left_behind_comes_back_although_the_exception_is_kept(face, caplog, use):
    pool = face.pool(max_size=1, acquire_timeout=SOON)
    kept = None
    try:
        with striking_at_the_end():
            use(face, pool)
    except StrikeError as strike:
        kept = strike  # as a worker that reports it later does
    assert kept is not None
    assert pool.stats().used == 1
    with pool.connection() as conn:
        assert face.session(conn)
    assert pool.stats().leaked == 1
    assert any(
        "left behind" in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING
    )
    kept = None
    with pool.connection() as conn:
        assert face.session(conn)
    assert pool.stats().size == pool.stats().idle == 1


def test_a_place_comes_back_that_a_strike_in_release_left_behind(face):
    """At every line of it, while the exception is kept.

    Before its ``try`` release has not begun.
    """
    pool = face.pool(max_size=1, acquire_timeout=SOON)
    code, kept = type(pool).release.__code__, []
    for line in sorted(
        {line for *_, line in code.co_lines() if line is not None and line > code.co_firstlineno}
    )[1:]:

        def trace(frame, event, _arg, line=line):
            if frame.f_code is code and event == "line" and frame.f_lineno == line:
                raise StrikeError
            return trace if frame.f_code is code else None

        conn = pool.acquire()
        sys.settrace(trace)
        try:
            pool.release(conn)
        except StrikeError as strike:
            kept.append(strike)
        finally:
            sys.settrace(None)
        del conn
        pool.release(pool.acquire())
    assert kept
    assert pool.stats().size == pool.stats().idle == 1


def blocked(face, pool, leave):
    with pool.connection() as conn:
        yield face.session(conn)
        leave.wait(20)


def acquired(face, pool, leave):
    conn = pool.acquire()
    try:
        yield face.session(conn)
        leave.wait(20)
    finally:
        pool.release(conn)


def on_a_stack(face, pool, leave):
    with contextlib.ExitStack() as stack:
        yield face.session(stack.enter_context(pool.connection()))
        leave.wait(20)


def in_a_generator(face, pool, leave):
    @contextlib.contextmanager
    def lent():
        with pool.connection() as conn:
            yield conn

    with lent() as conn:
        yield face.session(conn)
        leave.wait(20)


def in_a_greenlet(face, pool, leave):
    def use():
        with pool.connection() as conn:
            greenlet.getcurrent().parent.switch(face.session(conn))

    child = greenlet.greenlet(use)
    yield child.switch()
    leave.wait(20)
    child.switch()


def two_at_once(face, pool, leave):
    """The same line twice on one stack: the outer one's block has not ended when the inner one's
    has.
    """

    def use(depth):
        with pool.connection() as conn:
            me = face.session(conn)
            if depth:
                use(depth - 1)
            else:
                leave.wait(20)
            return me

    yield None
    use(1)


@pytest.mark.parametrize(
    "hold",
    [blocked, acquired, on_a_stack, in_a_generator, in_a_greenlet, two_at_once],
    ids=lambda hold: hold.__name__,
)
def test_a_connection_in_use_is_taken_from_nobody_however_long_others_wait(face, hold):
    pool = face.pool(max_size=2 if hold is two_at_once else 1, acquire_timeout=2.5)
    leave, taken, failed = threading.Event(), threading.Event(), []

    def work():
        try:
            for _ in hold(face, pool, leave):
                taken.set()
        except BaseException as error:
            failed.append(error)
            taken.set()

    holder = threading.Thread(target=work)
    holder.start()
    try:
        assert taken.wait(10)
        with pytest.raises(unbroken.PoolTimeoutError):
            while True:  # the nested one may not have both yet
                pool.release(pool.acquire())
        assert pool.stats().leaked == 0
    finally:
        leave.set()
        holder.join(20)
    assert failed == []
    assert pool.stats().idle == pool.stats().size
