""":mod:`unbroken.integrations.peewee.heal` for asyncio: a task's connection in the middle of a
transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import peewee

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.errors import UnbrokenError
from unbroken.integrations.peewee.errors import origin
from unbroken.integrations.peewee.heal import OwnAffair, Refused
from unbroken.integrations.peewee.held import Held
from unbroken.integrations.peewee.upkeep import log
from unbroken.ledger.heal import Past, Ruling, may_forget_commit, may_run_again
from unbroken.pool.heal import (
    ATTEMPTS,
    Before,
    Losses,
    connections,
    curable,
    forget,
    is_own_affair,
    is_replayed,
    lost_at,
    note,
    objection,
)
from unbroken.pool.steps import run_async
from unbroken.pool.undone import Ending


class AsyncHealing:
    """Mixed in before one of pwasyncio's databases: it sends the statements of ``execute``."""

    _state: Any
    pool: Any
    aconnect: Callable[[], Awaitable[Any]]
    _drop: Callable[[Any], Awaitable[None]]
    _pin: Callable[[Any], Awaitable[tuple[Any, Held]]]

    async def _send_safely(self, sql: Any, send: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of *send*, which sends *sql*.

        It is called again if the connection was lost and that is safe.
        """
        losses, healed = Losses(), None
        while True:
            state = self._state._current()
            if state.conn is not None:
                state.conn.told = state.conn.met = None
            try:
                result = await send()
            except Exception as exc:
                held: Held | None = state.conn
                fault = _lost_by(held, exc, sql)
                if fault is None or held is None:
                    raise
                await self._cure(state, held, exc, sql, fault, losses)
                healed = fault
                continue
            if healed is not None and state.conn is not None:
                note(state.conn.owner, sql, state.conn.entry.place, healed)
            return result

    async def _pin_safely(self, sql: Any) -> tuple[Any, Held]:
        """Do the same as ``_pin``. A connection that is found to be lost there was lost before
        *sql* was sent.
        """
        losses = Losses()
        for _ in range(ATTEMPTS):
            try:
                return await self._pin(sql)
            except UnbrokenError as exc:
                state = self._state._current()
                held: Held | None = state.conn
                fault = _lost_by(held, exc, sql)
                if fault is None or held is None:
                    raise
                await self._cure(state, held, exc, sql, fault, losses)
                note(held.owner, sql, held.entry.place, fault)
        return await self._pin(sql)

    async def _cure(
        self, state: Any, held: Held, exc: Exception, sql: Any, fault: Fault, losses: Losses
    ) -> None:
        """Get another connection for *sql*, which lost *held*; or raise *exc*."""
        past = held.past
        assert past is not None  # it was reported
        count = losses.add(held.loan, past, was_dead=held.was_dead)
        begun = held.is_begun and past.begun
        lost = lost_at(
            held.loan, sql, fault, count, in_transaction=begun, until=held.until, was=held.was_dead
        )
        try:
            ruling = may_run_again(past, lost)
            own = is_own_affair(held.loan, fault)
            if ruling.heals and await run_async(own, held.owner.runtime.do):
                raise OwnAffair
            if ruling.heals and (spent := losses.pay(held.loan, fault)) is not None:
                ruling = Ruling(False, spent)
            await self._move(state, held, ruling)
        except OwnAffair:
            raise exc from exc.__cause__
        except (Refused, peewee.PeeweeException, UnbrokenError) as why:
            losses.refused(exc, why, held.loan)
            raise exc from exc.__cause__
        finally:
            held.met = None
        forget(exc)

    async def _move(self, state: Any, old: Held, ruling: Ruling) -> None:
        """Get another connection for this task, in the same transaction. Raises the exception that
        refused it.
        """
        if not ruling.heals:
            raise Refused(ruling.reason)
        begin = self._begins_again(state, old)
        is_over, past = False, old.past
        assert past is not None  # it was reported
        try:
            for _ in connections(old.owner):
                if await self._moved(state, old, past, ruling, begin):
                    is_over = True
                    return
            raise Refused("other connections were lost before it could be sent")
        finally:
            if not is_over and state.transactions:  # this transaction gets none any more
                if state.conn is not None:
                    await self._drop(state)
                old.is_open, old.past = True, None
                state.conn, state.closed = old, False

    async def _moved(self, state: Any, old: Held, past: Past, ruling: Ruling, begin: Any) -> bool:
        """Make one attempt. False: that connection was lost, too."""
        if state.conn is not None and state.conn.entry.ending is None:
            # if it is not replaced, we report where it was lost
            state.conn.entry.ending = Ending(None, None, None)
        await self._drop(state)
        try:
            await self.aconnect()
        except (peewee.PeeweeException, UnbrokenError) as exc:
            raise Refused(f"no other connection was available: {exc}") from exc
        new: Held = state.conn
        new.resume(old)
        if new.past is None:
            raise Refused("the application has replaced the connection")
        new.past = past
        past.moved()
        against = await run_async(objection(new.loan, ruling), new.owner.runtime.do)
        if new.entry.cause is not None:
            return False
        if against is not None:
            raise Refused(against)
        if begin is None:
            return True
        try:
            await begin(new)
        except Exception:
            if new.entry.cause is None and not new.stale():
                raise
            return False
        new.begins(old.begin_with)
        return True

    def _begins_again(self, state: Any, old: Held) -> Callable[[Held], Awaitable[None]] | None:
        """Return a function that begins the transaction of *state* on another connection; None:
        there is none.

        Raises Refused if that is not known.
        """
        if not (state.transactions or old.is_begun):
            return None
        if not old.is_begun:
            raise Refused("it was inside a block whose transaction is not open")
        if len(state.transactions) > 1:
            raise Refused("it was inside a savepoint")
        return self._begin_on(state, old)

    def _begin_on(self, state: Any, old: Held) -> Callable[[Held], Awaitable[None]]:
        raise NotImplementedError

    async def _forgets_commit(self, held: Held, exc: Exception) -> bool:
        """Return whether the failure of COMMIT with *exc* loses nothing, because only reads went
        before it.
        """
        past, owner = held.past, held.owner
        if past is None or is_replayed():
            return False
        fault = held.loan.failed(origin(exc))
        lost = lost_at(held.loan, "COMMIT", fault, 1, in_transaction=True, until=held.until)
        ruling = may_forget_commit(past, lost, serializable=False)
        if not ruling.heals or (ruling.asks and owner.may_hide_writes):
            return False
        if owner.backend == "postgresql" and (held.begin_with or await self._is_serializable()):
            return False
        held.loan.end("")
        held.entry.ending = None
        past.ended()
        held.is_open = held.is_begun = False
        note(owner, "COMMIT", held.entry.place, fault)
        return True

    async def _is_serializable(self) -> bool:
        """Return whether PostgreSQL's default for a session is, or may be, SERIALIZABLE."""
        try:
            async with self.pool.connection() as conn:
                level = await conn.fetchval("SHOW transaction_isolation")
            return bool(level == "serializable")
        except Exception:
            return True


def _lost_by(held: Held | None, exc: Exception, sql: Any) -> Fault | None:
    """Return the fault that *exc* reports, if a connection other than *held* might cure it."""
    if held is not None and held.past is not None and exc is held.unsent and not is_replayed():
        held.unsent = None
        held.tell(sql)  # it was found to be lost before anything was sent
        held.was_dead = Before.GONE
        return Fault(FaultKind.LOST, held.entry.cause, text=str(exc))
    if (
        held is None
        or held.past is None
        or held.met is None
        or not held.told
        or held.met[0] is not origin(exc)
        or isinstance(exc, UnbrokenError)
        or is_replayed()
    ):
        return None
    return curable(held.loan, held.met[1], was_dead=held.was_dead)


def undone_by_closing(held: Any, error: Exception) -> None:
    """Handle *error*, with which ROLLBACK failed.

    The connection is closed instead, so nothing is stored, and the caller of the rollback needs no
    error.
    """
    held.entry.condemn(Cause.RESET_FAILED, str(error))
    log.info(
        "rollback failed",
        f"{held.owner.name}: ROLLBACK failed, so the connection is closed: {error}",
        pool=held.owner.name,
        session=held.entry.session,
    )
