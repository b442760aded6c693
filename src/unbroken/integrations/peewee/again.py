"""A SELECT of peewee's own, in autocommit, whose connection was lost is asked again, if it can have
changed nothing.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import peewee

from unbroken.brain.entry import Entry
from unbroken.errors import UnbrokenError
from unbroken.integrations.peewee.errors import origin, translated
from unbroken.ledger.questions import Question
from unbroken.ledger.statements import Kind, kind, may_hide_a_write
from unbroken.pool.leases import JUST_USED


def mark(exc: BaseException, sql: Any, entry: Entry) -> None:
    """*exc* says that the connection of *entry* was lost when *sql* was sent: to be asked by
    :func:`lost_by`.
    """
    lost: Any = origin(exc)
    lost._unbroken_lost = sql
    lost._unbroken_was_well = monotonic() - entry.last_used < JUST_USED


def lost_by(exc: BaseException) -> Any:
    """The statement that met a lost connection, when *exc* (or the driver's error behind it) is
    about one; else None.
    """
    return getattr(origin(exc), "_unbroken_lost", None)


class AskedAgain:
    """Mixed in before a database that marks losses."""

    pool: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        """As peewee's.

        A SELECT in autocommit whose connection is lost is asked again, if it can have changed
        nothing.
        """
        tries = fatal = 0
        while True:
            try:
                return super().execute(query, *args, **options)  # type: ignore[misc] # the database's
            except Exception as exc:
                sql = lost_by(exc)
                if (
                    sql is None
                    or not isinstance(query, peewee.SelectBase)
                    or kind(sql) is not Kind.READ
                ):
                    raise
                if self._is_bound_to_session() or tries >= self.pool.settings.max_replays:
                    raise
                fatal += getattr(origin(exc), "_unbroken_was_well", False)
                why = (
                    "it ended two connections that had just worked"
                    if fatal > 1
                    else self._why_not(sql)
                )
                if why:
                    exc.add_note(f"unbroken did not ask this SELECT again: {why}")
                    raise
            tries += 1
            self._count_replay("a lost SELECT")

    def _why_not(self, sql: Any) -> str:
        """Why *sql*, which is committed by itself, may have stored something; nothing where the
        server rules that out.
        """
        if not may_hide_a_write(sql):
            return ""
        try:
            said = self._inquire(Question.HIDDEN_WRITES)
        except UnbrokenError as error:
            raise translated(error) from error
        return (
            "the server could not be asked whether it called a function that writes"
            if said is None
            else str(said)
        )

    def _inquire(self, question: Question) -> Any:
        """What the server answers, on a connection of the pool."""
        raise NotImplementedError

    def _is_bound_to_session(self) -> bool:
        """Whether what runs now belongs to a transaction, or the caller has the connection
        itself.
        """
        raise NotImplementedError

    def _count_replay(self, _why: str) -> None:
        state = self.pool._current()
        with state.lock:
            state.counters.replays += 1
