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

from .blocks import MONGO, PAGES, ROOT, blocks, name, on_real_servers

#: Their blocks have tests of their own.
OTHERS = ("faults", "tutorial")


EACH = [
    pytest.param(code, id=f"{name(page)}-{number}")
    for page in PAGES
    if not name(page).startswith(OTHERS)
    for number, (_, code) in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("code", EACH)
def test_a_code_block_runs_as_it_stands(
    code: str, mariadb: MariaDB, postgres: PostgreSQL, request: pytest.FixtureRequest
) -> None:
    if MONGO in code:
        run_on_mongodb(code, request.getfixturevalue("mongodb"))
        return
    for server in (mariadb, postgres):
        server.admin("CREATE TABLE IF NOT EXISTS item (id INT PRIMARY KEY, name VARCHAR(50))")
    postgres.admin(f"GRANT ALL ON item TO {postgres.user}")
    code = on_real_servers(code, mariadb, postgres)
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


#: The README's links are absolute, because PyPI shows it, too. Here they lead to this tree's files.
ON_GITHUB = re.compile(
    r"\]\(https://(?:github\.com/unbroken-db/unbroken/blob"
    r"|raw\.githubusercontent\.com/unbroken-db/unbroken)/main/"
)


def local(page: Path) -> str:
    """The text of *page*, whose links to this repository lead to files here."""
    return ON_GITHUB.sub(f"]({ROOT}/", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_to_a_page_leads_to_one(page: Path) -> None:
    prose = re.sub(r"`[^`]*`", "``", local(page))
    missing = [
        link
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", prose)
        if not (page.parent / link).exists()
    ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)|[`*\[]", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    missing = [
        f"{target}#{anchor}"
        for target, anchor in re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", local(page))
        if anchor not in anchors(page.parent / target if target else page)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_heading_skips_a_level(page: Path) -> None:
    """The site is not built with such a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    jumps = [
        (before, level)
        for before, level in zip([0, *levels], levels, strict=False)
        if level > before + 1
    ]
    assert jumps == []


def test_the_settings_page_names_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    defaults = Settings()
    for setting in Settings.__dataclass_fields__:
        value = getattr(defaults, setting)
        assert f"| `{setting}` | `{value!r}` |" in page, setting
