"""A worker with peewee that sleeps longer than the server lets a connection idle, and does not
notice.

DATABASE_URL=mysql://app:secret@127.0.0.1/shop python peewee_worker.py
"""

from __future__ import annotations

import os
import time
from typing import Any

import peewee

import unbroken.peewee

db = unbroken.peewee.connect(os.environ["DATABASE_URL"], max_connections=1)
PAUSE = float(os.environ.get("PAUSE", "5"))


class Task(db.Model):  # type: ignore[name-defined, misc] # peewee makes the base
    """Something to be done."""

    name = peewee.CharField()
    done = peewee.BooleanField(default=False)

    class Meta:  # noqa: D106 - peewee's own idiom
        table_name = "peewee_worker_task"


@db.unit
def open_tasks() -> Any:
    """What is to be done. The query is lazy; it is read before the connection goes back."""
    return Task.select().where(~Task.done)


@db.atomic()
def finish(task: Any) -> None:
    """One transaction; run again from the start when its connection was lost before the COMMIT."""
    Task.update(done=True).where(Task.id == task.id).execute()


def main(rounds: int) -> None:
    """Work, sleep, work."""
    db.create_tables([Task])
    for number in range(rounds):
        Task.create(name=f"task {number}")
        for task in open_tasks():
            finish(task)
            print("done:", task.name, flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(int(os.environ.get("ROUNDS", "5")))
