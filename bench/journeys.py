"""Five journeys through the house: which files a call enters, and how often it comes back to one.

    python bench/journeys.py

A file counts once, however often it is entered; a *return* is a call into a file that the caller's
thread had left before. Only the calling thread is followed, since a reader follows only that.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import unbroken
from unbroken_drill.servers import MongoDB, PostgreSQL

HERE = str(Path(unbroken.__file__).parent) + os.sep


class Journey:
    """The files of ours that one call enters, in order."""

    def __init__(self) -> None:
        self.stays: list[str] = []

    def follow(self, work: Callable[[], Any]) -> None:
        """Do *work* and note each change of file."""
        own = threading.get_ident()

        def trace(frame: Any, event: str, _arg: Any) -> None:
            name = frame.f_code.co_filename
            if event != "call" or threading.get_ident() != own or not name.startswith(HERE):
                return
            place = name[len(HERE) :]
            if not self.stays or self.stays[-1] != place:
                self.stays.append(place)

        sys.setprofile(trace)
        try:
            work()
        finally:
            sys.setprofile(None)

    def __str__(self) -> str:
        files = list(dict.fromkeys(self.stays))
        rooms = {name.rpartition("/")[0] or name for name in files}
        returns = len(self.stays) - len(files)
        return f"{len(files):3} files, {len(rooms)} rooms, {returns:3} returns: {', '.join(files)}"


def acquire(server: PostgreSQL) -> Journey:
    """An idle connection is there."""
    journey = Journey()
    with unbroken.Pool(server.url("psycopg")) as pool:
        pool.release(pool.acquire())
        taken: list[Any] = []
        journey.follow(lambda: taken.append(pool.acquire()))
        pool.release(taken.pop())
    return journey


def acquire_in_an_outage(server: PostgreSQL) -> Journey:
    """The server is away, and does not come back in time."""
    journey = Journey()
    with unbroken.Pool(server.url("psycopg"), outage_wait=0.3) as pool:
        pool.release(pool.acquire())
        server.stop()
        journey.follow(lambda: _expect(unbroken.UnbrokenError, pool.acquire))
        server.start()
    return journey


def checkout_of_a_dead_connection(server: PostgreSQL) -> Journey:
    """SQLAlchemy takes a connection that was killed while it was idle."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(server.url("psycopg") + "?plugin=unbroken")
    with engine.connect() as conn:
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    journey = Journey()
    server.admin(f"SELECT pg_terminate_backend({pid})")
    journey.follow(lambda: engine.connect().close())
    engine.dispose()
    return journey


def call_in_a_forked_child(server: MongoDB) -> Journey:
    """The child of a fork uses the parent's MongoDB client."""
    from unbroken.mongo import MongoClient

    client: Any = MongoClient(server.url())
    client.shop.items.find_one()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        journey = Journey()
        journey.follow(client.shop.items.find_one)
        os.write(writing, "\n".join(journey.stays).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        journey = Journey()
        journey.stays = told.read().split()
    os.waitpid(pid, 0)
    client.close()
    return journey


def replayed_request(server: PostgreSQL) -> Journey:
    """A GET in Flask whose connection is killed at its statement."""
    import flask

    import unbroken.flask

    app = flask.Flask("journey")
    pool = unbroken.Pool(server.url("psycopg"))
    unbroken.flask.Unbroken(app, databases=[pool])
    tries: list[int] = []

    @app.get("/")
    def view() -> str:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            tries.append(conn.info.backend_pid)
            if len(tries) == 2:
                server.admin(f"SELECT pg_terminate_backend({tries[-1]})")
            return str(conn.execute("SELECT 2").fetchone())

    client = app.test_client()
    client.get("/")
    journey = Journey()
    journey.follow(lambda: client.get("/"))
    assert len(tries) == 3, tries
    pool.close()
    return journey


def _expect(kind: type[Exception], work: Callable[[], Any]) -> None:
    try:
        work()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def main() -> None:
    """Print a line for each journey."""
    with PostgreSQL() as postgres, MongoDB() as mongo:
        for name, journey in (
            ("acquire", acquire(postgres)),
            ("acquire in an outage", acquire_in_an_outage(postgres)),
            ("checkout of a dead connection", checkout_of_a_dead_connection(postgres)),
            ("MongoDB in a forked child", call_in_a_forked_child(mongo)),
            ("replayed Flask request", replayed_request(postgres)),
        ):
            print(f"{name:30} {journey}", flush=True)


if __name__ == "__main__":
    main()
