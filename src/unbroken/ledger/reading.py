"""Whether a transaction only read, as the texts of its statements show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from unbroken.ledger.statements import LONGEST_CACHED, Kind, kind, may_hide_a_write, verb

#: More statements than this are not looked at.
MOST = 15
_OTHER_VERBS = frozenset({"SET", "SAVEPOINT", "RELEASE", "ROLLBACK"})


def only_reads(texts: Sequence[str | bytes | None], *, may_hide: bool) -> bool:
    """Whether statements of these *texts*, all that were sent in one transaction, stored nothing.

    None among them is a statement whose text is not known. *may_hide*: a SELECT may call something
    that writes here, as far as the server said. Pure; never raises.
    """
    if not 0 < len(texts) <= MOST:
        return False
    for text in texts:  # no generator expression: asked at the end of most transactions
        if text is None:
            return False
        is_usual = type(text) in (str, bytes) and len(text) <= LONGEST_CACHED
        if not (_cached if is_usual else _judged)(text, may_hide):
            return False
    return True


def _judged(text: str | bytes, may_hide: bool) -> bool:
    return (
        kind(text) is Kind.READ
        and verb(text) not in _OTHER_VERBS
        and not (may_hide and may_hide_a_write(text))
    )


_cached = lru_cache(maxsize=2000)(_judged)


def wrote_nothing(texts: Sequence[str | bytes | None]) -> bool:
    """Whether statements of these *texts*, all that were sent in one transaction, left nothing that
    takes time to be undone. Pure; never raises.
    """
    return len(texts) <= MOST and all(
        kind(text) in (Kind.READ, Kind.BEGIN)
        or (kind(text) is Kind.WRITE and verb(text) in ("SELECT", "SET", "SAVEPOINT"))
        for text in texts
    )


#: Words of what takes locks that a reader may count on being free behind its COMMIT:
#: ``FOR UPDATE``, ``LOCK IN SHARE MODE``, ``pg_advisory_xact_lock()``.
_LOCKS = re.compile(r"lock|\bfor\s+(?:no\s+key|key|update|share)", re.IGNORECASE | re.ASCII)


def may_lock(texts: Sequence[str | bytes | None]) -> bool:
    """Whether statements of these *texts*, which only read, may have asked for locks by name. Pure;
    never raises.
    """
    return any(
        text is None
        or _LOCKS.search(text if isinstance(text, str) else bytes(text).decode("latin-1"))
        for text in texts
    )
