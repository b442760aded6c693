"""Questions for the server before a unit of work is run again, and how its answers are read.

Pure: a runner asks with the text from :func:`text_of`, on a connection of the same pool, and passes
the rows to :func:`answer`. If a question has no text, or the server does not answer it, nothing is
run again because of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, TypeAlias

from unbroken.ledger.purity import PURE
from unbroken.ledger.statements import Kind, kind
from unbroken.roles import Role

Rows: TypeAlias = Sequence[Sequence[Any]]


class Question(StrEnum):
    """A question that a runner may have to ask."""

    HIDDEN_WRITES = "can a SELECT store something here?"  #: a reason, or "" for no
    VIEWS = "what do these views read?"  #: follows HIDDEN_WRITES in MySQL; same answer
    READ_ONLY = "does this server refuse all writes?"  #: True: it takes none from anybody
    ROLE = "which role does this server have?"  #: a Role
    READY = "is this node of the cluster ready?"  #: follows ROLE in MySQL; same answer
    PACKET = "how large can a statement be?"  #: the number of bytes
    UPTIME = "how long has this server been up?"  #: seconds
    KEPT_WRITES = "can changes stay after a rollback?"  #: a reason, or "" for no
    CONNECTIONS = (
        "how many connections does this server grant?"  #: to all, and (or None) to this login
    )
    SESSIONS = "how many sessions are there?"  #: of all clients together
    ISOLATION = "is the transaction serializable?"  #: a reason, or "" for no


# -- PostgreSQL ------------------------------------------------------------------------------------

#: Functions that a rule, a policy or a constraint calls, from the tree that PostgreSQL keeps of it.
_CALLED = "regexp_matches({}::text, ' :(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g')"

_PG_OWN = "('pg_catalog', 'information_schema', 'pg_toast')"

#: Functions that a SELECT may call without naming them (through views, row security, operators,
#: casts, domains, operator classes), or that have the name of a harmless function of the server.
#: Parts of extensions are trusted, unless the application's own call them.
_PG_HIDDEN = f"""
WITH called (origin, class, object, fn) AS (
  SELECT 'view ' || c.relname, 'pg_class'::regclass, c.oid,
      ({_CALLED.format("r.ev_action")})[1]::oid
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'v' AND r.ev_type = '1' AND n.nspname NOT IN {_PG_OWN}
  UNION ALL SELECT 'policy ' || p.polname, 'pg_class'::regclass, p.polrelid,
      ({_CALLED.format("p.polqual")})[1]::oid
  FROM pg_catalog.pg_policy p
  UNION ALL SELECT 'domain constraint ' || o.conname, 'pg_type'::regclass, o.contypid,
      ({_CALLED.format("o.conbin")})[1]::oid
  FROM pg_catalog.pg_constraint o WHERE o.contypid <> 0
  UNION ALL SELECT 'operator ' || o.oprname, 'pg_operator'::regclass, o.oid, o.oprcode::oid
  FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
      WHERE n.nspname NOT IN {_PG_OWN}
  UNION ALL SELECT 'cast to ' || c.casttarget::regtype::text, 'pg_cast'::regclass, c.oid, c.castfunc
  FROM pg_catalog.pg_cast c WHERE c.castfunc <> 0 AND c.oid >= 16384
  UNION ALL SELECT 'operator class', 'pg_opfamily'::regclass, a.amprocfamily, a.amproc::oid
  FROM pg_catalog.pg_amproc a WHERE a.oid >= 16384
  UNION ALL SELECT 'function ' || p.proname, 'pg_proc'::regclass, p.oid, p.oid
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname NOT IN {_PG_OWN}
      AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
  AND upper(p.proname) IN ({", ".join(f"'{name}'" for name in sorted(PURE))})
)
SELECT DISTINCT c.origin, n.nspname, p.proname, p.provolatile, l.lanname, p.prokind
FROM called c JOIN pg_catalog.pg_proc p ON p.oid = c.fn
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE NOT (n.nspname = 'pg_catalog' AND p.provolatile <> 'v')
AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.deptype = 'e' AND d.classid = c.class
    AND d.objid = c.object)
UNION ALL SELECT 'foreign table ' || c.relname, n.nspname, '', 'v', '', 'f'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'f'
"""

_PG_READ_ONLY = """
SELECT pg_catalog.pg_is_in_recovery(), s.setting, s.source
FROM pg_catalog.pg_settings s WHERE s.name = 'default_transaction_read_only'
"""
#: Sources of a setting that the server's owner made for all clients.
_BY_THE_SERVER = {"configuration file", "command line", "environment variable", "global"}

#: Functions that could write outside of the transaction that calls them: to another server, by
#: another session, to a file.
_PG_KEPT = f"""
SELECT 'the foreign table ' || c.relname FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
UNION ALL SELECT 'the extension ' || e.extname FROM pg_catalog.pg_extension e
WHERE e.extname IN ('dblink', 'http', 'pg_background', 'pg_net', 'plproxy')
UNION ALL SELECT 'the function ' || p.proname FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE NOT l.lanpltrusted AND l.lanname <> 'internal' AND n.nspname NOT IN {_PG_OWN}
AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.deptype = 'e'
AND d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid)
LIMIT 1
"""

#: The default isolation level of a transaction on this connection.
_PG_ISOLATION = "SHOW transaction_isolation"

#: A crash of one of its processes restarts all others, but not the postmaster. It does reset the
#: statistics. A role's limit and a database's are not for superusers, and -1 is none.
_PG_CONNECTIONS = """
SELECT (SELECT sum(CASE s.name WHEN 'max_connections' THEN s.setting::int ELSE -s.setting::int END)
    FROM pg_catalog.pg_settings s WHERE s.name IN
    ('max_connections', 'superuser_reserved_connections', 'reserved_connections')),
    CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END,
    CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()
"""

#: Rows of pg_stat_activity would do, too; these figures come from a loop in the server without
#: rows.
_PG_SESSIONS = """
SELECT sum(pg_catalog.pg_stat_get_db_numbackends(d.oid)) FROM pg_catalog.pg_database d
"""

_PG_UPTIME = """
SELECT extract(epoch FROM pg_catalog.clock_timestamp() - greatest(
pg_catalog.pg_postmaster_start_time(), (SELECT stats_reset FROM pg_catalog.pg_stat_bgwriter)))
"""

#: The largest message that a PostgreSQL server takes (MaxAllocSize).
PG_LARGEST = 0x3FFFFFFF


def _pg_hidden(rows: Rows) -> str:
    for origin, schema, name, volatile, language, prokind in (
        tuple(_text(value) for value in row) for row in rows
    ):
        if schema == "pg_catalog" and (volatile != "v" or name.upper() in PURE):
            continue
        if language in ("c", "internal") and volatile != "v" and prokind != "a":
            continue
        return (
            f"{origin} may write"
            if not name
            else f"{origin} calls the function {name}, which may write"
        )
    return ""


def _pg_read_only(rows: Rows) -> bool:
    in_recovery, setting, source = rows[0]
    if in_recovery is True or _text(in_recovery).lower() in ("t", "true", "1"):
        return True
    return _text(setting) == "on" and _text(source) in _BY_THE_SERVER


# -- MySQL and MariaDB -----------------------------------------------------------------------------

_MY_OWN = "('mysql', 'sys', 'information_schema', 'performance_schema')"

#: Views, and functions that have the name of a harmless function of some server: of another one, or
#: this one's, which an unqualified name means.
_MY_HIDDEN = f"""
SELECT 'view', TABLE_SCHEMA, TABLE_NAME, VIEW_DEFINITION FROM information_schema.VIEWS
    WHERE TABLE_SCHEMA NOT IN {_MY_OWN}
UNION ALL SELECT 'function', ROUTINE_SCHEMA, ROUTINE_NAME, NULL FROM information_schema.ROUTINES
    WHERE ROUTINE_TYPE = 'FUNCTION' AND ROUTINE_SCHEMA NOT IN {_MY_OWN}
    AND UPPER(ROUTINE_NAME) IN ({", ".join(f"'{name}'" for name in sorted(PURE))})
"""

_MY_VIEWS = f"""
SELECT 'table', TABLE_SCHEMA, TABLE_NAME, NULL FROM information_schema.TABLES
WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_SCHEMA NOT IN {_MY_OWN}
UNION ALL {_MY_HIDDEN}
"""

#: A table whose rows stay after a ROLLBACK. A table that cannot be opened has no engine.
_MY_KEPT = f"""
SELECT CONCAT('the table ', t.TABLE_SCHEMA, '.', t.TABLE_NAME, ' (', COALESCE(t.ENGINE, '?'), ')')
FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE
WHERE t.TABLE_TYPE NOT IN ('VIEW', 'SYSTEM VIEW', 'SEQUENCE') AND t.TABLE_SCHEMA NOT IN {_MY_OWN}
AND (e.TRANSACTIONS IS NULL OR e.TRANSACTIONS <> 'YES') LIMIT 1
"""

_MY_READ_ONLY = """
SHOW GLOBAL VARIABLES WHERE Variable_name IN
('read_only', 'super_read_only', 'innodb_read_only', 'transaction_read_only', 'tx_read_only')
"""

_MY_ROLE = """
SHOW GLOBAL VARIABLES WHERE Variable_name IN
('read_only', 'super_read_only', 'innodb_read_only', 'transaction_read_only', 'tx_read_only',
'wsrep_on', 'wsrep_reject_queries')
"""
#: A node of Galera that has lost its cluster answers this query, and refuses all others with 1047.
_MY_READY = "SHOW GLOBAL STATUS LIKE 'wsrep_ready'"

_OFF = ("OFF", "0", "")
_MY_CONNECTIONS = "SELECT @@GLOBAL.max_connections, @@SESSION.max_user_connections"

_MY_SESSIONS = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"

_MY_UPTIME = "SHOW GLOBAL STATUS LIKE 'Uptime'"

_MY_PACKET = "SELECT @@GLOBAL.max_allowed_packet"

#: The sources of a view, in the text that the server keeps of it: `schema`.`table`, or a query in
#: parentheses.
_READS = re.compile(
    r"\b(?:from|join)\s*\(*\s*(?:`((?:[^`]|``)+)`\.`((?:[^`]|``)+)`(?!\.)|(?=select\b|\(?values\b))",
    re.IGNORECASE,
)
_READING_WORDS = re.compile(r"\b(?:from|join)\b", re.IGNORECASE)
_EXTRACT = re.compile(r"\bextract\(\w+ from\b", re.IGNORECASE)
_QUOTED_OR_STRING = re.compile(r"`(?:[^`]|``)*`|'(?:[^'\\]|\\.|'')*'", re.DOTALL)


def _my_views(rows: Rows, *, with_tables: bool) -> str | None:
    """Return why one of the views in *rows* may write; "": none does; None: their tables must be
    checked.
    """
    known = {(_text(schema).lower(), _text(name).lower()) for _, schema, name, _ in rows}
    reads: set[tuple[str, str]] = set()
    for what, schema, name, definition in rows:
        if _text(what) == "table":
            continue
        if _text(what) == "function":
            return f"function {_text(schema)}.{_text(name)} may write"
        text = _text(definition)
        if not text.strip() or kind(text) is not Kind.READ:
            return (
                f"view {_text(schema)}.{_text(name)} calls a function that may write, or its text"
                " is hidden"
            )
        found = _relations(text)
        if found is None:
            return f"view {_text(schema)}.{_text(name)} cannot be parsed"
        reads.update(found)
    if not reads <= known:
        return None if not with_tables else "a view reads a table that this user cannot see"
    return ""


def _relations(text: str) -> list[tuple[str, str]] | None:
    """Return the tables and views that a view's *text* reads; None if they cannot be determined."""
    bare = _EXTRACT.sub(
        "extract(",
        _QUOTED_OR_STRING.sub(
            lambda found: found.group() if found.group()[0] == "`" else "''", text
        ),
    )
    matches = list(_READS.finditer(bare))
    if len(matches) != len(_READING_WORDS.findall(_QUOTED_OR_STRING.sub("``", bare))):
        return None
    names = [(match.group(1), match.group(2)) for match in matches if match.group(1) is not None]
    return [
        (schema.replace("``", "`").lower(), name.replace("``", "`").lower())
        for schema, name in names
    ]


def _my_role(rows: Rows) -> Role | Question:
    """Return the role, or a further question: a node of Galera must also be asked whether it is
    ready.
    """
    said = {_text(name).lower(): _text(value).upper() for name, value in rows}
    in_cluster = said.pop("wsrep_on", "OFF") == "ON"
    if said.pop("wsrep_reject_queries", "NONE") != "NONE":
        return Role.UNREADY
    if any(value not in _OFF for value in said.values()):
        return Role.STANDBY
    return Question.READY if in_cluster else Role.PRIMARY


def _granted(row: Sequence[Any]) -> tuple[int, int | None]:
    """Return the limits. In MySQL 0 is no limit; in PostgreSQL a limit of 0 admits no client."""
    server, *own = [int(_text(value)) for value in row]
    limits = [each for each in own if each > 0]
    return server, min(limits, default=None)


def _pg_role(rows: Rows) -> Role:
    return Role.STANDBY if _pg_read_only(rows) else Role.PRIMARY


def _is_on(rows: Rows) -> bool:
    return any(_text(value).upper() not in _OFF for _, value in rows)


# -- for runners -----------------------------------------------------------------------------------

_TEXTS = {
    ("postgresql", Question.HIDDEN_WRITES): _PG_HIDDEN,
    ("postgresql", Question.READ_ONLY): _PG_READ_ONLY,
    ("postgresql", Question.ROLE): _PG_READ_ONLY,
    ("postgresql", Question.KEPT_WRITES): _PG_KEPT,
    ("postgresql", Question.ISOLATION): _PG_ISOLATION,
    ("postgresql", Question.UPTIME): _PG_UPTIME,
    ("postgresql", Question.SESSIONS): _PG_SESSIONS,
    ("mysql", Question.SESSIONS): _MY_SESSIONS,
    ("postgresql", Question.CONNECTIONS): _PG_CONNECTIONS,
    ("mysql", Question.CONNECTIONS): _MY_CONNECTIONS,
    ("mysql", Question.UPTIME): _MY_UPTIME,
    ("mysql", Question.HIDDEN_WRITES): _MY_HIDDEN,
    ("mysql", Question.VIEWS): _MY_VIEWS,
    ("mysql", Question.READ_ONLY): _MY_READ_ONLY,
    ("mysql", Question.ROLE): _MY_ROLE,
    ("mysql", Question.READY): _MY_READY,
    ("mysql", Question.PACKET): _MY_PACKET,
    ("mysql", Question.KEPT_WRITES): _MY_KEPT,
}


def text_of(question: Question, backend: str) -> str | None:
    """Return the statement that asks a server of the kind *backend*; None: it cannot be asked."""
    return _TEXTS.get((_family(backend), question))


def answer(question: Question, backend: str, rows: Iterable[Sequence[Any]]) -> Any:
    """Return the answer in *rows*, the result of :func:`text_of` (see :class:`Question`). A
    Question instead means: ask that one.

    Raises ValueError for rows that cannot be parsed.
    """
    found = [tuple(row) for row in rows]
    family = _family(backend)
    try:
        if question is Question.PACKET:
            return int(found[0][0])
        if question is Question.CONNECTIONS:
            return _granted(found[0])
        if question is Question.SESSIONS:
            return int(_text(found[0][-1]))
        if question is Question.UPTIME:
            return float(_text(found[0][-1]))
        if question is Question.READ_ONLY:
            return _pg_read_only(found) if family == "postgresql" else _is_on(found)
        if question is Question.ROLE:
            return _pg_role(found) if family == "postgresql" else _my_role(found)
        if question is Question.READY:
            return Role.UNREADY if found and not _is_on(found) else Role.PRIMARY
        if question is Question.KEPT_WRITES:
            return f"{_text(found[0][0])} may keep changes that were rolled back" if found else ""
        if question is Question.ISOLATION:
            level = _text(found[0][0]).lower()
            return f"its transaction was {level}" if level == "serializable" else ""
        if family == "postgresql":
            return _pg_hidden(found)
        seen = _my_views(found, with_tables=question is Question.VIEWS)
        return Question.VIEWS if seen is None else seen
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the answer to {question.value!r} cannot be parsed: {error}") from error


def _family(backend: str) -> str:
    return "mysql" if backend == "mariadb" else backend


def _text(value: Any) -> str:
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, (bytes, bytearray))
        else ""
        if value is None
        else str(value)
    )
