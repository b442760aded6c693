"""One case's clients in a process of their own: units of work from threads or tasks, and from
children that it forks when told to.

Run by run.py: python -m history.worker CASE SEED JOURNAL URL URL. It says ``going`` when it is. A
line on stdin: ``fork``, or ``stop``; then it says, as a line of JSON, how its children ended, and
how its pools are left.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from .cases import CARELESS, CASES, Case
from .journal import Journal
from .workload import ChangedMindError, Workload

WRITERS = 8
#: Of the writers so many go through the proxy, the others to the server itself.
THROUGH_THE_PROXY = 5
CHILDS_UNITS = 8
#: A child that takes longer hangs: it says where, and ends.
CHILDS_TIME = 90.0
#: Numbers of each writer.
EACH = 1_000_000


class Blocking:
    """Threads, one for each writer."""

    def __init__(self, case: Case, seed: int, journal: Path, urls: list[str]) -> None:
        self.clients = [case.client(url) for url in urls]
        self.journal, self.workload = Journal(journal), Workload(seed)
        self.stop = threading.Event()
        self.children: list[int] = []  #: their exit statuses

    def play(self) -> Any:
        """Until ``stop`` is read; gives what is left."""
        writers = [threading.Thread(target=self._write, args=(n,)) for n in range(WRITERS)]
        for thread in writers:
            thread.start()
        self.listen()
        for thread in writers:
            thread.join()
        left = asyncio.run(at_rest(self))
        for client in self.clients:
            client.close()
        return left

    def _write(self, writer: int) -> None:
        for number in count(writer * EACH):
            if self.stop.is_set():
                return
            self._one(self.clients[writer >= THROUGH_THE_PROXY], number)

    def _one(self, client: Any, number: int) -> None:
        unit = self.workload.unit(number)
        with self.journal.attempt(number):
            if unit.manner == "forgotten" and hasattr(client, "forget"):
                client.forget(partial(unit.steps, is_forgotten=True))
                raise ChangedMindError
            client.unit(unit.steps, again=unit.again, deadline=unit.deadline)
        self._going(number)

    def _going(self, number: int) -> None:
        if number == 0:
            print("going", flush=True)

    # ---- orders

    def listen(self) -> None:
        """Do what stdin says, until it says stop."""
        for serial, line in enumerate(sys.stdin, WRITERS):
            if line.strip() == "stop":
                break
            self._fork(serial)
        self.stop.set()

    def _fork(self, writer: int) -> None:
        # a raw fork(2) beside other threads leaves the interpreter's own locks held for ever
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            self.children.append(os.waitstatus_to_exitcode(status))
            return
        status = 1
        try:
            faulthandler.dump_traceback_later(CHILDS_TIME, exit=True)
            self._as_child(writer)
            status = 0
        finally:
            os._exit(status)

    def _as_child(self, writer: int) -> None:
        for number in range(writer * EACH, writer * EACH + CHILDS_UNITS):
            self._one(self.clients[number % 2], number)


class Asyncio(Blocking):
    """Tasks, one for each writer; orders are read, and children forked, in a thread of its own."""

    def play(self) -> Any:
        return asyncio.run(self._play())

    async def _play(self) -> Any:
        writers = [asyncio.create_task(self._awrite(n)) for n in range(WRITERS)]
        await asyncio.to_thread(self.listen)
        await asyncio.gather(*writers)
        left = await at_rest(self)
        for client in self.clients:
            await client.close()
        return left

    async def _awrite(self, writer: int) -> None:
        for number in count(writer * EACH):
            if self.stop.is_set():
                return
            await self._aone(self.clients[writer >= THROUGH_THE_PROXY], number)

    async def _aone(self, client: Any, number: int) -> None:
        unit = self.workload.unit(number)
        with self.journal.attempt(number):
            if unit.manner == "forgotten" and hasattr(client, "forget"):
                await client.forget(partial(unit.steps, is_forgotten=True))
                raise ChangedMindError
            await client.unit(unit.steps, again=unit.again, deadline=unit.deadline)
        self._going(number)

    def _as_child(self, writer: int) -> None:
        async def units() -> None:
            for number in range(writer * EACH, writer * EACH + CHILDS_UNITS):
                await self._aone(self.clients[number % 2], number)
            for client in self.clients:
                await client.close()

        asyncio.run(units())


async def at_rest(worker: Blocking) -> dict[str, Any]:
    """How the pools are left when nobody works any more: what they hold, and what the kernel holds
    for them.
    """
    deadline = time.monotonic() + 10
    while (
        not all(s.used == s.waiting == 0 and s.idle == s.size for s in _stats(worker))
        or _close_waits()
    ):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.01)
    return {
        "children": worker.children,
        "pools": [
            {
                name: getattr(each, name, 0)
                for name in ("used", "waiting", "idle", "size", "opened", "replays", "healed")
            }
            for each in _stats(worker)
        ],
        "close_wait": _close_waits(),
    }


def _stats(worker: Blocking) -> list[Any]:
    return [client.stats() for client in worker.clients]


def _close_waits() -> int:
    """Sockets that the other side has closed and we have not."""
    return sum(
        each.status == psutil.CONN_CLOSE_WAIT for each in psutil.Process().net_connections("tcp")
    )


def main() -> None:
    """Play what the command line says."""
    name, seed, journal, *urls = sys.argv[1:]
    faulthandler.register(signal.SIGUSR1)  # asked for by run.py, when they do not end
    # an outage or two a second are no news here
    logging.getLogger("unbroken").setLevel(logging.ERROR)
    case = (CASES | CARELESS)[name]
    kind = Asyncio if case.is_async else Blocking
    print(json.dumps(kind(case, int(seed), Path(journal), urls).play()), flush=True)


if __name__ == "__main__":
    main()
