"""The pages, their code blocks, and the real servers that stand in for those that pages name."""

from __future__ import annotations

import re
from pathlib import Path

from unbroken_drill.servers import MariaDB, PostgreSQL

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in page.parts
]
#: Where the pages' examples connect to.
MONGO = "mongodb://127.0.0.1/shop"
_URL = re.compile(r"(mysql|postgresql)(?:\+(\w+))?://app:secret@127\.0\.0\.1/shop")
_KEYWORDS = 'host="127.0.0.1", user="app", password="secret", database="shop"'
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    """What a page is called in the names of tests."""
    return page.relative_to(ROOT).with_suffix("").as_posix().replace("docs/", "").replace("/", "-")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """The language and the text of each code block in one of *languages*; none named: of all."""
    found = [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]
    return [block for block in found if not languages or block[0] in languages]


def on_real_servers(code: str, mariadb: MariaDB, postgres: PostgreSQL) -> str:
    """*code* with the servers of the tests in place of those that the page names."""
    servers = {"mysql": mariadb, "postgresql": postgres}

    def real(found: re.Match[str]) -> str:
        server, driver = servers[found[1]], found[2]
        if driver is not None:
            return server.url(driver)
        return server.url("psycopg" if found[1] == "postgresql" else "pymysql").replace(
            "+psycopg", ""
        )

    keywords = (
        f'host="127.0.0.1", port={mariadb.port}, user="{mariadb.user}",'
        f' password="{mariadb.password}", database="{mariadb.database}"'
    )
    return _URL.sub(real, code).replace(_KEYWORDS, keywords)
