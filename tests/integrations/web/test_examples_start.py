"""The examples start as a web server starts them: several workers at once, on an empty database."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .conftest import ROOT, database

#: Imports what takes long, waits until all have, and starts the app.
WORKER = """
import asyncio, sys
import {first}
print("ready", flush=True)
sys.stdin.read()
sys.path.insert(0, "examples")
import {app} as example
if hasattr(example, "lifespan"):
    async def start():
        async with example.lifespan(None):
            pass
    asyncio.run(start())
"""


@pytest.mark.parametrize(
    ("app", "driver", "first"),
    [
        ("flask_app", "psycopg", "flask_sqlalchemy, unbroken.flask, psycopg"),
        ("flask_app", "pymysql", "flask_sqlalchemy, unbroken.flask, pymysql"),
        ("fastapi_app", "asyncpg", "fastapi, sqlalchemy.ext.asyncio, sqlalchemy.orm, unbroken.asgi, asyncpg"),
        ("peewee_flask_app", "psycopg", "flask, playhouse.flask_utils, unbroken.peewee, psycopg"),
    ],
)
def test_workers_that_start_at_once_all_come_up(app: str, driver: str, first: str) -> None:
    with database(driver) as server:
        url = server.url(driver)
        if app.startswith("peewee"):
            url = url.replace("postgresql+psycopg://", "psycopg3://")
        command = [sys.executable, "-c", WORKER.format(app=app, first=first)]
        env = {**os.environ, "DATABASE_URL": url, "PLAIN": ""}
        pipe = subprocess.PIPE
        workers = [subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdin is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.close()  # type: ignore[union-attr]
            worker.stdin = None
        said = [worker.communicate(timeout=60)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 4, "\n".join(said)
