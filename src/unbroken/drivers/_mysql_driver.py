"""What all MySQL drivers inherit: the trial of their seams, and what they do with a library that is
not as they know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import isawaitable
from typing import Any

from unbroken.abc import Connection, Fault, Target
from unbroken.drivers import _base, _mysql
from unbroken.drivers._login import Logins
from unbroken.drivers._seams import PROBE, Trial

#: Sent in no transaction. Its answer says whether it was committed by itself, which its report has
#: to say, too.
_PROBE_MODE = f"{PROBE}, @@SESSION.autocommit"


def _flaw_of(
    trial: Trial, opened: bool | None, closed: bool | None, rows: list[tuple[Any, ...]]
) -> str | None:
    """What is wrong with what a driver reported of BEGIN, PROBE, COMMIT and _PROBE_MODE, and with
    what it said meanwhile.

    *opened*, *closed*: whether a transaction was open before and after COMMIT. It may be open after
    it: where ``completion_type`` is CHAIN, each COMMIT opens the next.
    """
    first: list[Any] = [("BEGIN", each[1]) for each in trial.log[:1] if isinstance(each, tuple)]
    itself = closed is False and bool(rows[0][1])
    flaw = trial.flaw(
        [*(first or ["BEGIN"]), (PROBE, False), "committing", "committed", (_PROBE_MODE, itself)]
    )
    if flaw is not None:
        return flaw
    if opened is not True or closed is None:
        return "its connection does not tell whether a transaction is open"
    return None


_UNCLEAN = "its connection does not tell that it is as it was opened"


@contextmanager
def unheard(driver: Any, conn: Connection) -> Iterator[None]:
    """A reset of a session is the pool's business: the unit of work that follows *conn* does not
    hear of it.
    """
    cls = type(conn)
    driver.unwatch(conn)
    try:
        yield
    finally:
        conn.__class__ = cls


class _Common(Logins):
    """For either kind of driver."""

    target: Target
    _base: type[BaseException]  #: the library's ``Error``

    def classify(self, exc: BaseException) -> Fault:
        """By MySQL's code, or the system's."""
        return _mysql.classify(exc, self._base, self.shown)

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """See :class:`unbroken.abc.BaseDriver`."""
        raise NotImplementedError


class Blocking(_Common, _base.Blocking):
    """For a blocking driver."""

    def commit(self, conn: Connection) -> None:
        """COMMIT, unless it is certain that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            conn.commit()

    def rollback(self, conn: Connection) -> None:
        """ROLLBACK, likewise."""
        if self.is_in_transaction(conn) is not False:
            conn.rollback()

    def probe(self, conn: Connection) -> str | None:
        """What is wrong with what our subclass reports and knows; None: nothing.

        Four round trips.
        """
        driver: Any = self
        with Trial(self, conn) as trial:
            if driver.is_in_transaction(conn):
                # the caller's own connect= began it: it must stay as it is
                driver.ask(conn, PROBE)
                return trial.flaw([(PROBE, False)])
            _send(conn, "BEGIN")
            driver.ask(conn, PROBE)
            opened = driver.is_in_transaction(conn)
            conn.commit()
            closed = driver.is_in_transaction(conn)
            rows = driver.ask(conn, _PROBE_MODE)
        driver.rollback(conn)
        is_clean = driver.is_clean(conn, driver.traits(conn))
        return _flaw_of(trial, opened, closed, rows) or (None if is_clean or closed else _UNCLEAN)

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As Python's DB-API has it. Autocommit can be asked of most libraries."""

        def restore(conn: Connection, traits: Any) -> None:
            if traits is not None:
                conn.autocommit(traits)

        return {
            **super().public_calls(),
            "traits": _autocommit_of,
            "restore": restore,
            "remember": lambda _conn: None,
        }


class Awaited(_Common, _base.Awaited):
    """For one of asyncio."""

    async def commit(self, conn: Connection) -> None:
        """As :meth:`Blocking.commit`."""
        if self.is_in_transaction(conn) is not False:
            await conn.commit()

    async def rollback(self, conn: Connection) -> None:
        """As :meth:`Blocking.rollback`."""
        if self.is_in_transaction(conn) is not False:
            await conn.rollback()

    async def probe(self, conn: Connection) -> str | None:
        """As :meth:`Blocking.probe`."""
        driver: Any = self
        with Trial(self, conn) as trial:
            if driver.is_in_transaction(conn):
                await driver.ask(conn, PROBE)
                return trial.flaw([(PROBE, False)])
            await _send_async(conn, "BEGIN")
            await driver.ask(conn, PROBE)
            opened = driver.is_in_transaction(conn)
            await conn.commit()
            closed = driver.is_in_transaction(conn)
            rows = await driver.ask(conn, _PROBE_MODE)
        await driver.rollback(conn)
        is_clean = driver.is_clean(conn, driver.traits(conn))
        return _flaw_of(trial, opened, closed, rows) or (None if is_clean or closed else _UNCLEAN)

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As Python's DB-API has it, awaited. Autocommit can be asked of most libraries."""

        async def restore(conn: Connection, traits: Any) -> None:
            if traits is not None:
                await conn.autocommit(traits)

        async def remember(_conn: Connection) -> None:
            """Sessions are closed instead of reset."""

        return {
            **super().public_calls(),
            "traits": _autocommit_of,
            "restore": restore,
            "remember": remember,
        }


def by_attribute(driver: Any) -> Mapping[str, Callable[..., Any]]:
    """For a library whose ``autocommit`` is an attribute, which cannot be read for nothing: it is
    set after each rollback.
    """

    def rollback(conn: Connection) -> None:
        conn.rollback()
        if driver._connect is None:
            conn.autocommit = driver._arguments.get("autocommit", False)

    return {"rollback": rollback}


def _autocommit_of(conn: Connection) -> bool | None:
    """By what the library documents; None where it does not, or would have to ask the server."""
    try:
        return bool(conn.get_autocommit())
    except Exception:
        return None


def _send(conn: Connection, sql: str) -> None:
    cursor = conn.cursor()
    try:
        cursor.execute(sql)
    finally:
        cursor.close()


async def _send_async(conn: Connection, sql: str) -> None:
    cursor = conn.cursor()
    if isawaitable(cursor):
        cursor = await cursor
    try:
        await cursor.execute(sql)
    finally:
        closing = cursor.close()
        if isawaitable(closing):
            await closing
