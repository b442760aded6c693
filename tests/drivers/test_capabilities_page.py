"""docs/drivers.md says what the drivers declare; that they keep it is what the other files of this
folder test.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from unbroken.drivers import known, open_driver

SCRIPT = Path(__file__).parents[2] / "scripts" / "drivers-page"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_table_is_what_the_drivers_declare(generator: dict[str, Any]) -> None:
    text = generator["PAGE"].read_text()
    assert text == generator["page"](text), "run scripts/drivers-page"


def test_every_driver_stands_in_the_table_for_each_pool_that_it_serves(
    generator: dict[str, Any],
) -> None:
    rows = generator["table"]().splitlines()[2:]
    for each in known():
        for serves, pool in ((each.sync, "`Pool`"), (each.asynchronous, "`AsyncPool`")):
            named = [
                row
                for row in rows
                if row.startswith((f"| {each.name} |", f"| {each.name}, ")) and f"| {pool} |" in row
            ]
            assert bool(named) is serves, (each.name, pool)


@pytest.mark.parametrize("each", known(), ids=lambda each: each.name)
def test_a_driver_object_can_what_its_class_declares(each: Any, generator: dict[str, Any]) -> None:
    declared = {(pool, capabilities) for _, pool, capabilities in generator["forms"](each)}
    for is_async, serves, pool in (
        (False, each.sync, "`Pool`"),
        (True, each.asynchronous, "`AsyncPool`"),
    ):
        if serves:
            driver = open_driver(connect=lambda: None, driver=each.name, is_async=is_async)
            assert (pool, driver.capabilities) in declared
