"""Applications without units of work while sessions are killed: see ``heal_storm.py``."""

from __future__ import annotations

from typing import Any

import pytest

from .heal_storm import BODIES, requests, storm


@pytest.mark.parametrize("kind", requests(0))
@pytest.mark.parametrize("backend", ["mariadb", "postgresql"])
@pytest.mark.parametrize("name", BODIES)
def test_each_error_is_told_and_the_rows_are_what_was_told(
    name: str, backend: str, kind: str, new_mariadb: Any, new_postgres: Any
) -> None:
    server = new_mariadb() if backend == "mariadb" else new_postgres()
    ends, wrong = storm(name, server, 1.0, kind)
    assert wrong == 0, dict(ends)
    assert ends["done"] > 10
    assert not [how for how in ends if "silent" in how], dict(ends)
    assert sum(count for how, count in ends.items() if how.startswith("first")) <= 2, dict(ends)
