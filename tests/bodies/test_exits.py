"""Every body is used while its interpreter ends (``exiting.py``): nothing hangs, nothing is
printed, exit codes stay what they are, and each use is served or told the truth at once.

What is due from each moment stands in DUE. ``make test`` plays one row for each mechanism, ``make
soak`` all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unbroken_drill.servers import MongoDB, PostgreSQL

from .bodies import OnLoop
from .every import BODIES
from .exiting import MOMENTS

#: Seconds for a whole program, on a loaded machine; and for a use that is told that it is too late.
LIMIT, AT_ONCE = 60.0, 5.0
#: What a use may be told at the end: by unbroken, by Python's imports and executors, by greenlet.
TRUTHS = (
    "the interpreter is shutting down",
    "Python is likely shutting down",
    "after shutdown",
    "after interpreter shutdown",
    "greenlet is being finalized",
)

SERVED, TOLD, EITHER, NOT_USED = "served", "told", "either", "not used"
#: What becomes of a use at a moment. EITHER where it depends on the version of Python whether a
#: thread can still be started.
DUE = {
    "in_a_finalizer": TOLD,
    "in_a_cycle": TOLD,
    "beside_daemons": TOLD,
    "in_an_early_callback": EITHER,
    "in_a_late_callback": EITHER,
    "in_weakref_finalize": EITHER,
    "on_a_thread": EITHER,
    "by_name_on_a_thread": EITHER,
    "in_an_executor": EITHER,
    "with_one_held": NOT_USED,
    "in_a_generator": NOT_USED,
    "by_sys_exit": NOT_USED,
    "by_os_exit": NOT_USED,
    "by_an_error": NOT_USED,
    "by_an_interrupt": NOT_USED,
    "with_tasks_under_way": NOT_USED,
    "after_its_loop": SERVED,
    "in_a_child": SERVED,
}
CODES = {"by_sys_exit": 3, "by_os_exit": 4, "by_an_error": 1, "by_an_interrupt": -2}
#: What the program itself leaves on stderr, as its last line.
LAST_LINES = {
    "by_an_error": "ValueError: the application's own",
    "by_an_interrupt": "KeyboardInterrupt",
}
BLOCKING_ONLY = {
    "beside_daemons", "with_one_held", "in_a_generator", "by_sys_exit", "by_os_exit", "by_an_error",
    "by_an_interrupt",
}  # fmt: skip
ASYNC_ONLY = {"by_name_on_a_thread", "with_tasks_under_way", "after_its_loop"}


#: What others print, and what unbroken prints on purpose.
LEFT_OUT = {
    ("async peewee", "after_its_loop"): "playhouse leaves a task to the loop that is closed",
    ("mongodb", "in_a_child"): "a client that was used before a fork is warned of",
}


@dataclass(frozen=True)
class Row:
    """One program."""

    body: str
    moment: str
    when: str

    def __str__(self) -> str:
        return f"{self.body}-{self.moment}-{self.when}".replace(" ", "_")


def _rows() -> Iterator[Row]:
    for body, kind in BODIES.items():
        left_out = BLOCKING_ONLY if issubclass(kind, OnLoop) else ASYNC_ONLY
        for moment in MOMENTS:
            if moment not in left_out and (body, moment) not in LEFT_OUT:
                yield from (Row(body, moment, when) for when in ("first", "later"))


ALL = list(_rows())
#: One for each mechanism.
QUICK = [
    Row("pool", "in_a_cycle", "first"),
    Row("pool", "beside_daemons", "later"),
    Row("pool", "in_an_early_callback", "first"),
    Row("pool", "on_a_thread", "later"),
    Row("pool", "in_a_generator", "later"),
    Row("pool", "by_sys_exit", "first"),
    Row("sqlalchemy", "in_a_generator", "first"),
    Row("async pool", "with_tasks_under_way", "later"),
    Row("async sqlalchemy", "by_name_on_a_thread", "first"),
    Row("django", "with_one_held", "later"),
    Row("mongodb", "in_a_late_callback", "first"),
]


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    code: int
    said: list[tuple[float, str]]
    stderr: str


def _program(row: Row, url: str) -> dict[str, Any]:
    """What starts the program of *row*."""
    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    return {
        "args": [sys.executable, "-m", "bodies.exiting", row.body, url, row.moment, row.when],
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        "text": True,
    }


def _play(row: Row, url: str) -> Outcome:
    done = subprocess.run(**_program(row, url), capture_output=True, timeout=LIMIT, check=False)
    said = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    return Outcome(done.returncode, said, done.stderr)


def _check(row: Row, outcome: Outcome) -> None:
    due, said = DUE[row.moment], outcome.said[row.when == "later" :]
    assert outcome.code == CODES.get(row.moment, 0), outcome
    if row.when == "later":
        assert outcome.said[0][1] == "served", outcome
    assert len(said) == (due is not NOT_USED), outcome
    for took, told in said:
        if told != "served" or due is TOLD:
            assert due is not SERVED, told
            assert any(truth in told for truth in TRUTHS), told
            assert took < AT_ONCE, outcome
    last = LAST_LINES.get(row.moment)
    if last is None:
        assert outcome.stderr == "", outcome.stderr
    else:
        assert outcome.stderr.splitlines()[-1] == last, outcome.stderr
        assert outcome.stderr.count("Traceback") == 1, outcome.stderr


def _fault(row: Row, url: str) -> str:
    """What is wrong with a program; nothing where it did as it should."""
    try:
        _check(row, _play(row, url))
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def _faults(rows: list[Row], servers: list[PostgreSQL | MongoDB]) -> dict[str, str]:
    """What is wrong with the programs of *rows*, which are played two at a time."""
    urls = [
        next(server for server in servers if server.backend == BODIES[row.body].backend).url(
            BODIES[row.body].driver
        )
        for row in rows
    ]
    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(map(str, rows), threads.map(_fault, rows, urls), strict=True))
    return {row: fault for row, fault in found.items() if fault}


def test_a_use_at_the_end_of_the_program_is_served_or_told_so_at_once(
    unbroken_postgres: PostgreSQL, unbroken_mongodb: MongoDB
) -> None:
    assert _faults(QUICK, [unbroken_postgres, unbroken_mongodb]) == {}


@pytest.mark.soak
@pytest.mark.parametrize("name", BODIES)
def test_every_use_at_the_end_of_the_program_is_served_or_told_so_at_once(
    name: str, unbroken_postgres: PostgreSQL, unbroken_mongodb: MongoDB
) -> None:
    rows = [row for row in ALL if row.body == name]
    assert _faults(rows, [unbroken_postgres, unbroken_mongodb]) == {}


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["in_a_generator", "with_one_held", "in_a_cycle"])
@pytest.mark.parametrize("name", ["pool", "sqlalchemy", "django", "peewee"])
def test_a_program_ends_though_its_server_is_frozen(
    name: str, moment: str, unbroken_postgres: PostgreSQL
) -> None:
    row = Row(name, moment, "frozen")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(
        **_program(row, unbroken_postgres.url(BODIES[name].driver)), **pipes
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            unbroken_postgres.freeze()
            try:
                _, stderr = child.communicate("\n", timeout=LIMIT / 2)
            finally:
                unbroken_postgres.thaw()
        finally:
            child.kill()
    assert (child.returncode, stderr) == (0, "")
