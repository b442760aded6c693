"""What keeps the house easy to read: files that are seen whole, and a page that names all rooms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .test_floors import FLOORS

ROOT = Path(__file__).parents[1]
FILES = [path for tree in ("src", "drill/src") for path in sorted((ROOT / tree).rglob("*.py"))]
LONGEST_FILE = 450
MOST_WORDS = 25

PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_short_enough_to_be_one_thing(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_the_architecture_page_names_every_room() -> None:
    rooms, _, _ = PAGE.partition("## Words")
    doors = {"sqlalchemy", "peewee", "mongo", "flask", "wsgi", "asgi", "django", "__main__"}
    for room in set(FLOORS) - doors - {"importing", "launcher"}:
        assert re.search(rf"`{room}/?`", rooms), room


def test_the_glossary_is_short_enough_to_be_learned() -> None:
    _, _, words = PAGE.partition("## Words")
    rows = [line for line in words.splitlines() if line.startswith("| ")]
    assert 10 <= len(rows) - 1 <= MOST_WORDS
