"""The words in which a ledger answers: what to do, and what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from unbroken.ledger.questions import Question


class Action(StrEnum):
    """What to do with a unit of work that failed."""

    REPLAY = "replay"  #: run it again from the start, on another connection
    RAISE = "raise"  #: hand the error to the caller
    #: a COMMIT was sent, and its answer was lost or proves nothing: say so
    COMMIT_UNKNOWN = "commit unknown"


class Origin(Protocol):
    """The pool that a connection came from, for the ledger: what can be asked on another one of its
    connections.
    """

    @property
    def backend(self) -> str:
        """``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``."""

    @property
    def may_hide_writes(self) -> bool:
        """Whether a SELECT may store something there, as far as the server said last."""

    def looked(self) -> None:
        """A SELECT was committed that may have stored something."""

    def has_ended(self, entry: Any) -> bool:
        """Whether the other side is known to have ended *entry*, without a round trip."""


def keeps_rows(backend: str) -> bool:
    """Whether a server of that kind may have tables without transactions, which keep their rows
    when a transaction is rolled back (MyISAM, Aria, MEMORY). Which tables those are cannot be seen.
    """
    return backend in ("mysql", "mariadb")


@dataclass(frozen=True, slots=True)
class Verdict:
    """An action and, in one line, why.

    A replay only after each of *asks* was asked and :meth:`Unit.hear` got the answer.
    """

    action: Action
    reason: str
    asks: tuple[tuple[Origin, Question], ...] = ()


class Fate(StrEnum):
    """What the ledger knows of a unit's writes, over all of its attempts.

    Where the ledger cannot tell *stored* from *unknown*, it says *unknown*.
    """

    NOTHING = "nothing stored"  #: none of its writes is in the database, now or later
    STORED = "stored"  #: the server acknowledged what the unit committed; nothing is in doubt
    UNKNOWN = "unknown"  #: some of its writes may be stored, now or later
