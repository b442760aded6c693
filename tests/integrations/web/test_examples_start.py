"""The examples start as a web server starts them: several workers at once, on an empty database."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from unbroken_drill.servers import PostgreSQL

from .conftest import ROOT, database

WORKERS = 3

#: Starts the app; the uvicorn one as far as its tables.
WORKER = """
import asyncio, sys
sys.path.insert(0, "examples")
import {app} as example
if hasattr(example, "lifespan"):
    async def start():
        async with example.lifespan(None):
            pass
    asyncio.run(start())
"""

#: Holds every CREATE TABLE back until all workers have looked, found no table, and want to make it;
#: for 60 s at most.
GATES = {
    "postgresql": (
        f"""DO $$ BEGIN
        LOCK TABLE pg_catalog.pg_class IN SHARE MODE;
        FOR i IN 1..6000 LOOP
            EXIT WHEN (SELECT count(*) FROM pg_locks WHERE NOT granted) >= {WORKERS};
            PERFORM pg_sleep(0.01);
        END LOOP;
    END $$"""
    ),
    "mariadb": (
        f"""BEGIN NOT ATOMIC
        DECLARE i INT DEFAULT 0;
        FLUSH TABLES WITH READ LOCK;
        WHILE i < 6000 AND (SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'Waiting for backup lock') < {WORKERS} DO
            SET i = i + 1;
            DO SLEEP(0.01);
        END WHILE;
    END"""  # noqa: E501
    ),
}


@pytest.mark.parametrize(
    ("app", "driver"),
    [
        ("flask_app", "psycopg"),
        ("flask_app", "pymysql"),
        ("fastapi_app", "asyncpg"),
        ("peewee_flask_app", "psycopg"),
    ],
)
def test_workers_that_start_at_once_all_come_up(app: str, driver: str) -> None:
    with database(driver) as server, ThreadPoolExecutor(1) as aside:
        url = server.url(driver)
        if app.startswith("peewee"):
            url = url.replace("postgresql+psycopg://", "psycopg3://")
        gate = aside.submit(
            server.admin,
            GATES["postgresql" if isinstance(server, PostgreSQL) else "mariadb"],
            timeout=90,
        )
        env = {**os.environ, "DATABASE_URL": url, "PLAIN": ""}
        command = [sys.executable, "-c", WORKER.format(app=app)]
        workers = [
            subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
            for _ in range(WORKERS)
        ]
        said = [worker.communicate(timeout=100)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * WORKERS, "\n".join(said)
        gate.result()
