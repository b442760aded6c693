"""An engine whose connections replace lost ones, and the statements that it sends for execution
options.
"""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.engine.base import OptionEngine

from unbroken.abc import FaultKind
from unbroken.errors import UnbrokenError
from unbroken.integrations.sqlalchemy.heal import HealingConnection
from unbroken.integrations.sqlalchemy.record import NO_BODY
from unbroken.integrations.sqlalchemy.telling import telling
from unbroken.logs import Part
from unbroken.messages.integrations import POOLED_AS_SQLALCHEMY_DOES
from unbroken.pool.heal import ATTEMPTS
from unbroken.pool.loan import Loan

log = Part("driver")


def _forgiving(engine: Any, original: Any) -> Any:
    """Return the function that restores options at checkin. A connection that is lost by then is
    closed. Its holder, which has finished, sees no error.
    """

    @functools.wraps(original)
    def reset(characteristics: Any, dbapi_connection: Any) -> None:
        try:
            original(characteristics, dbapi_connection)
        except Exception as exc:
            owner = engine.pool._body
            entries = getattr(owner, "by_connection", {}).get(id(dbapi_connection), ())
            if not entries or owner.classify(exc).kind is not FaultKind.LOST:
                raise
            for entry in entries:
                Loan.of(owner, entry, entry.conn).failed(exc)

    return reset


class HealingOptionEngine(OptionEngine):
    """An engine's copy with other execution options. Its connections replace lost ones as the
    engine's do.
    """

    _connection_cls = HealingConnection

    def connect(self) -> Connection:
        """Do the same as SQLAlchemy. A connection that is lost while its options are set is
        replaced.
        """
        found: Connection = _connected(self, super().connect)
        return found


def _connected(engine: Any, connect: Any) -> Any:
    """Return a Connection of *engine*'s, which sends the statements that its execution options
    need.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return connect()
        except engine.dialect.loaded_dbapi.Error as exc:
            ours, owner = isinstance(exc, UnbrokenError), engine.pool._body
            if ours or owner is NO_BODY or not owner.classify(exc).is_lost:
                raise
            _let_go(exc)
    return connect()


def _let_go(exc: BaseException) -> None:
    """Drop a Connection that was lost while it was made: only the frame that *exc* left refers to
    it.
    """
    trace = exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is Connection.__init__.__code__:
            proxied = getattr(trace.tb_frame.f_locals["self"], "_dbapi_connection", None)
            if proxied is not None:
                proxied.invalidate(exc)
        trace = trace.tb_next


HealingOptionEngine._option_cls = HealingOptionEngine

for _kind, _name in ((HealingConnection, "Connection"), (HealingOptionEngine, "OptionEngine")):
    _kind.__name__ = _kind.__qualname__ = _name  # the name that logs show


def install(engine: Any) -> None:
    """Make *engine*'s connections replace lost ones from now on."""
    if engine._connection_cls is not Connection or engine._option_cls is not OptionEngine:
        log.warning(
            "does not heal",
            POOLED_AS_SQLALCHEMY_DOES(
                f"{engine!r} uses another connection class than SQLAlchemy's, so its lost"
                " statements are not run again"
            ),
            about=repr(engine.url),
            once=True,
        )
        return
    dialect = engine.dialect
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, telling(getattr(dialect, name)))
    dialect._reset_characteristics = _forgiving(engine, dialect._reset_characteristics)
    engine._connection_cls, engine._option_cls = HealingConnection, HealingOptionEngine
    if engine._execution_options:
        engine.connect = functools.partial(_connected, engine, engine.connect)
