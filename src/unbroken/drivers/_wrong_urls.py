"""Values given in place of a database URL. The error for each kind names the mistake and the
correct form.

Errors show no part of the text but words from the tables here, because any part of it may be a
password.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable

from unbroken.hints import nearest

EXAMPLE = "mysql+pymysql://user:password@host:3306/database"
_WRITE = f"write something like {EXAMPLE!r}"

#: Typical texts that are no URL, and the remedy for each.
_LOOKS = (
    (r"", f"the database URL is empty (is its environment variable set?); {_WRITE}"),
    (
        r"""(['"`]).*\1?|.*['"`]""",
        "the database URL begins or ends with a quotation mark, as in an env file that is read"
        " verbatim; remove the quotation mark",
    ),
    (r"(?:export\s+)?[A-Za-z_]\w*\s*=\s*\w[\w+.-]*:.*", "the database URL begins with NAME=, as in"
     " an env file; remove NAME="),
    (
        r"\$\{?\w+\}?|%\(\w+\)s|%\w+%|\{\{?\s*\w+\s*\}\}?|<\w+>",
        "the database URL is the name of a variable; replace it by the variable's value",
    ),
    (r"jdbc:.*", f"this is a JDBC URL, which is not supported; {_WRITE}"),
    (r"[^:/]*(?::[^@]*)?@(?:tcp|unix)\(.*", f"this is a Go connection string, not a URL; {_WRITE}"),
    (r"[\w ]+=[^;]*;.*", f"this is an ADO.NET or ODBC connection string, not a URL; {_WRITE}"),
    (
        r"\w+\s*=\s*\S.*",
        "this is a libpq connection string, not a URL; write something like"
        " 'postgresql://user:password@host:5432/database'",
    ),
    (r"[A-Za-z][\w+.-]*:/?(?!/).*", f"the scheme of a URL must end with '://'; {_WRITE}"),
)  # fmt: skip

#: Schemes of other products, and the scheme to write here.
_MEANT = {
    "pymysql": "mysql+pymysql", "mysqlclient": "mysql+mysqldb", "mysqldb": "mysql+mysqldb",
    "mysqlconnector": "mysql+mysqlconnector", "aiomysql": "mysql+aiomysql",
    "asyncmy": "mysql+asyncmy", "mysqlx": "mysql", "mysql2": "mysql", "maria": "mariadb",
    "tidb": "mysql", "psycopg": "postgresql+psycopg", "psycopg3": "postgresql+psycopg",
    "psycopg2": "postgresql+psycopg2", "asyncpg": "postgresql+asyncpg",
    "pg8000": "postgresql+pg8000", "pgsql": "postgresql", "psql": "postgresql", "pg": "postgresql",
    "postgis": "postgresql", "cockroachdb": "postgresql", "cockroach": "postgresql",
    "sqlite3": "sqlite",
}  # fmt: skip
#: Names of drivers in other products.
_DRIVERS = {
    "psycopg3": "psycopg", "mysqlclient": "mysqldb", "mariadb": "mariadbconnector",
    "mysql-connector": "mysqlconnector", "connector": "mysqlconnector", "psycopg2cffi": "psycopg2",
    "aiopg": "asyncpg",
}  # fmt: skip
#: Databases that no pool here supports.
_OTHERS = {
    "mongodb": "for MongoDB, use unbroken.mongo.MongoClient(url)",
    **dict.fromkeys(
        ("oracle", "mssql", "redis", "rediss", "db2", "snowflake", "clickhouse", "http", "https"),
        "unbroken supports MySQL, MariaDB, PostgreSQL and SQLite",
    ),
}


def no_url(text: str) -> str:
    """Return the error text for *text*, which is no database URL."""
    for pattern, told in _LOOKS:
        if re.fullmatch(pattern, text, re.DOTALL):
            return told
    return f"this is not a database URL (no scheme://); {_WRITE}"


def no_text(given: object) -> str:
    """Return the error text for a database URL that is not text."""
    kind = type(given).__name__
    told = f"a database URL must be a string such as {EXAMPLE!r}, not of type {kind}"
    if isinstance(given, (bytes, bytearray, memoryview)):
        return f"{told}; decode it"
    if hasattr(given, "render_as_string"):
        return f"{told}; give url.render_as_string(hide_password=False)"
    if hasattr(given, "__fspath__"):
        return f"{told}; a SQLite file is 'sqlite:////absolute/path'"
    return told


def unknown_scheme(scheme: str, known: Collection[str], backends: Collection[str]) -> str:
    """Return the scheme to write in place of *scheme*, which is not among the *known* ones."""
    base, _, driver = scheme.partition("+")
    if base in _OTHERS:
        return f"unknown scheme {base!r}; {_OTHERS[base]}; known: {', '.join(known)}"
    base = _MEANT.get(base, "postgresql" if base == "postgres" and driver else base)
    meant = f"{base}+{_DRIVERS.get(driver, driver)}" if driver and "+" not in base else base
    if meant not in known:
        meant = _near(meant, [each for each in known if base not in backends or _is(each, base)])
    if meant:
        return f"unknown scheme {scheme!r}; did you mean {meant!r}?"
    here = [each for each in known if _is(each, base)]
    return f"unknown scheme in the database URL; known: {', '.join(here or known)}"


def _is(scheme: str, base: str) -> bool:
    return scheme.partition("+")[0] == base


def _near(scheme: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(scheme, known, 1, 0.75)
    return nearest(scheme, known) or (close[0] if close else "")
