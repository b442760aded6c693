"""The base classes of all MySQL drivers: the trial of their seams, and the fallback for a library
that differs from the known one.
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

#: Sent in no transaction. Its answer tells whether it was committed by itself, which its report
#: must state, too.
_PROBE_MODE = f"{PROBE}, @@SESSION.autocommit"


def _flaw_of(
    trial: Trial, opened: bool | None, closed: bool | None, rows: list[tuple[Any, ...]]
) -> str | None:
    """Return the flaw in a driver's reports of BEGIN, PROBE, COMMIT and _PROBE_MODE, and in its
    answers meanwhile. None: there is none.

    *opened*, *closed*: whether a transaction was open before and after COMMIT. It may be open after
    it: if ``completion_type`` is CHAIN, each COMMIT opens the next.
    """
    first: list[Any] = [("BEGIN", each[1]) for each in trial.log[:1] if isinstance(each, tuple)]
    itself = closed is False and bool(rows[0][1])
    flaw = trial.flaw(
        [*(first or ["BEGIN"]), (PROBE, False), "committing", "committed", (_PROBE_MODE, itself)]
    )
    if flaw is not None:
        return flaw
    if opened is not True or closed is None:
        return "its connection does not report whether a transaction is open"
    return None


_UNCLEAN = "its connection does not report whether it is in its opening state"


@contextmanager
def unheard(driver: Any, conn: Connection) -> Iterator[None]:
    """Hide a reset of a session from the unit of work that follows *conn*, because the reset is the
    pool's own.
    """
    cls = type(conn)
    driver.unwatch(conn)
    try:
        yield
    finally:
        conn.__class__ = cls


class _Common(Logins):
    """The part for both kinds of driver."""

    target: Target
    _base: type[BaseException]  #: the library's ``Error``

    def classify(self, exc: BaseException) -> Fault:
        """Classify an error by MySQL's code, or the system's."""
        return _mysql.classify(exc, self._base, self.shown)

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return whether a transaction is open on *conn*; None if that is not known."""
        raise NotImplementedError


class Blocking(_Common, _base.Blocking):
    """The base of a blocking driver."""

    def commit(self, conn: Connection) -> None:
        """Send COMMIT, unless it is certain that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            conn.commit()

    def rollback(self, conn: Connection) -> None:
        """Send ROLLBACK, unless it is certain that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            conn.rollback()

    def probe(self, conn: Connection) -> str | None:
        """Return the flaw in the reports and the knowledge of our subclass; None: there is none.

        Four round trips.
        """
        driver: Any = self
        with Trial(self, conn) as trial:
            if driver.is_in_transaction(conn):
                # the caller's own connect= began it, so it must stay open
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
        """Return the calls of Python's DB-API. Most libraries can also report autocommit."""

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
    """The base of an asyncio driver."""

    async def commit(self, conn: Connection) -> None:
        """Do the same as :meth:`Blocking.commit`."""
        if self.is_in_transaction(conn) is not False:
            await conn.commit()

    async def rollback(self, conn: Connection) -> None:
        """Do the same as :meth:`Blocking.rollback`."""
        if self.is_in_transaction(conn) is not False:
            await conn.rollback()

    async def probe(self, conn: Connection) -> str | None:
        """Do the same as :meth:`Blocking.probe`."""
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
        """Return the calls of Python's DB-API, awaited. Most libraries can also report
        autocommit.
        """

        async def restore(conn: Connection, traits: Any) -> None:
            if traits is not None:
                await conn.autocommit(traits)

        async def remember(_conn: Connection) -> None:
            """Return None: sessions are closed instead of reset."""

        return {
            **super().public_calls(),
            "traits": _autocommit_of,
            "restore": restore,
            "remember": remember,
        }


def by_attribute(driver: Any) -> Mapping[str, Callable[..., Any]]:
    """Return the calls for a library whose ``autocommit`` is an attribute. Reading it costs a round
    trip, so it is set after each rollback.
    """

    def rollback(conn: Connection) -> None:
        conn.rollback()
        if driver._connect is None:
            conn.autocommit = driver._arguments.get("autocommit", False)

    return {"rollback": rollback}


def _autocommit_of(conn: Connection) -> bool | None:
    """Return autocommit as the library documents it. None if it does not, or would have to ask the
    server.
    """
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
