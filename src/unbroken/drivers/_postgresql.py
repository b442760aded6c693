"""The common parts of the PostgreSQL drivers: the query for the idle limit, and how an answer to a
COMMIT is read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from unbroken.abc import Fault, FaultKind
from unbroken.backends.commits import proves_nothing_stored
from unbroken.backends.pgbouncer import last_refusal, never_executed
from unbroken.backends.postgresql import postgres_fault
from unbroken.drivers._shared import is_commit, is_rollback
from unbroken.ledger import unit
from unbroken.ledger.residue import VAGUE, Left

#: In milliseconds, independent of its display unit. No row before PostgreSQL 14, which had no such
#: limit.
ASK_IDLE_LIMIT = "SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout'"


#: PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, and no driver reports it:
#: the work would be lost unnoticed.
NOT_COMMITTED = (
    "this transaction is not stored: a statement in it failed, the application caught the error,"
    " and PostgreSQL answers its COMMIT with ROLLBACK; let the error propagate, or put the"
    " statement into a savepoint"
)


#: The parts of DISCARD ALL, which cannot share a round trip with anything else, except for
#: statements that a driver prepared.
_RESET = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT"
    " pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
#: Deallocates statements that were prepared by SQL. The drivers' own stay, and so do the drivers'
#: records of them.
_DEALLOCATE = (
    "; DO $$DECLARE found text; BEGIN FOR found IN SELECT name FROM pg_prepared_statements WHERE"
    " from_sql LOOP EXECUTE format('DEALLOCATE %I', found); END LOOP; END$$"
)


def reset_of(left: Collection[Left], opening: str = "") -> str:
    """Return statements, for one round trip outside a transaction, that undo what is *left* on a
    session. The last is a SELECT.

    *opening* is the SQL that restores the settings from the session's opening.
    """
    return (
        _RESET
        + ("" if (VAGUE | {Left.PREPARED}).isdisjoint(left) else _DEALLOCATE)
        + opening
        + "; SELECT 1"
    )


def ask_opening(sets_only: bool | None) -> str:
    """Return the query for the settings that a session was given by SQL when it was opened. It
    returns one row with one text; see :func:`opening`.

    Unless *sets_only*, it also asks for everything else that a reset would undo.
    """
    return f"SELECT CASE WHEN {'false' if sets_only else _HAS_MORE} THEN NULL ELSE {_SETTINGS} END"


_HAS_MORE = (
    "pg_my_temp_schema() <> 0 OR EXISTS (SELECT FROM pg_listening_channels()) OR EXISTS (SELECT"
    " FROM pg_cursors WHERE is_holdable) OR EXISTS (SELECT FROM pg_prepared_statements WHERE"
    " from_sql) OR session_user <> (SELECT usename FROM pg_stat_activity WHERE pid ="
    " pg_backend_pid()) OR EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid ="
    " pg_backend_pid())"
)
_SETTINGS = (
    "coalesce((SELECT string_agg(format('; SELECT set_config(%L, %L, false)', name,"
    " current_setting(name)), '') FROM pg_settings WHERE source = 'session'), '') || CASE WHEN"
    " current_setting('role') = 'none' THEN '' ELSE format('; SELECT set_config(''role'', %L,"
    " false)', current_setting('role')) END"
)


def limit(setting: str | None) -> float | None:
    """Return the seconds from the answer to :data:`ASK_IDLE_LIMIT`; None for no limit."""
    milliseconds = float(setting) if setting is not None else 0.0
    return milliseconds / 1000 if milliseconds > 0 else None


def told(conn: Any) -> Fault | None:
    """Return PgBouncer's error from before it closed the connection. libpq keeps it. psycopg2, and
    psycopg after a command of its own, raise only the error about the closed connection that
    followed. Never raises.
    """
    try:
        return last_refusal(conn.info.error_message or "")
    except Exception:  # another class of connection
        return None


def about_to_send(
    ledger: unit.Unit, conn_id: int, sql: str | bytes, autocommit: bool | None
) -> bool | None:
    """Report *sql*.

    Returns True for a COMMIT and False for a ROLLBACK; :func:`answered` takes that value with the
    answer.
    """
    if is_commit(sql):
        ledger.committing(conn_id=conn_id)
        return True
    ledger.statement(sql, autocommit, conn_id=conn_id)
    return False if is_rollback(sql) else None


def answered(
    ledger: unit.Unit, conn_id: int, commits: bool | None, tag: str | bytes | None
) -> None:
    """Report the positive answer to a statement. *commits* is the result of :func:`about_to_send`.

    *tag* is the server's. For the COMMIT of a failed transaction it is ROLLBACK.
    """
    if commits is None:
        ledger.acknowledged(conn_id=conn_id)
    elif not commits:
        ledger.rolled_back(conn_id=conn_id)
    elif tag in ("ROLLBACK", b"ROLLBACK"):
        ledger.commit_failed(conn_id=conn_id)
        ledger.rolled_back(conn_id=conn_id)
    else:
        ledger.committed(conn_id=conn_id)


def refused(
    ledger: unit.Unit, conn_id: int, commits: bool | None, sqlstate: str | None, text: str
) -> None:
    """Report the server's error in answer to one statement, and whether it proves that nothing of
    it was stored.

    Not for a call that sends several statements: those before the error may be stored.
    """
    if commits is False or not sqlstate:
        return
    if commits is None and sqlstate == "08P01" and never_executed(text):
        ledger.acknowledged(conn_id=conn_id, stored=False)  # no server has received it
        return
    if not proves_nothing_stored("postgresql", sqlstate, text):
        if postgres_fault(sqlstate, text).kind is not FaultKind.LOST:  # that is no answer
            ledger.commit_doubted(conn_id=conn_id)
    elif commits:
        ledger.commit_failed(conn_id=conn_id)
    else:
        ledger.acknowledged(conn_id=conn_id, stored=False)
