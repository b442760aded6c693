"""The documentation is right: its code runs, its links lead somewhere, its tables are what the code
says.
"""

from __future__ import annotations

import re
from pathlib import Path

import mongoengine
import pytest

import unbroken.mongo
from unbroken.settings import Settings
from unbroken_drill.servers import MariaDB, MongoDB, PostgreSQL

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Where the pages' examples live; the tests put a real server there.
MYSQL, POSTGRES = (
    "mysql+pymysql://app:secret@127.0.0.1/shop",
    "postgresql+asyncpg://app:secret@127.0.0.1/shop",
)
PSYCOPG = "postgresql+psycopg://app:secret@127.0.0.1/shop"
MONGO = "mongodb://127.0.0.1/shop"


def blocks() -> list[object]:
    found = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text())):
            found.append(pytest.param(match.group(1), id=f"{page.stem}-{number}"))
    return found


@pytest.mark.parametrize("code", blocks())
def test_a_code_block_runs_as_it_stands(
    code: str, mariadb: MariaDB, postgres: PostgreSQL, request: pytest.FixtureRequest
) -> None:
    if MONGO in code:
        run_on_mongodb(code, request.getfixturevalue("mongodb"))
        return
    for server in (mariadb, postgres):
        server.admin("CREATE TABLE IF NOT EXISTS item (id INT PRIMARY KEY, name VARCHAR(50))")
    postgres.admin(f"GRANT ALL ON item TO {postgres.user}")
    for written, real in (
        (MYSQL, mariadb.url("pymysql")),
        (POSTGRES, postgres.url("asyncpg")),
        (PSYCOPG, postgres.url("psycopg")),
    ):
        code = code.replace(written, real)
    try:
        exec(compile(code, "<documentation>", "exec"), {"__name__": "documentation"})
    finally:
        for server in (mariadb, postgres):
            server.admin("DROP TABLE item")


def run_on_mongodb(code: str, server: MongoDB) -> None:
    try:
        exec(
            compile(
                code.replace(MONGO, f"mongodb://127.0.0.1:{server.port}/shop"),
                "<documentation>",
                "exec",
            ),
            {"__name__": "documentation"},
        )
    finally:
        unbroken.mongo.disconnect_all()
        mongoengine.connection._connection_settings.clear()
        server.command({"dropDatabase": 1}, "shop")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_page_leads_to_one(page: Path) -> None:
    missing = [
        link
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)|[`*\[]", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    missing = [
        f"{name}#{anchor}"
        for name, anchor in re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", page.read_text())
        if anchor not in anchors(page.parent / name if name else page)
    ]
    assert missing == []


def test_the_settings_page_names_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    defaults = Settings()
    for name in Settings.__dataclass_fields__:
        value = getattr(defaults, name)
        assert f"| `{name}` | `{value!r}` |" in page, name
