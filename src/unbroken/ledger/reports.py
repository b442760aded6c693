"""The reports of drivers: each statement before it is sent, and each answer that they
understand.
"""

from __future__ import annotations

from unbroken.ledger import residue
from unbroken.ledger.deeds import Deeds, joined
from unbroken.ledger.part import Part
from unbroken.ledger.statements import Kind, kind, may_hide_a_write, shape, verb
from unbroken.ledger.verdicts import keeps_rows

#: Statements of the kind WRITE that begin so store nothing. Other spellings count as writes.
_SAVEPOINTS = frozenset(
    {"SAVEPOINT", b"SAVEPOINT", "RELEASE S", b"RELEASE S", "ROLLBACK ", b"ROLLBACK "}
)

#: Kinds of statements that do not end their session.
_BLAMELESS = (Kind.BEGIN, Kind.ROLLBACK)


class Reports(Deeds):
    """The driver's side of a unit of work. Each report only ever makes the ledger more careful."""

    __slots__ = ()

    def harmless(self, *, conn_id: int | None = None) -> None:
        """Report a command that is about to be sent and neither reads nor changes anything, such as
        a ping.
        """
        if not self._closed:
            self._part(conn_id)

    def statement(
        self, sql: str | bytes | None, autocommit: bool | None, *, conn_id: int | None = None
    ) -> None:
        """Report *sql*, which is about to be sent. None: its text is not known.

        *autocommit*: True if it will commit by itself (no transaction is open, autocommit is on),
        False if it runs inside a transaction, None if that is not known.
        """
        if residue.followed:
            residue.note(conn_id, sql)
        if self._closed:
            return
        part = self._part(conn_id)
        self._answered(part)
        self._goes_out(part, sql)
        what = kind(sql)
        if what is Kind.READ:
            if may_hide_a_write(sql):
                self._look(part, autocommit)
        elif what is Kind.ROLLBACK:
            part.undoing = part.open  # it counts once it is acknowledged: rolled_back()
        elif what is Kind.COMMIT:
            self._commit_goes_out(part)
            part.pending = part.open
        elif what is Kind.SETTLES:
            self.wrote = part.open = part.pending = part.settling = True
            part.savepoints = False
        elif what is Kind.BEGIN:
            self._commit_goes_out(part)
            if part.open:
                self._uncertain = True
                self._bar(
                    "a transaction was begun while one with writes was open: MySQL commits the open"
                    " one"
                )
        else:
            self._wrote(part, what, sql, autocommit)

    def _goes_out(self, part: Part, sql: str | bytes | None) -> None:
        """Record losses from before *sql* is sent, so that they do not count as caused by it.

        A check of the socket costs as much as a report, so only later attempts do it.
        """
        part.sent += 1
        part.last = sql
        entry = part.entry
        if entry is not None and (
            entry.cause is not None
            or (self.attempts > 1 and part.origin is not None and part.origin.has_ended(entry))
        ):
            part.last = None

    def _look(self, part: Part, autocommit: bool | None) -> None:
        """Record a SELECT that is sent and may call a function that writes."""
        part.looked = True
        if part.origin is None:
            self._keeps = True
        elif keeps_rows(part.origin.backend):
            self._peeked[id(part.origin)] = part.origin
        if autocommit is not False:
            self._commit_goes_out(part)

    def _commit_goes_out(self, part: Part) -> None:
        """Record that writes of such SELECTs may be committed from now on."""
        if part.looked:
            part.looked, part.unheard = False, True
            self._looks[id(part.origin)] = part.origin
            if part.origin is not None:
                part.origin.looked()

    def _wrote(
        self, part: Part, what: Kind, sql: str | bytes | None, autocommit: bool | None
    ) -> None:
        self.wrote = True
        is_savepoint = isinstance(sql, (str, bytes)) and sql[:9].upper() in _SAVEPOINTS
        if not is_savepoint and (part.origin is None or keeps_rows(part.origin.backend)):
            self._keeps = True
        if what is Kind.ENDS:
            self._uncertain = True
            self._bar(
                "a statement with an unknown text was sent"
                if sql is None
                else f"{with_article(verb(sql))} was sent, which may commit implicitly"
            )
        elif autocommit is None:
            self._uncertain = True
            self._bar(
                f"{with_article(verb(sql))} was sent, and it is not known whether autocommit was on"
            )
        elif autocommit:
            part.direct = part.direct or not is_savepoint
            self._bar(f"{with_article(verb(sql))} was sent in autocommit")
        else:
            part.savepoints = is_savepoint and (part.savepoints or not part.open)
            part.open = True

    def committing(self, *, conn_id: int | None = None) -> None:
        """Report a COMMIT that is about to be sent. One of a transaction that only read never stops
        a replay.

        An observing unit is never replayed, so it waits for the answer to that COMMIT as well: a
        function that a SELECT called may have written.
        """
        if self._closed:
            return
        part = self._part(conn_id)
        self._answered(part)
        self._goes_out(part, "COMMIT")
        self._commit_goes_out(part)
        part.pending = part.open or self.observing

    def committed(self, *, conn_id: int | None = None) -> None:
        """Report that the COMMIT, sent by method or as a statement, was acknowledged."""
        if self._closed:
            return
        part = self._part(conn_id)
        part.last = None
        if part.open:
            self._stored = self._stored or not part.savepoints
            self._uncertain = self._uncertain or part.undoing
            self._commit_happened(part)
        part.pending = part.unheard = False

    def acknowledged(self, *, conn_id: int | None = None, stored: bool = True) -> None:
        """Report that the server answered the last write in autocommit, or the last ``XA COMMIT``
        or similar statement.

        *stored*: True for success, False for an error that undid all of the statement. A driver
        that is certain of neither does not call this; then the fate stays *unknown*.
        """
        part = None if self._closed else self._parts.get(conn_id)
        if part is not None:
            part.last = None
        if part is not None and part.direct:
            self._stored = self._stored or stored  # first: never a moment without either
            part.direct = False
        if part is not None and part.settling:
            self._stored = self._stored or stored
            if stored:
                self._commit_happened(part)
            else:
                part.open = part.pending = part.settling = False

    def commit_failed(self, *, conn_id: int | None = None) -> None:
        """Report that the server ANSWERED the COMMIT, sent by method or as a statement, with an
        error that proves that nothing was committed (:mod:`unbroken.backends.commits`).
        """
        if not self._closed:
            # still open: SQLite lets a COMMIT that met a lock be tried again
            part = self._part(conn_id)
            part.pending = False
            if part.settling:
                part.open = part.settling = False

    def commit_doubted(self, *, conn_id: int | None = None) -> None:
        """Report that the server ANSWERED with an error that does not prove that nothing was
        stored.

        The result of a COMMIT stays unknown. For any other statement the report has no effect.
        """
        part = None if self._closed else self._parts.get(conn_id)
        if part is not None and part.pending:
            part.doubted = True

    def is_doubted(self, conn_id: int | None) -> bool:
        """Return whether a COMMIT on *conn_id* got such an answer in this attempt."""
        part = self._parts.get(conn_id)
        return part is not None and part.doubted

    def rolled_back(self, *, conn_id: int | None = None) -> None:
        """Report that a ROLLBACK of the whole transaction was acknowledged.

        If it is the answer to a COMMIT (PostgreSQL's, of a transaction that had failed), call
        commit_failed() first.
        """
        if self._closed:
            return
        part = self._part(conn_id)
        self._answered(part)
        part.open = part.undoing = part.looked = False
        part.last = None

    def ended(
        self,
        *,
        conn_id: int | None = None,
        clean: bool = True,
        lost: bool = False,
        paused: bool = False,
    ) -> None:
        """Report that the connection left the unit. *clean*: with nothing open: rolled back,
        committed, or closed for good.

        A COMMIT that was sent on it without an answer stays unknown. *lost*: the peer ended it, for
        an unknown reason. *paused*: the peer ended it because it was idle for too long.
        """
        if conn_id is not None and joined.get(conn_id) is self:
            del joined[conn_id]
        part = self._parts.get(conn_id)
        if part is None or self._closed:
            return
        if clean:
            part.open = part.open and part.pending
            part.undoing = part.undoing and part.open
            part.looked = False
            part.unheard = part.unheard and lost
        if paused and part.sent and (part.fresh or part.sent > 1):
            # otherwise it had been idle before it came here
            self._pauses.setdefault(part.sent, set()).add(self.attempts)
        if lost:
            part.dead = True
            was_well = (part.fresh or part.sent > 1) and not part.older
            if was_well and part.last is not None and kind(part.last) not in _BLAMELESS:
                self._deaths.setdefault(shape(part.last), set()).add(self.attempts)

    def doubt(self, reason: str, *, conn_id: int | None = None) -> None:
        """Report an action that cannot be followed: this attempt is never replayed, because of
        *reason*.
        """
        if residue.followed:
            residue.note(conn_id, None)
        if not self._closed:
            self._part(conn_id)
            self.wrote = self._uncertain = True
            self._bar(reason)

    def sends(self, key: int, reason: str) -> None:
        """Report a write outside of any connection that this unit has joined: this attempt is never
        replayed, because of *reason*, and its fate is unknown until :meth:`answered`.
        """
        if not self._closed:
            self._part(None)
            self.wrote = True
            self._unanswered.add(key)
            self._bar(reason)

    def answered(self, key: int, *, stored: bool) -> None:
        """Report the server's answer to the write *key*: stored, or nothing stored."""
        if not self._closed and key in self._unanswered:
            self._unanswered.discard(key)
            self._stored = self._stored or stored

    def forbid(self, reason: str, *, conn_id: int) -> None:
        """Report that the unit uses the connection *conn_id*, which was in use before: this attempt
        is never replayed, because of *reason*.

        The fate stays known if this unit, or an observing one above it, gets a report of everything
        sent on the connection. Otherwise this is a :meth:`doubt`.
        """
        if self._hears(conn_id):
            if not self._closed:
                self._bar(reason)
        else:
            self.doubt(reason)

    def _answered(self, part: Part) -> None:
        """Note that a report follows on this connection, so the server answered the previous
        statement.

        The driver did not report how the server answered: the fate is unknown.
        """
        part.unheard = False
        if part.direct:
            self._uncertain, part.direct = True, False
        if part.pending:
            self._uncertain = self._uncertain or part.open
            self._commit_happened(part)

    def _commit_happened(self, part: Part) -> None:
        # the barrier first: never a moment without either
        self._bar("an earlier COMMIT was acknowledged")
        part.open = part.pending = part.undoing = part.settling = False


def with_article(word: str) -> str:
    """Return *word* with "a" or "an" before it."""
    return f"an {word}" if word[0] in "AEIOUX" else f"a {word}"
