"""Background threads take no signals: else a web server's handler runs in one of them, and the
process never ends.
"""

from __future__ import annotations

import contextvars
import signal
import subprocess
import sys
import threading

from unbroken.net.signals import start_thread, unsignalled


def mask() -> set[int]:
    return {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def started_inside() -> tuple[set[int], set[int]]:
    """The masks of a thread that is started inside, and of one that it starts."""
    masks: list[set[int]] = []

    def outer() -> None:
        masks.append(mask())
        inner = threading.Thread(target=lambda: masks.append(mask()))
        inner.start()
        inner.join()

    with unsignalled():
        thread = threading.Thread(target=outer)
        thread.start()
    thread.join()
    return masks[0], masks[1]


def test_a_thread_that_is_started_inside_blocks_signals_and_so_do_those_that_it_starts() -> None:
    before = mask()
    for inside in started_inside():
        assert {
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGUSR1,
            signal.SIGCHLD,
        } <= inside
        assert not {signal.SIGSEGV, signal.SIGABRT, signal.SIGPROF} & inside
    assert mask() == before


def test_a_signal_that_comes_meanwhile_is_handled_afterwards() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    try:
        with unsignalled():
            signal.raise_signal(signal.SIGUSR1)
            assert seen == []
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_greenlets_of_gevent_have_no_signals_of_their_own() -> None:
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import signal\n"
        "from unbroken.net.signals import unsignalled\n"
        "with unsignalled(): print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_a_thread_for_everybody_is_in_nobodys_context_and_takes_no_signals() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="nobody's")
    seen: list[object] = []

    def work(word: str) -> None:
        seen.extend([word, var.get(), signal.SIGTERM in mask()])

    token = var.set("mine")
    try:
        thread = start_thread(work, "word", name="for everybody")
        thread.join(10)
    finally:
        var.reset(token)
    assert seen == ["word", "nobody's", True]
    assert (thread.name, thread.daemon) == ("for everybody", True)
