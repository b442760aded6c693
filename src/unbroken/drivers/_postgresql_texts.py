"""What a text says about a statement of PostgreSQL's: whether it may follow BEGIN at once, and
whether it may change the isolation level. Pure.
"""

from __future__ import annotations

from functools import lru_cache

from unbroken.ledger.statements import LONGEST_CACHED, verb

#: So many of the last statements of a transaction are kept: one that sent more counts as unknown.
TEXTS = 16
#: For so many seconds the isolation level that a transaction had by itself is believed of the next
#: ones: whoever manages the server may change its default.
LEVEL_HOLDS = 10.0
#: Statements that can be sent behind BEGIN. None of them changes how a client and the server talk,
#: as COPY does, or must come first, as SET TRANSACTION.
_FIRST = frozenset({"SELECT", "WITH", "VALUES", "INSERT", "UPDATE", "DELETE", "MERGE", "SHOW"})
#: Statements of which it is known what they may change.
_PLAIN = frozenset(
    "SELECT WITH VALUES INSERT UPDATE DELETE MERGE SHOW SET BEGIN COMMIT ROLLBACK SAVEPOINT"
    " RELEASE".split()
)
#: Words in a statement that may change the level of the transactions to come.
_LEVELS = ("isolation", "characteristics", "config")
_WEAK = (b"read uncommitted", b"read committed", b"repeatable read")


@lru_cache(maxsize=1000)
def may_set_level(text: str | bytes) -> bool:
    """Whether a statement may change the isolation level of the transactions to come."""
    if verb(text) not in _PLAIN:
        return True
    lower = text.lower()
    if isinstance(lower, bytes):
        return any(word.encode() in lower for word in _LEVELS)
    return any(word in lower for word in _LEVELS)


def is_weak(level: bytes | None) -> bool:
    """Whether *level*, as the server names it, is one at which a COMMIT of what only read cannot
    fail.
    """
    return level in _WEAK


def is_one(text: str | bytes, *, has_values: bool) -> bool:
    """Whether *text* is for certain one statement, which may follow BEGIN at once, and means the
    same in the extended protocol as in the simple one.
    """
    if has_values:
        return (verb(text) if len(text) > LONGEST_CACHED else _verb(text)) in _FIRST
    return len(text) <= LONGEST_CACHED and _is_single(text)


_verb = lru_cache(maxsize=1000)(verb)


@lru_cache(maxsize=1000)
def _is_single(text: str | bytes) -> bool:
    if verb(text) not in _FIRST:
        return False
    if isinstance(text, bytes):
        return b";" not in text.rstrip(b"; \t\r\n") and b"$" not in text
    return ";" not in text.rstrip("; \t\r\n") and "$" not in text
