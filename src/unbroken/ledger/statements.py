"""The possible effects of one statement on a transaction, judged from its text alone.

A unit of work is run again only if it is provable that nothing of it was committed. The proof
begins here: an error on the careful side costs a replay, an error on the other side applies a
change twice. So the text is read in every dialect it could be written in
(:mod:`unbroken.ledger.tokens`). The most careful verdict of all counts, and an unknown statement is
:attr:`Kind.ENDS`.

Sources: MySQL and MariaDB manuals, "Statements That Cause an Implicit Commit"; PostgreSQL, "SQL
Commands". Two things are beyond a text's reach: tables without transactions (MyISAM, Aria, MEMORY),
whose rows stay after a ROLLBACK, and a function with effects outside its transaction. A SELECT from
a view may call a function that writes. :func:`may_hide_a_write` tells when a text cannot rule that
out, and the server is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache

from unbroken.ledger.purity import is_free_of_effects
from unbroken.ledger.reach import Reach, reach
from unbroken.ledger.tokens import NUMBER, QUOTED, STRING, Refusal, readings, words


class Kind(StrEnum):
    """The possible effect of a statement on a transaction."""

    READ = "read"  #: changes nothing, even in autocommit
    WRITE = "write"  #: may change data, but cannot commit by itself inside a transaction
    BEGIN = "begin"  #: opens a transaction (and commits the one that is open, in MySQL)
    COMMIT = "commit"  #: commits the open transaction, and does nothing else
    ROLLBACK = "rollback"  #: undoes the open transaction, and does nothing else
    SETTLES = "settles"  #: commits, but something other than only the open transaction: XA COMMIT
    ENDS = "ends"  #: may commit by itself, may be several statements, or is not known


#: Longer texts are only examined without parsing all of them, and are never cached.
LONGEST_CACHED = 2_000
LONGEST_READ = 64_000

_BLANK = " \t\n\r\f\v"
_PLAIN_DML = re.compile(
    rf"[{_BLANK}]*+(?:INSERT|UPDATE|DELETE|REPLACE|MERGE)[{_BLANK}]", re.IGNORECASE | re.ASCII
)
_HIGH_THEN_BACKSLASH = re.compile(r"[\x80-\xff][\\`]")


def kind(sql: str | bytes | None) -> Kind:
    """Return the possible effect of *sql* on a transaction; never raises.

    None (an unknown text), and any value that is neither text nor bytes, is :attr:`Kind.ENDS`.
    Placeholders of any style may still be in it. 0.1 µs for a text seen before, some 20 µs for a
    new one of 100 characters.
    """
    if isinstance(sql, (bytes, bytearray)):
        text = _decoded(bytes(sql))
    elif isinstance(sql, str):
        text = str(sql)
    else:
        return Kind.ENDS
    if text is None:
        return Kind.ENDS
    return _cached(text) if len(text) <= LONGEST_CACHED else _judged(text)


def verb(sql: str | bytes | None) -> str:
    """Return the statement's first word for people (``INSERT``); "statement" if it is not a usual
    one.

    It never contains data.
    """
    head = sql[:200] if isinstance(sql, (str, bytes, bytearray)) else ""
    text = head if isinstance(head, str) else bytes(head).decode("latin-1")
    found = _FIRST_WORD.match(text)
    word = found.group(1).upper() if found else ""
    return word if word in _USUAL else "statement"


def shape(sql: str | bytes) -> str:
    """Return *sql* without its literals, up to 2,000 characters: the same text for the same
    statement with other values.
    """
    text = (
        sql[:LONGEST_CACHED]
        if isinstance(sql, str)
        else bytes(sql[:LONGEST_CACHED]).decode("utf-8", "replace")
    )
    return " ".join(_LITERAL.sub("?", text).split())


_LITERAL = re.compile(r"'(?:[^'\\]|\\.|'')*+(?:'|\Z)|\b[0-9][0-9.eE+-]*", re.DOTALL)
_FIRST_WORD = re.compile(rf"(?:[{_BLANK}(]|/\*.*?\*/|--[^\n]*+\n)*+([A-Za-z]+)", re.DOTALL)
_USUAL = words(
    "ABORT ALTER ANALYZE BEGIN CALL COMMIT COPY CREATE DELETE DO DROP END EXECUTE EXPLAIN GRANT"
    " INSERT LISTEN LOAD LOCK MERGE NOTIFY OPTIMIZE PREPARE REFRESH RELEASE RENAME REPLACE REVOKE"
    " ROLLBACK SAVEPOINT SELECT SET SHOW START TRUNCATE UNLOCK UPDATE VACUUM VALUES WITH XA"
)


def _decoded(sql: bytes) -> str | None:
    try:
        return sql.decode()
    except UnicodeDecodeError:
        text = sql.decode("latin-1")
    # In GBK, Big5 and Shift-JIS the second byte of a character may look like a backslash or a
    # backtick.
    return None if _HIGH_THEN_BACKSLASH.search(text) and ";" in text else text


def _judged(text: str) -> Kind:
    if _PLAIN_DML.match(text) and ";" not in text.rstrip(_BLANK + ";"):
        # one statement in every dialect, with any meaning of its quotes and comments: large
        # inserts, too
        return Kind.WRITE
    if len(text) > LONGEST_READ:
        return Kind.ENDS
    kinds = {_one(tokens) for tokens in readings(text) if tokens is not Refusal.REJECTED}
    if len(kinds) == 1:
        return kinds.pop()
    return Kind.WRITE if kinds == {Kind.READ, Kind.WRITE} else Kind.ENDS


_cached = lru_cache(maxsize=2000)(_judged)


def may_hide_a_write(sql: str | bytes | None) -> bool:
    """Return whether *sql*, of the kind READ, may run code of the application's own on the server.

    A table may be a view that calls a function which writes, and so may an operator, a cast or a
    function with a usual name. False only if the text rules all of them out.
    """
    text = _decoded(bytes(sql)) if isinstance(sql, (bytes, bytearray)) else sql
    if not isinstance(text, str) or len(text) > LONGEST_CACHED:
        return True
    return _cached_hides(str(text))


def _hides(text: str) -> bool:
    return any(isinstance(tokens, Refusal) or not _is_plain(tokens) for tokens in readings(text))


_cached_hides = lru_cache(maxsize=2000)(_hides)


def _is_plain(tokens: list[str]) -> bool:
    """Return whether this asks only for literals, settings and the server's own facts."""
    first = tokens[0] if tokens else ";"
    if first in _OWN_FACTS:
        return True
    if first != "SELECT":
        return first == ";"
    for at, (word, after) in enumerate(zip(tokens, [*tokens[1:], ";"], strict=True)):
        if word == "@":
            fits = after == "@" or after.isidentifier()
        elif word.endswith("("):
            # every server has a function of its own with this name and no argument
            fits = word in _EVERYWHERE and after == ")"
        elif word.isidentifier():
            # point '(1,2)' calls a type's function
            fits = word not in _OPERATORS and (after != STRING or at == 0 or word == "AS")
        else:
            fits = word in (STRING, NUMBER, QUOTED, ",", ".", ")", ";")
        if not fits:
            return False
    return True


_EVERYWHERE = frozenset({"NOW(", "VERSION(", "PI("})
_OWN_FACTS = frozenset({"SHOW", "SET", "DEALLOCATE", "DESCRIBE", "DESC", "SAVEPOINT", "ROLLBACK"})
_OPERATORS = words(
    "FROM JOIN TABLE WHERE WITH VALUES ORDER GROUP HAVING LIMIT UNION INTERSECT EXCEPT LIKE ILIKE"
    " SIMILAR BETWEEN IN ANY SOME ALL CAST ARRAY ROW INTERVAL COLLATE AND OR XOR NOT IS DIV MOD"
    " RLIKE REGEXP SOUNDS OVERLAPS MEMBER AT DISTINCT ISNULL NOTNULL"
)


def _one(tokens: list[str] | Refusal) -> Kind:
    """Return the kind of one reading."""
    if isinstance(tokens, Refusal):
        return Kind.ENDS
    while tokens and tokens[-1] == ";":
        tokens.pop()
    if ";" in tokens:
        return Kind.ENDS
    if not tokens:
        return Kind.READ  # only blanks and comments, as some pings send
    first = next((t for t in tokens if t != "("), "(").rstrip("(")
    if first in _QUERIES:
        return _query(tokens)
    if tokens[0] != first and first != "EXPLAIN":
        return Kind.ENDS
    judge = _JUDGES.get(first)
    return judge(tokens) if judge else Kind.ENDS


_QUERIES = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
_DML = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE"})


def _query(tokens: list[str]) -> Kind:
    if "OUTFILE" in tokens or "DUMPFILE" in tokens:
        return Kind.ENDS  # a file on the server stays after a ROLLBACK
    return Kind.READ if is_free_of_effects(tokens) else Kind.WRITE


def _show(tokens: list[str]) -> Kind:
    return Kind.READ if is_free_of_effects(tokens) else Kind.WRITE


def _explain(tokens: list[str]) -> Kind:
    """Judge EXPLAIN and DESCRIBE: of a table, or of a statement (which ANALYZE executes)."""
    at = next((i for i, t in enumerate(tokens) if t.rstrip("(") in _QUERIES | _DML), None)
    if at is None:
        return Kind.READ if _is_described(tokens[1:]) else Kind.ENDS
    if not all(t.rstrip("(") in _EXPLAIN_OPTIONS for t in tokens[1:at]):
        return Kind.ENDS
    explained = _query(tokens[at:]) if tokens[at].rstrip("(") in _QUERIES else Kind.WRITE
    analyzes = any(t.rstrip("(") in _EXECUTES for t in tokens[:at])
    return Kind.WRITE if analyzes and explained is Kind.READ else explained


def _is_described(tokens: list[str]) -> bool:
    """Return whether this is all of ``DESCRIBE shop.orders 'total%'``: a table, perhaps its schema,
    perhaps a column.
    """
    # a backtick quotes a name, or is an error if it does not
    names = [t for t in tokens if t not in (".", "`")]
    if (
        not names
        or names[0] in _EXECUTES
        or not all(t.isidentifier() or t in (QUOTED, STRING) for t in names)
    ):
        return False
    return len(names) <= 1 + ("." in tokens) + 1 and tokens.count(".") <= 1


_EXECUTES = frozenset({"ANALYZE", "ANALYSE", "EXECUTE", "CREATE", "CALL"})
_EXPLAIN_OPTIONS = words(
    "ANALYZE ANALYSE VERBOSE EXTENDED PARTITIONS FORMAT TRADITIONAL JSON TREE TEXT XML YAML COSTS"
    " SETTINGS GENERIC_PLAN BUFFERS WAL TIMING SUMMARY MEMORY SERIALIZE NONE BINARY QUERY PLAN ON"
    " OFF TRUE FALSE ) , ="
) | {"", NUMBER, STRING}


def _begin(tokens: list[str]) -> Kind:
    return Kind.BEGIN if all(t in _BEGIN_OPTIONS for t in tokens[1:]) else Kind.ENDS


def _start(tokens: list[str]) -> Kind:
    return _begin(tokens) if tokens[1:2] == ["TRANSACTION"] else Kind.ENDS


_BEGIN_OPTIONS = words(
    "WORK TRANSACTION ISOLATION LEVEL READ ONLY WRITE COMMITTED UNCOMMITTED REPEATABLE SERIALIZABLE"
    " WITH CONSISTENT SNAPSHOT NOT DEFERRABLE DEFERRED IMMEDIATE EXCLUSIVE CONCURRENT ,"
)

# The words that may follow COMMIT or ROLLBACK without another effect. CHAIN opens the next
# transaction immediately, RELEASE ends the session, PREPARED is a transaction of its own.
_REST = frozenset(
    work + chain + release
    for work in ((), ("WORK",), ("TRANSACTION",))
    for chain in ((), ("AND", "NO", "CHAIN"))
    for release in ((), ("NO", "RELEASE"))
)


#: Further words that may follow COMMIT. PREPARED names a transaction of another session; CHAIN and
#: RELEASE do more than commit.
_MORE = frozenset(
    work + chain + release
    for work in ((), ("WORK",), ("TRANSACTION",))
    for chain in ((), ("AND", "NO", "CHAIN"), ("AND", "CHAIN"))
    for release in ((), ("NO", "RELEASE"), ("RELEASE",))
) | {("PREPARED", STRING)}


def _commit(tokens: list[str]) -> Kind:
    rest = tuple(tokens[1:])
    if rest in _REST:
        return Kind.COMMIT
    return Kind.SETTLES if tokens[0] == "COMMIT" and rest in _MORE else Kind.ENDS


def _xa(tokens: list[str]) -> Kind:
    return Kind.SETTLES if tokens[1:2] == ["COMMIT"] else Kind.ENDS


def _rollback(tokens: list[str]) -> Kind:
    rest = tokens[1:]
    if rest[:1] in (["WORK"], ["TRANSACTION"]) and rest[1:2] == ["TO"]:
        rest = rest[1:]
    if rest[:1] == ["TO"]:
        names = rest[2:] if rest[1:2] == ["SAVEPOINT"] and len(rest) > 2 else rest[1:]
        # it only undoes, and no server commits with it
        return Kind.READ if _is_one_name(names) else Kind.ENDS
    return Kind.ROLLBACK if tuple(rest) in _REST else Kind.ENDS


def _savepoint(tokens: list[str]) -> Kind:
    names = tokens[2:] if tokens[:2] == ["RELEASE", "SAVEPOINT"] and len(tokens) > 2 else tokens[1:]
    return Kind.WRITE if _is_one_name(names) else Kind.ENDS


def _is_one_name(tokens: list[str]) -> bool:
    if len(tokens) == 3 and tokens[0] == tokens[2] == "`":
        tokens = tokens[1:2]  # MySQL's quotes, as PostgreSQL would read them
    return len(tokens) == 1 and (tokens[0].isidentifier() or tokens[0] == QUOTED)


def _temporary_table(tokens: list[str]) -> Kind:
    """Judge CREATE and DROP of a temporary table: the only ones that MySQL does not commit."""
    return (
        Kind.WRITE
        if tokens[1:2] in (["TEMPORARY"], ["TEMP"]) and tokens[2:3] == ["TABLE"]
        else Kind.ENDS
    )


def _copy(tokens: list[str]) -> Kind:
    if "PROGRAM" in tokens:
        return Kind.ENDS
    return (
        Kind.WRITE
        if tokens[-1] in ("STDIN", "STDOUT") or "STDIN" in tokens or "STDOUT" in tokens
        else Kind.ENDS
    )


def _set(tokens: list[str]) -> Kind:
    return _SET_KINDS[reach(tokens)]


_SET_KINDS = {
    Reach.OWN: Kind.READ,
    Reach.SESSION: Kind.WRITE,
    Reach.COMMITS: Kind.COMMIT,
    Reach.BEYOND: Kind.ENDS,
}


def _always(result: Kind) -> Callable[[list[str]], Kind]:
    return lambda _: result


_JUDGES: dict[str, Callable[[list[str]], Kind]] = {
    **dict.fromkeys(_DML, _always(Kind.WRITE)),
    # PostgreSQL's cursors and notifications: all of them are part of the transaction.
    **dict.fromkeys(
        ("DECLARE", "FETCH", "MOVE", "CLOSE", "LISTEN", "UNLISTEN", "NOTIFY", "USE"),
        _always(Kind.WRITE),
    ),
    "DEALLOCATE": _always(
        Kind.READ
    ),  # forgets a prepared statement of this session; psycopg sends it by itself
    "SHOW": _show,
    "EXPLAIN": _explain,
    "DESCRIBE": _explain,
    "DESC": _explain,
    "BEGIN": _begin,
    "START": _start,
    "COMMIT": _commit,
    "END": _commit,
    "ROLLBACK": _rollback,
    "ABORT": _rollback,
    "XA": _xa,
    "SAVEPOINT": _savepoint,
    "RELEASE": _savepoint,
    "CREATE": _temporary_table,
    "DROP": _temporary_table,
    "COPY": _copy,
    "SET": _set,
}
