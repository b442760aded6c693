"""What is told of each statement of an engine's: see :mod:`unbroken.ledger.heal`."""

from __future__ import annotations

import functools
from typing import Any

from unbroken.errors import ConnectionLostError
from unbroken.integrations.sqlalchemy.record import Record, Slot
from unbroken.ledger.heal import Past
from unbroken.ledger.statements import Kind, kind
from unbroken.pool.loan import Loan


def past_of(record: Record, entry: Slot) -> Past:
    """What this use of *record*'s connection has seen so far."""
    if record.past_use != (entry.key, entry.uses):
        record.past_use = (entry.key, entry.uses)
        record.past.renew()
        record.sent_bytes = record.failed = None
    return record.past


def tell(context: Any, sql: Any) -> Record | None:
    """*sql* is about to be sent in *context*. Gives the record of its connection, if it is ours."""
    proxied = getattr(context, "root_connection", None)
    proxied = None if proxied is None else proxied._dbapi_connection
    record = None if proxied is None else getattr(proxied, "_connection_record", None)
    if not isinstance(record, Record):
        return None
    entry = record.entry
    if entry is None or entry.conn is None:
        return None
    past = past_of(record, entry)
    record.was_dead, record.failed, record.sql = entry.cause is not None, None, sql
    is_open = record.owner.driver.is_in_transaction(entry.conn)
    if is_open is not False and (record.was_dead or is_open is None):
        is_open = _is_open(past, record, entry, context, is_open)
    if past.forgot and past.misses(sql):
        raise record.owner.error(
            ConnectionLostError,
            "the session that could answer this was lost, and another one has taken its place",
        )
    past.sent(sql, is_open)
    if record.sent_bytes is not None and record.sent_bytes[0] != entry.count():
        past.unseen("a handler of the application's may have sent something on the connection")
    return record


def _is_open(
    past: Past, record: Record, entry: Slot, context: Any, is_open: bool | None
) -> bool | None:
    """Whether a transaction was open, where the driver does not know it: because the connection is
    dead, or because an error was the last answer.
    """
    if not past.count:
        return False if past.why_blind is None else is_open  # nothing was sent since the last end
    if not record.was_dead and not Loan.of(record.owner, entry, entry.conn).is_dead:
        return is_open
    return False if is_at_rest(past, record, context.dialect) else is_open


def is_at_rest(past: Past, record: Record, dialect: Any) -> bool:
    """Whether what was sent last was committed by itself: autocommit is on."""
    began = any(sql is None or kind(sql) is Kind.BEGIN for sql in past.now)
    return not began and commits_itself(record, dialect) is True


def commits_itself(record: Record, dialect: Any) -> bool | None:
    """Whether autocommit is on; None where that cannot be told."""
    try:
        return bool(dialect.detect_autocommit_setting(record.dbapi_connection))
    except Exception:
        return None


def telling(original: Any) -> Any:
    """What is sent, and whether it failed, is noted on the record of its connection."""

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
