"""Whether a transaction only read, as the texts of its statements show."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unbroken.ledger.statements import Kind, kind, may_hide_a_write, verb

#: More statements than this are not looked at.
MOST = 15


#: A read with one of these words may lock the rows that it reads, until its transaction ends.
LOCKS = re.compile(r"\b(?:UPDATE|SHARE)\b", re.IGNORECASE)
_LOCKS_BYTES = re.compile(LOCKS.pattern.encode(), re.IGNORECASE)


def only_reads(
    texts: Sequence[str | bytes | None], *, may_hide: bool, may_lock: bool = True
) -> bool:
    """Whether statements of these *texts*, all that were sent in one transaction, stored nothing.

    None among them is a statement whose text is not known. *may_hide*: a SELECT may call something
    that writes here, as far as the server said. *may_lock*: a read that locks counts as one. Pure;
    never raises.
    """
    return 0 < len(texts) <= MOST and all(
        text is not None and reads(text, may_hide=may_hide) and (may_lock or not _locks(text))
        for text in texts
    )


def reads(text: str | bytes, *, may_hide: bool) -> bool:
    """Whether a statement of this *text* stores nothing, also where autocommit is on."""
    return (
        kind(text) is Kind.READ
        and verb(text) not in ("SET", "SAVEPOINT", "RELEASE", "ROLLBACK")
        and not (may_hide and may_hide_a_write(text))
    )


def _locks(text: str | bytes) -> bool:
    found = LOCKS.search(text) if isinstance(text, str) else _LOCKS_BYTES.search(text)
    return found is not None
