"""Texts on a transaction for which the library has sent no COMMIT."""

from __future__ import annotations

from unbroken.ledger.verdicts import Fate, keeps_rows

IN_DOUBT = (
    "it is not known whether the open transaction is stored: check the data before you repeat it"
)
_ROLLED_BACK = "the open transaction is not stored"
_UNLESS = "unless the code that held the connection sent a COMMIT itself"
_KEEPS = "without transactions (MyISAM, Aria, MEMORY)"
#: The exception to "nothing is stored" for a server that may have such tables.
EXCEPT = f", except in tables {_KEEPS}"

_FATES = {
    Fate.STORED: "its earlier commits are stored",
    Fate.UNKNOWN: (
        "it is not known whether its writes are stored: check the data before you repeat it"
    ),
}


def in_words(fate: Fate, backend: str) -> str:
    """The ledger's verdict on the writes of work that was ended."""
    if fate is Fate.NOTHING:
        return f"nothing is stored{EXCEPT}" if keeps_rows(backend) else "nothing is stored"
    return _FATES[fate]


def rolled_back(backend: str, *, is_proven: bool) -> str:
    """The text that the server rolls back. *is_proven*: all actions of the code that had the
    connection are known.
    """
    keeps = keeps_rows(backend)
    if is_proven:
        return f"{_ROLLED_BACK}{EXCEPT}" if keeps else _ROLLED_BACK
    unless = f"{_UNLESS}, or wrote to a table {_KEEPS}" if keeps else _UNLESS
    return f"{_ROLLED_BACK}, {unless}"
