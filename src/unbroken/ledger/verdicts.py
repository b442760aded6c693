"""The answers of a ledger: the action to take, and the fate of the writes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from unbroken.ledger.questions import Question


class Action(StrEnum):
    """The action for a unit of work that failed."""

    REPLAY = "replay"  #: run it again from the start, on another connection
    RAISE = "raise"  #: raise the error to the caller
    #: a COMMIT was sent, and its answer was lost or proves nothing: report that
    COMMIT_UNKNOWN = "commit unknown"


class Origin(Protocol):
    """The pool that a connection came from, for the ledger: the questions that another one of its
    connections can answer.
    """

    @property
    def backend(self) -> str:
        """Return ``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``."""

    @property
    def may_hide_writes(self) -> bool:
        """Return whether a SELECT may store something there, according to the server's last
        answer.
        """

    def looked(self) -> None:
        """Note that a SELECT was committed that may have stored something."""

    def has_ended(self, entry: Any) -> bool:
        """Return whether the peer is known to have ended *entry*, without a round trip."""


def keeps_rows(backend: str) -> bool:
    """Return whether a server of that kind may have tables without transactions, which keep their
    rows when a transaction is rolled back (MyISAM, Aria, MEMORY). It cannot be seen which tables
    those are.
    """
    return backend in ("mysql", "mariadb")


@dataclass(frozen=True, slots=True)
class Verdict:
    """An action and its reason, in one line.

    A replay may begin only after each of *asks* was asked and :meth:`Unit.hear` got the answer.
    """

    action: Action
    reason: str
    asks: tuple[tuple[Origin, Question], ...] = ()


class Fate(StrEnum):
    """The ledger's knowledge of a unit's writes, over all of its attempts.

    If the ledger cannot distinguish *stored* from *unknown*, it is *unknown*.
    """

    NOTHING = "nothing stored"  #: none of its writes is in the database, now or later
    STORED = "stored"  #: the server acknowledged the unit's commits; nothing is in doubt
    UNKNOWN = "unknown"  #: some of its writes may be stored, now or later
