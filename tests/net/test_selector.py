"""net/selector.py: kqueue's manners by a stand-in, and the timers that remain where there is
neither.
"""

from __future__ import annotations

import os
import socket
import time

from unbroken.net import watcher as watchers
from unbroken.net.liveness import Liveness, look
from unbroken.net.selector import BlindSelector, EpollSelector, KqueueSelector, new_selector
from unbroken.net.watcher import ThreadWatcher


class FakeKevent:
    def __init__(self, ident, filter=0, flags=0, fflags=0, data=0):  # noqa: A002 - its real name
        self.ident, self.filter, self.flags, self.fflags, self.data = (
            ident,
            filter,
            flags,
            fflags,
            data,
        )


class FakeKqueueApi:
    """A kqueue on top of epoll: EVFILT_READ, EV_CLEAR, and NOTE_LOWAT above every buffer, which
    leaves only EOF.
    """

    KQ_FILTER_READ, KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_CLEAR = -1, 0x1, 0x2, 0x20
    kevent = FakeKevent

    def kqueue(self):
        import select

        api, epoll = self, select.epoll()

        class Queue:
            def control(self, changes, most, timeout):
                for change in changes or ():
                    assert change.filter == api.KQ_FILTER_READ
                    self.change(change)
                return (
                    [
                        FakeKevent(fd)
                        for fd, _ in epoll.poll(-1 if timeout is None else timeout, most)
                    ]
                    if most
                    else []
                )

            def change(self, change):
                if change.flags & api.KQ_EV_DELETE:
                    epoll.unregister(change.ident)
                    return
                only_eof = change.fflags == 1 and change.data > 2**30
                bits = select.EPOLLRDHUP if only_eof else select.EPOLLIN
                bits |= select.EPOLLET if change.flags & api.KQ_EV_CLEAR else 0
                try:
                    epoll.register(change.ident, bits)
                except FileExistsError:
                    epoll.modify(change.ident, bits)

            fileno = staticmethod(epoll.fileno)
            close = staticmethod(epoll.close)

        return Queue()


def test_this_system_uses_epoll():
    selector = new_selector()
    assert isinstance(selector, EpollSelector)
    selector.close()


def test_a_watcher_works_on_kqueue(monkeypatch, tcp_pair, until):
    monkeypatch.setattr(watchers, "new_selector", lambda: KqueueSelector(FakeKqueueApi()))
    (ours, theirs), (other, other_server) = tcp_pair(), tcp_pair()
    watcher, calls = ThreadWatcher(), []
    watcher.watch(ours.fileno(), lambda: calls.append("hung up"))
    watcher.watch(other.fileno(), lambda: calls.append("unwatched"))
    watcher.unwatch(other.fileno())
    watcher.unwatch(other.fileno())
    watcher.at(time.monotonic() + 0.01, lambda: calls.append("time"))
    theirs.sendall(b"an answer")
    until(lambda: calls == ["time"])
    other_server.close()
    theirs.close()
    until(lambda: calls == ["time", "hung up"])
    assert isinstance(watcher._selector, KqueueSelector)
    watcher.close()
    assert calls == ["time", "hung up"]


def test_where_there_is_neither_timers_still_come(monkeypatch, tcp_pair, until, descriptors):
    monkeypatch.setattr(watchers, "new_selector", BlindSelector)
    monkeypatch.delattr(os, "eventfd")
    ours, theirs = tcp_pair()
    before = descriptors()
    watcher, calls = ThreadWatcher(), []
    watcher.watch(ours.fileno(), lambda: calls.append("hung up"))
    watcher.at(time.monotonic() + 3600, lambda: calls.append("late"))
    watcher.at(time.monotonic() + 0.01, lambda: calls.append("time"))
    until(lambda: calls == ["time"])
    theirs.shutdown(socket.SHUT_WR)
    until(lambda: look(ours.fileno()) is Liveness.DEAD)
    watcher.unwatch(ours.fileno())
    watcher.close()
    assert calls == ["time"]
    assert descriptors() <= before  # fewer, if a thread of an earlier test has ended meanwhile


def test_an_epoll_in_a_child_may_be_closed_and_the_parents_registrations_stay(in_child):
    selector = EpollSelector()
    ours, theirs = socket.socketpair()
    selector.add(ours.fileno())
    assert in_child(lambda: (selector.close(), ours.close())[0]) == "None"
    theirs.close()
    assert selector.wait(10) == [ours.fileno()]
    assert selector.wait(0) == [], "one report is enough"
    selector.add(ours.fileno())
    assert selector.wait(10) == [ours.fileno()]
    selector.remove(ours.fileno())
    selector.remove(ours.fileno())
    ours.close()
    selector.add(-1)
    selector.close()
    selector.add(0)
    selector.remove(0)
