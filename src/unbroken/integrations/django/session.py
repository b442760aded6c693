"""What outlives its transaction on a session: settings, temporary tables, locks. Read from the text of statements.

The next user must not find it. A statement that is not known for one of these leaves nothing behind; a text that only looks
like one costs a connection, never more.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

#: A statement that begins so changes its session.
_MYSQL = re.compile(
    r"set\b(?!\s+foreign_key_checks\s*=)(?!\s+(?:global|persist|password)\b)|create\s+(?:or\s+replace\s+)?temporary|lock\s+tables?|use\s"
    r"|prepare\s|handler\s|xa\s|flush\s+tables?\b.*\bwith\s+read\s+lock"
)
_POSTGRESQL = re.compile(
    r"set\b(?!\s+(?:local|constraints|transaction)\b)|reset\s|create\s+(?:(?:local|global)\s+)?temp|listen\s|prepare\s(?!\s*transaction)"
    r"|load\s|declare\s.*\bwith\s+hold\b|select\s.*\binto\s+temp"
)
_ANYWHERE = {"mysql": ("get_lock(", ":="), "postgresql": ("advisory_lock", "set_config(")}
_START = {"mysql": _MYSQL, "postgresql": _POSTGRESQL}
_CHECKS_OFF = re.compile(r"set\s+foreign_key_checks\s*=\s*0")
_CHECKS_ON = re.compile(r"set\s+foreign_key_checks\s*=\s*1")
_COMMENT = re.compile(r"\A(?:\s|\(|/\*.*?\*/|--[^\n]*(?:\n|\Z))+", re.DOTALL)

#: What :func:`leaves_behind` gives for a statement that undoes the one that was there before.
UNDONE = ""
_LONG = 4096


def leaves_behind(sql: Any, vendor: str, connection: Any) -> str | None:
    """What *sql* leaves on its session for the next user, in a word; None: nothing; UNDONE: it takes back foreign_key_checks=0."""
    if not isinstance(sql, str):
        sql = _text(sql, connection)
    return _cached(sql, vendor) if len(sql) < _LONG else _judge(sql, vendor)


def _text(sql: Any, connection: Any) -> str:
    if isinstance(sql, (bytes, bytearray)):
        return bytes(sql).decode("utf-8", "replace")
    compose = getattr(sql, "as_string", None)  # psycopg's sql.SQL, sql.Composed
    try:
        return str(sql if compose is None else compose(connection))
    except Exception:
        return str(sql)


def _judge(sql: str, vendor: str) -> str | None:
    text = sql.lower()
    start = _START.get(vendor)
    if start is None:
        return None
    for part in text.split(";") if ";" in text else (text,):
        part = _COMMENT.sub("", part, count=1)
        if vendor == "mysql" and part.startswith("set"):
            if _CHECKS_OFF.match(part):
                return "foreign_key_checks"
            if _CHECKS_ON.match(part):
                return UNDONE
        found = start.match(part)
        if found is not None:
            return " ".join(found.group().split()[:3]).upper()
    return next((word.rstrip("(").upper() for word in _ANYWHERE[vendor] if word in text), None)


_cached = lru_cache(maxsize=4096)(_judge)


class Noticing:
    """Mixed in before one of Django's cursor wrappers: notes on the database wrapper what a statement leaves behind."""

    db: Any

    def _execute(self, sql: Any, params: Any, *rest: Any) -> Any:
        self._notice(sql)
        return super()._execute(sql, params, *rest)  # type: ignore[misc] # Django's

    def _executemany(self, sql: Any, param_list: Any, *rest: Any) -> Any:
        self._notice(sql)
        return super()._executemany(sql, param_list, *rest)  # type: ignore[misc] # Django's

    def _notice(self, sql: Any) -> None:
        db = self.db
        held = db._held
        if held is None:
            return
        word = leaves_behind(sql, db.vendor, db.connection)
        if word is not None:
            held.notice(word)
