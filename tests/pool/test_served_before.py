"""A pool that has served remembers it after a fork and on another event loop: its own fault may
pass there, too.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

PROGRAM = """
import asyncio, os, sys, threading
import psycopg
import unbroken

url, dsn = sys.argv[1], sys.argv[1].replace("+psycopg", "")
is_broken = False

def broken():
    global is_broken
    is_broken = True

    def mend():
        global is_broken
        is_broken = False

    threading.Timer(0.6, mend).start()

def connect():
    if is_broken:
        raise ValueError("the key is being replaced")
    return psycopg.connect(dsn)

async def connect_too():
    if is_broken:
        raise ValueError("the key is being replaced")
    return await psycopg.AsyncConnection.connect(dsn)

pool = unbroken.Pool(connect=connect, driver="psycopg")
apool = unbroken.AsyncPool(connect=connect_too, driver="psycopg")

def ask():
    with pool.connection() as conn:
        return conn.execute("SELECT 1").fetchone()[0]

async def ask_too():
    async with apool.connection() as conn:
        return (await (await conn.execute("SELECT 1")).fetchone())[0]

assert ask() == asyncio.run(ask_too()) == 1
broken()
assert asyncio.run(ask_too()) == 1
child = os.fork()
if not child:
    code = 1
    try:
        broken()
        assert ask() == 1
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("served")
"""


def test_a_pool_that_has_served_waits_for_its_own_fault_to_pass_in_a_child_and_on_another_loop(
    unbroken_postgres: Any,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, unbroken_postgres.url("psycopg")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "served\n", done.stderr
