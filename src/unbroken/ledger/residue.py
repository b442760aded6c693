"""The possible leftovers of a statement on its session for the next user: a setting, a lock, a
temporary table.

They are judged from the text alone, in every reading that a server of that kind could make of it
(:mod:`unbroken.ledger.tokens`). A leftover in any of them counts. The careful answer is
"something": it costs one round trip, a reset. So a statement is listed here if it is known to leave
nothing, and is judged by its possible leftovers otherwise. A trigger, a view or an operator may
call a function that leaves something; a text cannot show that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from unbroken.ledger.purity import PURE, RESERVED
from unbroken.ledger.tokens import QUOTED, STRING, Refusal, readings, words

#: Texts longer than this are not parsed: parsing costs more than the round trip.
LONGEST_READ = 8_000


class Left(StrEnum):
    """A kind of leftover on a session. The texts are for logs."""

    SETTING = "a setting"
    VARIABLE = "a user variable"
    TEMPORARY = "a temporary object"
    LOCK = "a lock"
    TABLES = "locked tables"
    LISTENER = "a listener"
    PREPARED = "a prepared statement"
    CURSOR = "a cursor"
    DATABASE = "another default database"
    FUNCTION = (  #: of a function that is not known, or of a call that was not read
        "effects of a function"
    )
    UNSEEN = "effects of unrecorded statements"
    UNKNOWN = "an unknown change"
    ENDLESS = "a change that no reset undoes"


NOTHING: frozenset[Left] = frozenset()


def listed(left: Iterable[Left]) -> str:
    """Return the kinds *left* in their order, as text: ``a setting, a lock and a cursor``."""
    *most, last = left
    return f"{', '.join(most)} and {last}" if most else str(last)


#: Possibly nothing: the holder does not rely on it. The next user must not find it all the same.
DOUBTFUL = frozenset({Left.FUNCTION, Left.UNSEEN})
#: Kinds for which a reset must assume any leftover.
VAGUE = frozenset({Left.UNKNOWN, Left.UNSEEN})


def left_by(sql: str | bytes, backend: str) -> frozenset[Left]:
    """Return the possible leftovers of *sql* on a session of *backend* ("mysql", "mariadb" or
    "postgresql"); empty: none.

    Placeholders of any style may be in it. 0.3 µs for a text seen before, some 50 µs for a new one
    of 100 characters. Never raises.
    """
    if type(sql) is str and len(sql) <= LONGEST_READ:
        return _cached(sql, backend)
    if isinstance(sql, (bytes, bytearray)):
        try:
            sql = bytes(sql).decode()
        except UnicodeDecodeError:
            return _NOT_READ
    if not isinstance(sql, str):
        return _NOT_READ
    return _cached(str(sql), backend) if len(sql) <= LONGEST_READ else _unread(sql)


def may_stay(sql: str) -> bool:
    """Return whether *sql* may leave something on its PostgreSQL session."""
    return bool(left_by(sql, "postgresql"))


class Trace:
    """The leftovers on one session, from the statements that its driver reported."""

    __slots__ = ("backend", "left")

    def __init__(self, backend: str) -> None:
        self.backend, self.left = backend, NOTHING


#: By the id of its connection, while it is in use. A ledger notes its reports here.
followed: dict[int, Trace] = {}


def note(conn_id: int | None, sql: str | bytes | None) -> None:
    """Note *sql*, which is about to be sent on a connection. None: its text is not known."""
    trace = None if conn_id is None else followed.get(conn_id)
    if trace is not None:
        trace.left |= frozenset({Left.UNKNOWN}) if sql is None else left_by(sql, trace.backend)


_NOT_READ = frozenset({Left.UNKNOWN, Left.ENDLESS})
_BACKENDS = frozenset({"mysql", "mariadb", "postgresql"})

_SELECT = "SELECT WITH VALUES TABLE INSERT UPDATE DELETE "
_ENDS = "BEGIN START COMMIT ROLLBACK SAVEPOINT RELEASE "
_TABLES = "CREATE ALTER DROP TRUNCATE ANALYZE GRANT REVOKE "
_PG_FIRST = words(
    _SELECT
    + _ENDS
    + _TABLES
    + "MERGE COPY END ABORT SHOW EXPLAIN FETCH MOVE CLOSE DECLARE NOTIFY LOCK SET "
    "VACUUM REINDEX CHECKPOINT COMMENT REFRESH DEALLOCATE"
)
_MY_FIRST = words(
    _SELECT + _ENDS + _TABLES + "REPLACE DO SHOW EXPLAIN DESCRIBE DESC SET UNLOCK RENAME OPTIMIZE"
)
#: Statements that, by their first word, always count as leaving this kind.
_PG_ALWAYS = {
    "LISTEN": Left.LISTENER, "RESET": Left.SETTING, "DISCARD": Left.SETTING, "LOAD": Left.ENDLESS,
}  # fmt: skip
_MY_ALWAYS = {
    "PREPARE": Left.PREPARED, "USE": Left.DATABASE, "HANDLER": Left.CURSOR, "BACKUP": Left.ENDLESS,
}  # fmt: skip

#: PostgreSQL's SETs that end with the transaction.
_UNTIL_THE_END = frozenset({"LOCAL", "TRANSACTION", "CONSTRAINTS"})
#: MySQL's SETs that change only the server, if they set one value.
_SERVERS = frozenset({"GLOBAL", "PERSIST", "PERSIST_ONLY"})
#: Statements that EXPLAIN may execute besides queries and changes of rows.
_EXECUTED = frozenset({"CREATE", "EXECUTE", "DECLARE", "CALL"})
#: Objects that CREATE, ALTER and DROP change without any effect on the session.
_OBJECTS = words("TABLE INDEX VIEW SEQUENCE TYPE DOMAIN")
_BEFORE_OBJECTS = words(
    "UNIQUE OR REPLACE MATERIALIZED UNLOGGED FOREIGN FULLTEXT SPATIAL RECURSIVE TEMPORARY"
)
_OPTIONS = words(
    "WORK TRANSACTION ISOLATION LEVEL READ ONLY WRITE COMMITTED UNCOMMITTED REPEATABLE SERIALIZABLE"
    " WITH CONSISTENT SNAPSHOT NOT DEFERRABLE ,"
)

# Functions that leave something.
_LOCKING = words(
    "PG_ADVISORY_LOCK PG_ADVISORY_LOCK_SHARED PG_TRY_ADVISORY_LOCK PG_TRY_ADVISORY_LOCK_SHARED"
    " GET_LOCK"
)
_LASTING = words(
    "SETSEED DBLINK_CONNECT DBLINK_CONNECT_U DBLINK_OPEN PG_REPLICATION_ORIGIN_SESSION_SETUP"
    " PG_CREATE_LOGICAL_REPLICATION_SLOT PG_CREATE_PHYSICAL_REPLICATION_SLOT"
    " PG_COPY_LOGICAL_REPLICATION_SLOT PG_COPY_PHYSICAL_REPLICATION_SLOT SERVICE_GET_READ_LOCKS"
    " SERVICE_GET_WRITE_LOCKS VERSION_TOKENS_LOCK_SHARED VERSION_TOKENS_LOCK_EXCLUSIVE"
)
_CALLS = {
    **dict.fromkeys(words("SET_CONFIG SET_LIMIT"), Left.SETTING),
    **dict.fromkeys(_LOCKING, Left.LOCK),
    **dict.fromkeys(_LASTING, Left.ENDLESS),
}
#: Functions that are not free of effects, but leave nothing on the session that another user could
#: notice.
_LEAVE_NOTHING = words(
    "NEXTVAL SETVAL CURRVAL LASTVAL PG_ADVISORY_XACT_LOCK PG_ADVISORY_XACT_LOCK_SHARED"
    " PG_TRY_ADVISORY_XACT_LOCK PG_TRY_ADVISORY_XACT_LOCK_SHARED PG_ADVISORY_UNLOCK"
    " PG_ADVISORY_UNLOCK_SHARED PG_ADVISORY_UNLOCK_ALL PG_NOTIFY PG_LISTENING_CHANNELS TXID_CURRENT"
    " PG_CURRENT_XACT_ID SET_BIT GET_BIT PG_CANCEL_BACKEND PG_TERMINATE_BACKEND"
    " PG_CURRENT_XACT_ID_IF_ASSIGNED PG_EXPORT_SNAPSHOT SHA224 SHA384 UNACCENT SIMILARITY"
    " WORD_SIMILARITY STRICT_WORD_SIMILARITY RELEASE_LOCK RELEASE_ALL_LOCKS IS_FREE_LOCK"
    " IS_USED_LOCK BENCHMARK"
)
#: Words that cannot be the name of a function, so that a parenthesis behind them only groups.
_GROUPS = RESERVED | words(
    "ANY SOME GROUP LATERAL RETURNING INTO WITH TO TABLE WHEN UNIQUE ONLY ARRAY ROW GROUPING CHECK"
    " PRIMARY FOREIGN CONSTRAINT IS ORDER"
)
#: The same, but only behind these words.
_AFTER = {
    **dict.fromkeys(("OVER", "FILTER"), frozenset({")"})), "BY": words("ORDER GROUP PARTITION"),
    "CONFLICT": words("ON"), "SETS": words("GROUPING"), "MATERIALIZED": words("AS NOT"),
    "JOIN": words("INNER LEFT RIGHT OUTER CROSS FULL"), "INSERT": words("THEN"),
    "UPDATE": words("FOR KEY"), "OF": words("UPDATE SHARE"), "ROLLUP": words("BY ,"),
    "CUBE": words("BY ,"), "INDEX": words("USE FORCE IGNORE"),
    "KEY": words("USE FORCE IGNORE PRIMARY FOREIGN UNIQUE"), "VALUE": words("INTO )"),
    "GROUP": words("WITHIN"),
}  # fmt: skip
_OPENS = words("EXPLAIN COPY VACUUM ANALYZE REINDEX")  # at the beginning
_NAMES_A_TABLE = words("AS INTO COPY RECURSIVE UPDATE TABLE EXISTS REFERENCES VIEW IGNORE WITH")

_PG_QUOTED = re.compile(r"pg_temp|\b[uU]&\"", re.IGNORECASE)
_ENDLESS_WORD = re.compile(
    r"setseed|dblink_|replication_|service_get|version_tokens|\bload\b|\bbackup\b|\bflush\b",
    re.IGNORECASE,
)
_PLAIN = re.compile(
    r"[\s(]*+(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|MERGE|WITH|VALUES)\b", re.IGNORECASE | re.ASCII
)


def _unread(text: str) -> frozenset[Left]:
    """Return the possible leftovers of a text that is too long to parse."""
    return _with_endless(
        {Left.FUNCTION if _PLAIN.match(text) and ";" not in text else Left.UNKNOWN}, text
    )


def _with_endless(found: set[Left], text: str) -> frozenset[Left]:
    """Return *found*, and the worst if *text* has a word for it and was not understood."""
    if (Left.UNKNOWN in found or Left.FUNCTION in found) and _ENDLESS_WORD.search(text):
        found.add(Left.ENDLESS)
    return frozenset(found)


def _judged(text: str, backend: str) -> frozenset[Left]:
    if backend not in _BACKENDS:
        return _NOT_READ
    found: set[Left] = set()
    is_postgresql = backend == "postgresql"
    for tokens in readings(text, "postgresql" if is_postgresql else "mysql"):
        if tokens is Refusal.UNCLEAR:
            found.add(Left.UNKNOWN)
        elif not isinstance(tokens, Refusal):
            for statement in _statements(tokens):
                found |= _Statement(statement, text, is_postgresql).leaves()
    return _with_endless(found, text)


_cached = lru_cache(maxsize=2000)(_judged)


def _statements(tokens: list[str]) -> list[list[str]]:
    """Return the parts between semicolons.

    A part of a compound statement is judged as if it were executed immediately.
    """
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == ";":
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


class _Statement:
    """One statement in one reading."""

    def __init__(self, tokens: list[str], text: str, is_postgresql: bool) -> None:
        self.tokens, self.text, self.is_postgresql = tokens, text, is_postgresql
        self.first = next((t for t in tokens if t != "("), "").rstrip("(")

    def leaves(self) -> set[Left]:
        found = {self._by_call(at) for at, token in enumerate(self.tokens) if token.endswith("(")}
        found.add(self._postgresql() if self.is_postgresql else self._mysql())
        return {each for each in found if each is not None}

    # -- PostgreSQL --------------------------------------------------------------------------------

    def _postgresql(self) -> Left | None:
        first, tokens = self.first, self.tokens
        if _PG_QUOTED.search(self.text) or self._makes_temporary():
            return Left.TEMPORARY
        if {"UPDATE", "MERGE"} & {
            t.rstrip("(") for t in tokens
        } and "pg_settings" in self.text.lower():
            return Left.SETTING
        if first in _PG_ALWAYS:
            return _PG_ALWAYS[first]
        if first == "PREPARE":
            return None if tokens[1:] == ["TRANSACTION", STRING] else Left.PREPARED
        if first == "SET":
            return None if tokens[1:2] and tokens[1] in _UNTIL_THE_END else Left.SETTING
        if first == "DECLARE":
            return Left.CURSOR if _pairs(tokens, "WITH", "HOLD") else None
        if first not in _PG_FIRST or (first == "COPY" and "PROGRAM" in tokens):
            return Left.UNKNOWN
        return self._usual()

    def _makes_temporary(self) -> bool:
        """Return whether it is CREATE [OR REPLACE] [LOCAL] TEMP or INTO TEMP; but INSERT INTO temp
        (…) names a table.
        """
        tokens = self.tokens
        for at, token in enumerate(tokens[1:], 1):
            if token not in ("TEMP", "TEMPORARY"):
                continue
            if tokens[at - 1] in ("CREATE", "REPLACE", "LOCAL", "GLOBAL"):
                return True
            if tokens[at - 1] == "INTO" and tokens[at - 2 : at - 1] not in (["INSERT"], ["MERGE"]):
                return True
        return False

    # -- MySQL, MariaDB ----------------------------------------------------------------------------

    def _mysql(self) -> Left | None:
        first, tokens = self.first, self.tokens
        if first in _MY_ALWAYS:
            return _MY_ALWAYS[first]
        if first == "CREATE" and self._makes_temporary():
            return Left.TEMPORARY
        if first == "SET":
            return None if self._sets_server() else self._set()
        if first == "LOCK":
            return Left.ENDLESS if tokens[1:2] == ["INSTANCE"] else Left.TABLES
        if first == "FLUSH":
            return Left.ENDLESS if {"WITH", "FOR"} & set(tokens) else None
        if first not in _MY_FIRST:
            return Left.UNKNOWN
        if _pairs(tokens, "INTO", "@") or _pairs(tokens, ":", "="):
            return Left.VARIABLE
        if first in ("CREATE", "DROP", "ALTER") and {"DATABASE", "SCHEMA"} & set(tokens[1:4]):
            return Left.DATABASE
        return self._usual()

    def _sets_server(self) -> bool:
        given = [t for t in self.tokens[1:] if t != "@"]
        return given[:1] != [] and given[0] in _SERVERS and "," not in given

    def _set(self) -> Left:
        given = self.tokens[1:]
        if given[:1] in (["STATEMENT"], ["RESOURCE"]):
            return Left.ENDLESS if given[0] == "RESOURCE" else Left.UNKNOWN
        return (
            Left.VARIABLE
            if given[:1] == ["@"] and given[1:2] != ["@"] and "," not in given
            else Left.SETTING
        )

    # -- both --------------------------------------------------------------------------------------

    def _usual(self) -> Left | None:
        """Judge a statement whose first word is no reason to expect leftovers."""
        first, tokens = self.first, self.tokens
        if first in ("BEGIN", "START"):
            is_plain = first == "BEGIN" or tokens[1:2] == ["TRANSACTION"]
            return None if is_plain and all(t in _OPTIONS for t in tokens[1:]) else Left.UNKNOWN
        if first in ("CREATE", "ALTER", "DROP"):
            kinds = [t.rstrip("(") for t in tokens[1:]]
            while kinds and kinds[0] in _BEFORE_OBJECTS:
                kinds.pop(0)
            return (
                None if kinds and kinds[0] in _OBJECTS and "EXECUTE" not in tokens else Left.UNKNOWN
            )
        if first in ("EXPLAIN", "DESCRIBE", "DESC", "ANALYZE") and not _EXECUTED.isdisjoint(tokens):
            return Left.UNKNOWN
        return None

    def _by_call(self, at: int) -> Left | None:
        """Judge the parenthesis that opens at *at*: it only groups, or it calls a function that
        leaves the returned kind.
        """
        tokens = self.tokens
        if tokens[at] == "(":
            if at == 0 or not _could_be_called(tokens[at - 1]):
                return None
            name, before = tokens[at - 1].rstrip("("), at - 2
        else:
            name, before = tokens[at][:-1], at - 1
        previous = tokens[before] if before >= 0 else ""
        if name in _CALLS:
            return _CALLS[name]
        if previous in _AFTER.get(name, ()) or (before < 0 and name in _OPENS):
            return None
        if name == "SET" and "UPDATE" in tokens[:at]:
            return None
        if name == "LAST_INSERT_ID" and tokens[at + 1 : at + 2] != [")"]:
            return Left.VARIABLE
        if name in _GROUPS or name in PURE or name in _LEAVE_NOTHING or name.startswith("ST_"):
            is_own = previous != "." or tokens[before - 1] == "PG_CATALOG"
            return None if is_own else Left.FUNCTION
        while previous == ".":  # shop.orders (id, …)
            before -= 2
            previous = tokens[before] if before >= 0 else ""
        if previous in _NAMES_A_TABLE or (previous == "ON" and self.first == "CREATE"):
            return None
        is_cast = previous == ":" and before > 0 and tokens[before - 1] == ":"  # ::varchar(20)
        return None if is_cast else Left.FUNCTION


def _could_be_called(token: str) -> bool:
    return token.isidentifier() or token == QUOTED


def _pairs(tokens: list[str], one: str, two: str) -> bool:
    return any(a == one and b == two for a, b in pairwise(tokens))
