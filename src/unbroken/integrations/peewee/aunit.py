"""``@db.unit`` for asyncio: coroutine functions as units of work, with the connection handled and
lazy results read in full.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from unbroken.integrations.peewee.lazy import Lazy, whole
from unbroken.integrations.peewee.unit import resolved
from unbroken.ledger.scope import current
from unbroken.pool.running_async import run_unit_async


def awaited(
    database: Any,
    function: Callable[..., Awaitable[Any]],
    lazy: Lazy,
    atomic: bool,
    deadline: float | None,
    max_replays: int | None,
) -> Any:
    """Return *function* as a unit of work on an asyncio *database*; :func:`unbroken.peewee.unit`
    describes it.
    """

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        db = resolved(database, function)
        settings = db.pool.settings

        async def work() -> Any:
            async with _Scope(db):
                if not atomic:
                    return await _whole(await function(*args, **kwargs), db, function, lazy)
                async with db.atomic():
                    return await _whole(await function(*args, **kwargs), db, function, lazy)

        limit = settings.deadline if deadline is None else deadline
        return await run_unit_async(
            work,
            limit,
            settings.max_replays if max_replays is None else max_replays,
            db._count_replay,
            function,
        )

    return call


class _Scope:
    """A scope that is connected inside, and afterwards as it was before. Transactions left open are
    rolled back.
    """

    __slots__ = ("db", "opened", "timer")

    def __init__(self, db: Any) -> None:
        self.db = db

    async def __aenter__(self) -> None:
        work = current()
        self.opened, self.timer = self.db._state.conn is None, None
        held = await self.db.aconnect()
        if not self.opened:  # a connection acquired in a unit ends with it anyway
            self.timer = held.loan.timer(math.inf if work is None else work.until)

    async def __aexit__(self, *_exc: object) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.opened:
            state = self.db._state._current()
            state.transactions.clear()  # left open by the function: the pool rolls it back
            self.db._note_scope()
            await self.db._drop(state)


async def _whole(value: Any, db: Any, function: Any, lazy: Lazy) -> Any:
    """Do the same as :func:`whole`, which reads through pwasyncio's bridge."""
    if inspect.isasyncgen(value) and lazy == "read":
        return _given([row async for row in value])
    return await db.run(whole, value, db, function, lazy)


async def _given(rows: Iterable[Any]) -> AsyncIterator[Any]:
    for row in rows:
        yield row
