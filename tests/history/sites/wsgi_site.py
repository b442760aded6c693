"""A plain WSGI app on a pool, whose paths write one row each, in several manners."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import unbroken
import unbroken.wsgi

pool = unbroken.Pool(os.environ["DATABASE_URL"], max_size=4, acquire_timeout=1.0, outage_wait=0.05)


def _do(conn: Any, sql: str) -> Any:
    cursor = conn.cursor()
    cursor.execute(sql)
    row = cursor.fetchone() if cursor.description else None
    cursor.close()
    return None if row is None else row[0]


def _count(n: int) -> str:
    return f"SELECT COUNT(*) FROM orders WHERE n = {n}"


def _insert(n: int) -> str:
    return f"INSERT INTO orders (n) VALUES ({n})"


def reads(n: int) -> Any:
    """Write in one lease, read in the next."""
    with pool.connection() as conn:
        _do(conn, _insert(n))
    with pool.connection() as conn:
        return _do(conn, _count(n))


def commits(n: int) -> Any:
    """Commit by hand, then go on with the same connection."""
    with pool.connection() as conn:
        _do(conn, _insert(n))
        conn.commit()
        return _do(conn, _count(n))


def unit(n: int) -> Any:
    """A unit of work, then a lease."""
    pool.run(_do, _insert(n))
    with pool.connection() as conn:
        return _do(conn, _count(n))


def autocommit(n: int) -> Any:
    """A statement that is a transaction by itself, then another one."""
    with pool.connection(transaction=False) as conn:
        pymysql = hasattr(conn, "get_autocommit")
        conn.autocommit(True) if pymysql else setattr(conn, "autocommit", True)
        _do(conn, _insert(n))
        stored = _do(conn, _count(n))
        conn.autocommit(False) if pymysql else setattr(conn, "autocommit", False)
        return stored


def deadline(n: int) -> Any:
    """A lease that may run out of time before or after its own commit."""
    with pool.connection(deadline=0.3) as conn:
        _do(conn, _insert(n))
        conn.commit()
        return _do(conn, _count(n))


VIEWS: dict[str, Callable[[int], Any]] = {
    each.__name__: each for each in (reads, commits, unit, autocommit, deadline)
}


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    _, name, n = environ["PATH_INFO"].split("/")
    stored = VIEWS[name.removeprefix("replayed-")](int(n))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"stored": stored}).encode()]


app = unbroken.wsgi.Unbroken(
    _app,
    replay=lambda environ: environ["PATH_INFO"].startswith("/replayed-") or None,
    databases=pool,
    healthz="/healthz",
)
