"""The whole pool where the kernel can less: on this system, with what others lack taken away before
unbroken is imported.

This is no macOS and no Windows: what is shown is that their code paths hold together and keep the
promises that they can keep. kqueue is a stand-in over epoll, with the manners that its manual
describes.
"""

from __future__ import annotations

import pytest

#: As on Windows: neither poll, epoll nor kqueue, no eventfd, no fork, and no page that is wiped in
#: a child.
WINDOWS = """
import asyncio, multiprocessing, os, select, socket, ssl, subprocess, sys, threading, time, psycopg, pymysql
for name in [name for name in dir(select) if name.startswith(("POLL", "poll", "EPOLL", "epoll"))]:
    delattr(select, name)
for name in ("eventfd", "EFD_CLOEXEC", "EFD_NONBLOCK", "fork", "register_at_fork"):
    delattr(os, name)
import selectors
selectors.DefaultSelector = selectors.SelectSelector
del socket.TCP_USER_TIMEOUT
ssl.enum_certificates = lambda store: []  # asked for where the platform is so called
sys.platform = "win32"
"""  # noqa: E501

#: As on macOS: poll without RDHUP, kqueue, no eventfd, TCP_KEEPALIVE for TCP_KEEPIDLE.
MACOS = """
import asyncio, multiprocessing, os, select, socket, ssl, subprocess, sys, threading, time, psycopg, pymysql
epoll, RDHUP, IN, ET = select.epoll, select.EPOLLRDHUP, select.EPOLLIN, select.EPOLLET

class kevent:
    def __init__(self, ident, filter=0, flags=0, fflags=0, data=0):
        self.ident, self.filter, self.flags, self.fflags, self.data = ident, filter, flags, fflags, data

class kqueue:
    def __init__(self):
        self.epoll = epoll()
        self.fileno, self.close = self.epoll.fileno, self.epoll.close

    def control(self, changes, most, timeout=None):
        failed = []
        for change in changes or ():
            if change.flags & select.KQ_EV_DELETE:
                self.epoll.unregister(change.ident)
                continue
            bits = RDHUP if change.fflags == 1 and change.data > 2**30 else IN | RDHUP
            bits |= ET if change.flags & select.KQ_EV_CLEAR else 0
            try:
                self.epoll.register(change.ident, bits)
            except FileExistsError:
                self.epoll.modify(change.ident, bits)
            except OSError as error:
                failed.append(kevent(change.ident, flags=select.KQ_EV_ERROR, data=error.errno))
        if failed:
            return failed[:most]
        found = self.epoll.poll(-1 if timeout is None else timeout, most) if most else []
        return [kevent(fd, flags=select.KQ_EV_EOF if bits & RDHUP else 0) for fd, bits in found]

for name in [name for name in dir(select) if name.startswith(("EPOLL", "epoll")) or name == "POLLRDHUP"]:
    delattr(select, name)
import selectors
selectors.DefaultSelector = selectors.PollSelector
for name, value in dict(KQ_FILTER_READ=-1, KQ_EV_ADD=1, KQ_EV_DELETE=2, KQ_EV_ONESHOT=0x10, KQ_EV_CLEAR=0x20, KQ_EV_ERROR=0x4000,
                        KQ_EV_EOF=0x8000, kevent=kevent, kqueue=kqueue).items():
    setattr(select, name, value)
for name in ("eventfd", "EFD_CLOEXEC", "EFD_NONBLOCK"):
    delattr(os, name)
socket.TCP_KEEPALIVE = socket.TCP_KEEPIDLE
del socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE
sys.platform = "darwin"
"""  # noqa: E501

STORY = """
from contextlib import closing
import unbroken
from unbroken.net import liveness
from unbroken.net.selector import new_selector

psycopg.waiting.wait = psycopg.waiting.wait_selector  # its own choice was made before; select() is what is left everywhere
psycopg.waiting.DefaultSelector = psycopg.waiting.selectors.SelectSelector
url, mysql, sees = sys.argv[1], sys.argv[2] == "True", sys.argv[3] == "True"
assert liveness.SUPPORTED is sees
assert type(new_selector()).__name__ == ("KqueueSelector" if sees else "BlindSelector")
me = "SELECT CONNECTION_ID()" if mysql else "SELECT pg_backend_pid()"
kill = "KILL %d" if mysql else "SELECT pg_terminate_backend(%d)"

def ask(conn, sql=me):
    cursor = conn.cursor()
    cursor.execute(sql)
    return cursor.fetchone()[0]

def sessions(pool, number):
    held = [pool.acquire() for _ in range(number)]
    found = sorted(ask(conn) for conn in held)
    for conn in held:
        pool.release(conn)
    return found

with unbroken.Pool(url, max_size=4, acquire_timeout=20) as pool, unbroken.Pool(url, max_size=1, name="killer") as killer:
    before = sessions(pool, 3)
    assert sessions(pool, 3) == before
    for session in before:
        with killer.connection(transaction=False) as conn, closing(conn.cursor()) as cursor:
            cursor.execute(kill % session)
    deadline = time.monotonic() + 20
    while sees and pool.stats().size > 0:  # the watcher sees each end
        assert time.monotonic() < deadline, pool.stats()
        time.sleep(0.01)
    time.sleep(0.2)  # what only a look at the socket finds has arrived
    after = sessions(pool, 3)
    assert not set(after) & set(before), (before, after)

    def work():
        for _ in range(50):
            pool.run(ask)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stats = pool.stats()
    assert stats.used == stats.waiting == 0 and stats.size <= 4, stats

    try:
        with pool.connection(deadline=0.5) as conn:
            ask(conn, "SELECT SLEEP(20)" if mysql else "SELECT 1 FROM pg_sleep(20)")
    except unbroken.DeadlineExceeded:
        pass
    else:
        raise AssertionError("the deadline was not kept")
    assert ask(pool.acquire())
print("well")
"""  # noqa: E501


@pytest.mark.parametrize(
    ("system", "sees"), [(WINDOWS, False), (MACOS, True)], ids=["as on Windows", "as on macOS"]
)
def test_a_pool_survives_kills_threads_and_deadlines_where_the_kernel_can_less(
    script, face, system, sees
):
    assert script(system + STORY, face.url(), face.is_mysql, sees, timeout=120) == "well"


ASYNC = """
import selectors
import unbroken

async def main():
    async with unbroken.AsyncPool(sys.argv[1], max_size=3, acquire_timeout=20) as pool:
        async def ask(sql="SELECT pg_backend_pid()"):
            async with pool.connection() as conn:
                return await conn.fetchval(sql)
        before = await asyncio.gather(*(ask() for _ in range(3)))
        await ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()")
        await asyncio.sleep(0.2)
        for _ in range(5):  # all at once, so that each connection is wanted
            assert all(await asyncio.gather(*(ask("SELECT pg_backend_pid() FROM pg_sleep(0.02)") for _ in range(3))))
        stats = pool.stats()
        assert stats.size <= 3 and stats.used == 0 and sum(stats.closed.values()) >= 1, stats

with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
    runner.run(main())
print("well")
"""  # noqa: E501


@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["as on Windows", "as on macOS"])
def test_an_asyncio_pool_survives_kills_where_the_kernel_can_less(script, postgres, system):
    asyncio_as_it_is = "import asyncio, selectors, asyncio.unix_events, asyncpg\n"
    assert script(asyncio_as_it_is + system + ASYNC, postgres.url("asyncpg")) == "well"
