"""No acknowledged write is lost, none is stored twice, whatever happens to the server meanwhile.

Eight threads insert numbers of their own through ``run``; sessions are killed at random, the server is restarted and crashed. ``make
test`` gives it a few seconds, ``make soak`` a minute; ``UNBROKEN_SECONDS=60`` and ``UNBROKEN_SEED=7`` change both.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter

import pytest

from unbroken import CommitUnknownError, OutageError, PoolTimeoutError

SECONDS = float(os.environ.get("UNBROKEN_SECONDS", "0"))
SEED = int(os.environ.get("UNBROKEN_SEED", "1"))


class History:
    """What each thread was told of each number."""

    def __init__(self, face, pool, table):
        self.face, self.pool, self.table = face, pool, table
        self.stop = threading.Event()
        self.acknowledged, self.unknown, self.refused, self.errors = [], [], [], []
        self.faults = Counter()

    def insert(self, i):
        rng = random.Random(SEED * 1000 + i)
        for number in itertools.count(i, 8):
            if self.stop.is_set():
                return
            try:
                self.pool.run(self.work, number, rng.random() < 0.3, rng.random() * 0.004)
            except CommitUnknownError:
                self.unknown.append(number)
            except (OutageError, PoolTimeoutError):
                self.refused.append(number)
            except Exception as error:
                self.errors.append((number, repr(error), getattr(error, "__notes__", None)))
            else:
                self.acknowledged.append(number)

    def work(self, conn, number, reads, pause):
        if reads:
            self.face.do(conn, f"SELECT COUNT(*) FROM {self.table} WHERE n < 10")
        self.face.do(conn, f"INSERT INTO {self.table} VALUES (%s)", number)
        time.sleep(pause)

    def break_things(self, seconds):
        rng, server = random.Random(SEED), self.face.server
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(rng.random() * 0.15)
            what = rng.choices(["kill one", "kill all", "restart", "crash"], [12, 4, 1, 1])[0]
            self.faults[what] += 1
            if what == "kill one":
                sessions = server.sessions()
                if sessions:
                    server._kill_session(rng.choice(sessions).id)
            elif what == "kill all":
                server.kill_sessions()
            elif what == "restart":
                server.restart(down=rng.random() * 0.2)
            else:
                server.crash(down=rng.random() * 0.2)
        self.stop.set()


def play(face, in_threads, seconds):
    pool, table = face.pool(max_size=6, acquire_timeout=30, outage_wait=30), face.table()
    history = History(face, pool, table)
    results = in_threads(9, lambda i: history.break_things(seconds) if i == 8 else history.insert(i), seconds=seconds + 90)
    assert [r for r in results if r is not None] == []
    stored = Counter(face.stored(table))
    stats = pool.stats()
    print(
        f"\n{face.name}: {seconds:.0f} s, seed {SEED}: {len(history.acknowledged)} acknowledged, {len(history.unknown)} unknown "
        f"({sum(stored[n] for n in history.unknown)} of them stored), {len(history.refused)} refused, {stats.replays} replays, "
        f"{stats.opened} connections, faults {dict(history.faults)}, ended by {dict(stats.closed)}"
    )
    lost = [n for n in history.acknowledged if stored[n] == 0]
    doubled = [n for n, times in stored.items() if times > 1]
    told = set(history.acknowledged) | set(history.unknown)
    unexpected = [n for n in stored if n not in told]
    assert (lost, doubled, unexpected, history.errors, history.refused) == ([], [], [], [], [])
    assert len(history.acknowledged) > 50
    assert stats.replays > 0
    assert history.faults.total() >= 3


def test_every_acknowledged_write_is_stored_once_and_no_other_twice(own_face, in_threads):
    play(own_face, in_threads, SECONDS or 4.0)


@pytest.mark.soak
def test_the_same_for_a_minute(own_face, in_threads):
    play(own_face, in_threads, SECONDS or 60.0)
