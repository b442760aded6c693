"""The scope of a SET statement: this session, the open transaction, or beyond.

The table of harmless settings holds those that drivers, frameworks and pools send by themselves. A
setting that is not in it counts as a change, which prevents a replay only if it was sent in
autocommit.
"""

from __future__ import annotations

from enum import Enum
from itertools import pairwise

from unbroken.ledger.tokens import NUMBER, QUOTED, STRING, words


class Reach(Enum):
    """The scope of a SET statement."""

    OWN = "own"  #: known settings of this session, to plain values
    SESSION = "session"  #: a part of this session, or a part that a ROLLBACK undoes
    COMMITS = "commits"  #: autocommit: MySQL commits the open transaction, for any new value
    #: the server, an account, another statement: it stays after a ROLLBACK, or is not known
    BEYOND = "beyond"


_BEYOND_FIRST = frozenset({"PASSWORD", "DEFAULT", "STATEMENT", "RESOURCE"})
_BEYOND = frozenset({"GLOBAL", "PERSIST", "PERSIST_ONLY"})
_SCOPE = frozenset({"SESSION", "LOCAL", "@", "."})
_TRANSACTION = words(
    "TRANSACTION CHARACTERISTICS AS ISOLATION LEVEL READ ONLY WRITE COMMITTED UNCOMMITTED"
    " REPEATABLE SERIALIZABLE NOT DEFERRABLE ,"
)
_HARMLESS = words(
    "APPLICATION_NAME BYTEA_OUTPUT CHARACTER_SET_CLIENT CHARACTER_SET_CONNECTION"
    " CHARACTER_SET_RESULTS CLIENT_ENCODING CLIENT_MIN_MESSAGES COLLATION_CONNECTION DATESTYLE"
    " DEFAULT_TRANSACTION_ISOLATION DEFAULT_TRANSACTION_READ_ONLY EXTRA_FLOAT_DIGITS"
    " FOREIGN_KEY_CHECKS GROUP_CONCAT_MAX_LEN IDLE_IN_TRANSACTION_SESSION_TIMEOUT"
    " IDLE_SESSION_TIMEOUT INNODB_LOCK_WAIT_TIMEOUT INTERACTIVE_TIMEOUT INTERVALSTYLE JIT"
    " LOCK_TIMEOUT LOCK_WAIT_TIMEOUT MAX_EXECUTION_TIME MAX_STATEMENT_TIME NET_READ_TIMEOUT"
    " NET_WRITE_TIMEOUT SEARCH_PATH SQL_AUTO_IS_NULL SQL_MODE SQL_SAFE_UPDATES STATEMENT_TIMEOUT"
    " TIME_ZONE TIMEZONE TRANSACTION_ISOLATION TRANSACTION_READ_ONLY TX_ISOLATION TX_READ_ONLY"
    " UNIQUE_CHECKS WAIT_TIMEOUT WORK_MEM"
)


def reach(tokens: list[str]) -> Reach:
    """Return the scope of the statement *tokens* (the first of them is SET)."""
    given = tokens[1:]
    if not given or given[0] in _BEYOND_FIRST or not _BEYOND.isdisjoint(given):
        return Reach.BEYOND
    if any(t == QUOTED and after in ("=", ":") for t, after in pairwise(given)):
        return Reach.BEYOND  # SET `autocommit` = 1: a quoted name may be any name
    if any(t.rstrip("(") == "AUTOCOMMIT" for t in given):
        rest = [t for t in given if t not in _SCOPE and t != ":"]
        is_plain = (
            len(rest) == 3 and rest[:2] == ["AUTOCOMMIT", "="] and not rest[2].endswith(("(", ")"))
        )
        return Reach.COMMITS if is_plain else Reach.BEYOND
    return Reach.OWN if _is_own(given) else Reach.SESSION


def _is_own(given: list[str]) -> bool:
    while given and given[0] in _SCOPE:
        given = given[1:]
    if not given:
        return False
    if given[0] in ("TRANSACTION", "CHARACTERISTICS"):
        return all(t in _TRANSACTION for t in given)
    if given[0] in ("NAMES", "CHARSET") or given[:2] in (["CHARACTER", "SET"], ["TIME", "ZONE"]):
        return all(_is_plain(t) for t in given[1:])
    return all(_is_known(part) for part in _parts(given))


def _parts(given: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in given:
        if word == ",":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _is_known(part: list[str]) -> bool:
    """Return whether this is ``[scope] harmless_name = plain values``."""
    while part and part[0] in _SCOPE:
        part = part[1:]
    values = (
        part[3:] if part[1:3] == [":", "="] else part[2:] if part[1:2] in (["="], ["TO"]) else []
    )
    return bool(values) and part[0] in _HARMLESS and all(_is_plain(t) for t in values)


def _is_plain(token: str) -> bool:
    return token in (STRING, QUOTED, NUMBER, "-", "+") or token.isidentifier()
