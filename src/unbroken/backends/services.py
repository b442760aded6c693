"""Texts with which managed services, poolers and proxies report that they cannot serve, and the
search for these texts in an error.

These services use MySQL's or PostgreSQL's protocol, and report their own failures with a code that
means many things. So a row counts only for its codes, and only with its words. The rows are in
:mod:`services_mysql` and :mod:`services_postgresql`; docs/services.md is generated from them. Texts
whose source was not found have no row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends.system import flat


@dataclass(frozen=True, slots=True)
class Word:
    """One text of a service for one fact.

    A row matches an error with one of *codes* (None: one of the family's vague ones), one of
    *words* in its text, and none of *unless*. All of a tuple of words count as one. *connecting*
    and *in_use* are the kinds of fault there; None: nothing of its own.
    """

    service: str
    codes: frozenset[int | str] | None
    words: tuple[str | tuple[str, ...], ...]
    connecting: FaultKind | None
    in_use: FaultKind | None
    meaning: str
    source: str
    cause: Cause | None = None  #: why the connection ended, if it did
    unless: tuple[str, ...] = ()
    login: bool = False  #: whether another password or user might be accepted

    def matches(self, lower: str) -> bool:
        """Return whether the text *lower*, in lower case, contains its words."""
        return any(_has(lower, words) for words in self.words) and not any(
            words in lower for words in self.unless
        )


def _has(lower: str, words: str | tuple[str, ...]) -> bool:
    if isinstance(words, str):
        return words in lower
    return all(each in lower for each in words)


def fault_of(
    rows: Iterable[Word], code: int | str | None, vague: bool, text: str, connecting: bool
) -> Fault | None:
    """Return the fault of the first of *rows* that matches an error with *code* and *text*; None:
    no row matches. *vague*: whether rows without codes count for this code.
    """
    lower = " ".join(text.split()).lower()
    for row in rows:
        kind = row.connecting if connecting else row.in_use
        if kind is None or not row.matches(lower):
            continue
        if row.codes is None:
            is_meant = vague
        else:  # libpq passes no code on if a connect failed
            is_meant = code in row.codes if code is not None else connecting
        if is_meant:
            cause = row.cause if kind in _ENDED else None
            shown = "28P01" if row.login and code is None else code
            return Fault(kind, cause, shown, flat(text))
    return None


_ENDED = (FaultKind.LOST, FaultKind.NOT_READY)
