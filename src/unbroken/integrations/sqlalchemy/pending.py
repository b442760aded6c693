"""After a connection was lost, SQLAlchemy refuses everything until its transaction is rolled back.
Its errors do not mention the loss, so a note on each names the loss and the remedy.

Three of SQLAlchemy's methods that raise these errors are wrapped, once in a process. Their results
and errors stay the same. If one is missing, nothing is noted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.engine.util import TransactionalContext
from sqlalchemy.exc import InvalidRequestError

from unbroken.brain.entry import Entry
from unbroken.messages.integrations import ROLL_BACK_FIRST

#: The attribute of an error, and of a Connection, that holds the note's facts.
_LOSS = "_unbroken_loss"


def remember(connection: Any, error: BaseException, entry: Entry) -> None:
    """Record that *error* of *connection* was caused by the loss of *entry*."""
    why = (entry.cause or "lost") + (f': "{entry.words}"' if entry.words else "")
    which = f"connection {entry.session}" if entry.session else "the connection"
    text = (
        f"unbroken: {which} of this transaction was lost ({why}). Roll back (call rollback(), or"
        " leave the block that began the transaction), and run the work again from its beginning;"
        " a unit of work (@unbroken.replayable) does both by itself"
    )
    for each in (connection, error):
        if each is not None:
            each.__dict__[_LOSS] = text


def install() -> None:
    """Add the note to these errors from now on."""
    if hasattr(Connection, _LOSS):
        return
    setattr(Connection, _LOSS, None)
    _wrap(Connection, "_invalid_transaction", lambda connection: [connection])
    _wrap(TransactionalContext, "_trans_ctx_check", _of_subject)
    try:
        from sqlalchemy.orm import SessionTransaction
    except ImportError:
        return
    _wrap(SessionTransaction, "_raise_for_prerequisite_state", lambda this: [_error_of(this)])


def _error_of(transaction: Any) -> Any:
    return getattr(transaction, "_rollback_exception", None)


def _of_subject(subject: Any) -> list[Any]:
    """Return the objects that may hold a loss: the Connection, or the error that ended the
    Session's transaction.
    """
    return [subject, _error_of(getattr(subject, "_trans_context_manager", None))]


def _wrap(owner: Any, name: str, places: Callable[[Any], list[Any]]) -> None:
    plain = owner.__dict__.get(name)
    original = getattr(plain, "__func__", plain)
    if original is None:
        return

    @functools.wraps(original)
    def raises(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except InvalidRequestError as exc:
            _note(exc, places(args[-1] if isinstance(plain, classmethod) else args[0]))
            raise

    setattr(owner, name, classmethod(raises) if isinstance(plain, classmethod) else raises)


def _note(exc: BaseException, places: list[Any]) -> None:
    for place in places:
        link = place
        while link is not None:
            text = getattr(link, _LOSS, None)
            if text is not None:
                exc.add_note(ROLL_BACK_FIRST(text))
                return
            link = getattr(link, "__cause__", None) or getattr(link, "orig", None)
