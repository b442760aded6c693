"""The report of each statement of an engine's to :mod:`unbroken.ledger.heal`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from unbroken.errors import ConnectionLostError
from unbroken.integrations.sqlalchemy.record import Record, Slot
from unbroken.ledger.heal import Past
from unbroken.messages.data import SESSION_LOST
from unbroken.pool.heal import before, is_open
from unbroken.pool.loan import Loan


def past_of(record: Record, entry: Slot) -> Past:
    """Return the statements that this use of *record*'s connection has sent so far."""
    if record.past_use != (entry.key, entry.uses):
        record.past_use = (entry.key, entry.uses)
        record.past.renew()
        record.sent_bytes = record.failed = None
    return record.past


def tell(context: Any, sql: Any) -> Record | None:
    """Report *sql*, which is about to be sent in *context*. Returns the record of its connection,
    if it is ours.
    """
    proxied = getattr(context, "root_connection", None)
    proxied = None if proxied is None else proxied._dbapi_connection
    record = None if proxied is None else getattr(proxied, "_connection_record", None)
    if not isinstance(record, Record):
        return None
    entry = record.entry
    if entry is None or entry.conn is None:
        return None
    past = past_of(record, entry)
    record.was_dead = before(Loan.of(record.owner, entry, entry.conn), past, sql)
    record.failed, record.sql = None, sql
    opened = record.owner.driver.is_in_transaction(entry.conn)
    if opened is None or (opened and record.was_dead):
        loan = Loan.of(record.owner, entry, entry.conn)
        opened = is_open(loan, past, lambda: commits_itself(record, context.dialect))
    if past.forgot and past.misses(sql):
        raise record.owner.error(
            ConnectionLostError,
            SESSION_LOST(
                "this statement needs state of a session that was lost, and a new session has taken"
                " its place; run it again together with the statements that it depends on"
            ),
        )
    past.sent(sql, opened)
    if record.sent_bytes is not None and record.sent_bytes[0] != entry.count():
        past.unseen("an event handler of the application may have sent something on it")
    return record


def commits_itself(record: Record, dialect: Any) -> bool | None:
    """Return whether autocommit is on, also if the connection is lost; None if that cannot be
    determined.

    A driver whose library would ask the server knows it by itself (``had_autocommit``).
    """
    known: Callable[[Any], bool | None] | None
    known = getattr(record.owner.driver, "had_autocommit", None)
    if known is not None:
        return None if record.entry is None else known(record.entry.conn)
    try:
        return bool(dialect.detect_autocommit_setting(record.dbapi_connection))
    except Exception:
        return None


def telling(original: Any) -> Any:
    """Wrap a call so that each statement, and whether it failed, is noted on the record of its
    connection.
    """

    @functools.wraps(original)
    def execute(*args: Any, **kwargs: Any) -> Any:
        context = args[-1] if args else kwargs.get("context")
        record = tell(context, args[1] if len(args) > 1 else kwargs.get("statement"))
        if record is None:
            return original(*args, **kwargs)
        try:
            result = original(*args, **kwargs)
        except Exception as exc:
            record.failed = id(exc)
            raise
        if record.sent_bytes is not None and record.entry is not None:
            record.sent_bytes = (record.entry.count() or -1,)
        return result

    return execute
