"""What an error says of a transaction that the library has sent no COMMIT for."""

from __future__ import annotations

from unbroken.ledger.verdicts import Fate

IN_DOUBT = "it is not known whether the open transaction is stored: look before you repeat it"
_ROLLED_BACK = "nothing of the open transaction is stored"
_UNLESS = "unless the code that had the connection sent a COMMIT itself"
#: MySQL and MariaDB may have such tables, and neither the ledger nor the driver sees which ones.
_KEEPS = "without transactions (MyISAM, Aria, MEMORY)"

_FATES = {
    Fate.STORED: "what was committed before is stored",
    Fate.UNKNOWN: "it is not known whether what it wrote is stored: look before you repeat it",
}


def in_words(fate: Fate, backend: str) -> str:
    """What the ledger says of the writes of work that was ended."""
    if fate is Fate.NOTHING:
        keeps = backend in ("mysql", "mariadb")
        return f"nothing is stored, except in tables {_KEEPS}" if keeps else "nothing is stored"
    return _FATES[fate]


def rolled_back(backend: str, *, is_proven: bool) -> str:
    """That the server rolls back. *is_proven*: what the code did that had the connection is
    known.
    """
    keeps = backend in ("mysql", "mariadb")
    if is_proven:
        return f"{_ROLLED_BACK}, except in tables {_KEEPS}" if keeps else _ROLLED_BACK
    unless = f"{_UNLESS}, or wrote to a table {_KEEPS}" if keeps else _UNLESS
    return f"{_ROLLED_BACK}, {unless}"
