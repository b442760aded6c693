"""The pool of an async engine."""

from __future__ import annotations

import asyncio
import os
from time import monotonic
from typing import Any

from sqlalchemy import pool as sqla_pool

from unbroken.brain.stats import Stats
from unbroken.integrations.sqlalchemy.body import Body
from unbroken.integrations.sqlalchemy.pool import EnginePool
from unbroken.integrations.sqlalchemy.record import (
    NO_BODY,
    in_greenlet,
)
from unbroken.integrations.sqlalchemy.runtimes import GreenletRuntime, SyncRuntime
from unbroken.pool.answers import is_soon


class AsyncUnbrokenQueuePool(EnginePool, sqla_pool.AsyncAdaptedQueuePool):
    """SQLAlchemy's AsyncAdaptedQueuePool, unbroken: the same for async engines."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncAdaptedQueuePool"

    def _do_get(self) -> Any:
        body, entry = self._body, None
        if not body.waiting:
            try:
                entry = body.take()
            except IndexError:
                pass
            else:
                now = monotonic()
                if (
                    now - entry.last_used < body.fresh_for
                    and not body.hung_up()
                    and not body.heard_goodbye(entry.conn)
                    and (entry.due is None or is_soon(body, entry, now))
                ):
                    entry.taken_at = now
                    entry.uses += 1
                    body.in_use[entry.key] = entry
                    return entry.record
        return self._take_slowly(entry).record

    def dispose(self) -> None:
        """Do the same as SQLAlchemy. The watcher ends with it, since the loop may."""
        super().dispose()
        body = self._body
        if (
            body is not NO_BODY
            and body.here[0]
            and not body.in_use
            and not body.waiting
            and not body.kernel.opening
        ):
            body.runtime.watcher.close()
            self._births.clear()
            self._counters, self._body = body.counters, NO_BODY

    def _loop_here(self) -> Any:
        return asyncio.get_running_loop()

    def _new_body(self, counters: Any) -> Body:
        driver: Any = self._plan.driver  # an async one
        return Body(self, self._plan, GreenletRuntime(driver, self._loop_here()), counters)

    def unbroken_stats(self) -> Stats:
        """Return the pool's numbers in this process. Outside of every event loop they are those of
        the loop that used it last.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            body: Body = self._body
            if self._body is NO_BODY or body.pid != os.getpid():
                driver: Any = self._plan.driver  # no query is sent by it
                body = Body(self, self._plan, SyncRuntime(driver), self._counters)
            return body.stats()
        return super().unbroken_stats()

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """Close a connection. Nothing can be awaited on the event loop itself: there the driver
        closes immediately, which not every dialect can.
        """
        if self._plan.is_blind or (in_greenlet() and not self._body_is_abrupt()):
            super()._close_connection(connection, terminate=terminate)
            return
        raw = self._plan.genuine(self._dialect.get_driver_connection(connection))
        if self._body.here[0]:
            self._body.say_goodbye(connection)
        self._plan.driver.close(raw)

    def _body_is_abrupt(self) -> bool:
        return bool(self._body.here[0] and self._body.abrupt)
