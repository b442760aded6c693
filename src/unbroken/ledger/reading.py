"""Decides from the texts of a transaction's statements whether it only read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from unbroken.ledger.statements import LONGEST_CACHED, Kind, kind, may_hide_a_write, verb

#: The maximum number of statements that are examined.
MOST = 15
_OTHER_VERBS = frozenset({"SET", "SAVEPOINT", "RELEASE", "ROLLBACK"})
#: A read with one of these words may lock the rows that it reads, until its transaction ends.
LOCKS = re.compile(r"\b(?:UPDATE|SHARE)\b", re.IGNORECASE)
#: … and with one of these it asks for a lock in another way: ``pg_advisory_xact_lock()``, say.
_BY_NAME = re.compile(rf"lock|{LOCKS.pattern}", re.IGNORECASE)


def only_reads(texts: Sequence[str | bytes | None], *, may_hide: bool) -> bool:
    """Return whether statements of these *texts*, all statements of one transaction, stored
    nothing.

    None stands for a statement whose text is not known. *may_hide*: a SELECT may call a function
    that writes here, as far as the server reported. Pure; never raises.
    """
    if not 0 < len(texts) <= MOST:
        return False
    for text in texts:  # no generator expression: this runs at the end of most transactions
        if text is None:
            return False
        if not reads(text, may_hide=may_hide):
            return False
    return True


def reads(text: str | bytes, *, may_hide: bool) -> bool:
    """Return whether a statement of this *text* stores nothing, also with autocommit on."""
    is_usual = type(text) in (str, bytes) and len(text) <= LONGEST_CACHED
    return (_cached if is_usual else _judged)(text, may_hide)


def _judged(text: str | bytes, may_hide: bool) -> bool:
    return (
        kind(text) is Kind.READ
        and verb(text) not in _OTHER_VERBS
        and not (may_hide and may_hide_a_write(text))
    )


_cached = lru_cache(maxsize=2000)(_judged)


def wrote_nothing(texts: Sequence[str | bytes | None]) -> bool:
    """Return whether statements of these *texts*, all statements of one transaction, left nothing
    that takes time to undo. Pure; never raises.
    """
    if len(texts) > MOST:
        return False
    for text in texts:  # as in only_reads
        if text is None:
            return False
        is_usual = type(text) in (str, bytes) and len(text) <= LONGEST_CACHED
        if not (_cached_small if is_usual else _is_small)(text):
            return False
    return True


def _is_small(text: str | bytes) -> bool:
    what, word = kind(text), verb(text)
    if what is Kind.WRITE and word == "SET":
        calls = "(" in text if isinstance(text, str) else b"(" in text
        return not calls  # a function of the application's own may write any amount
    return what in (Kind.READ, Kind.BEGIN) or (what is Kind.WRITE and word == "SAVEPOINT")


_cached_small = lru_cache(maxsize=2000)(_is_small)


def may_lock(texts: Sequence[str | bytes | None]) -> bool:
    """Return whether statements of these *texts*, which only read, may have asked for locks by
    name. Pure; never raises.
    """
    return any(
        text is None
        or _BY_NAME.search(text if isinstance(text, str) else bytes(text).decode("latin-1"))
        for text in texts
    )
