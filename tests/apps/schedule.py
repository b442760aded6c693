"""APScheduler with its jobs in a database, as its documentation shows it: ``schedule.py URL SECONDS
PAUSE``. Prints one line of JSON.

Every job runs each *PAUSE* seconds. Beside that the program adds, changes and removes jobs, as a
web application does.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler

ran: Counter[str] = Counter()


def tick(name: str) -> None:
    ran[name] += 1


def main(url: str, seconds: float, pause: float) -> dict[str, Any]:
    scheduler = BackgroundScheduler()
    scheduler.add_jobstore("sqlalchemy", url=url)
    scheduler.start()
    for number in range(4):
        scheduler.add_job(
            tick,
            "interval",
            seconds=pause,
            args=[str(number)],
            id=str(number),
            replace_existing=True,
        )
    thread = scheduler._thread
    asked, errors = 0, []
    until = time.monotonic() + seconds
    print("ready", flush=True)
    while time.monotonic() < until:
        for call in (
            lambda: scheduler.add_job(
                tick, "interval", seconds=600, args=["extra"], id="extra", replace_existing=True
            ),
            lambda: scheduler.reschedule_job("extra", trigger="interval", seconds=700),
            lambda: scheduler.get_jobs(),
            lambda: scheduler.remove_job("extra"),
        ):
            asked += 1
            try:
                call()
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}".splitlines()[0])
            time.sleep(pause / 10)
    dead = not thread.is_alive()
    return {
        "asked": asked,
        "errors": errors,
        "dead": dead,
        "ran": sum(ran.values()),
        "expected": int(4 * seconds / pause),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(float, sys.argv[2:]))))
