"""What every driver inherits: cautious answers to questions that its file does not answer
itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from inspect import isawaitable
from typing import Any

from unbroken.abc import Connection, Fault
from unbroken.drivers import _seams
from unbroken.drivers._login import Logins
from unbroken.drivers._seams import Seam
from unbroken.ledger.residue import NOTHING, Left


class Base(Logins):
    """The answers that blocking and asyncio drivers share.

    A driver's file overrides what it knows better.
    """

    #: Why the statements of this driver's connections cannot be followed; None: they can.
    blindness: str | None = None
    #: Whether its connections belong to an event loop.
    is_async: bool = False
    #: What the driver relies on in its library; see _seams.py.
    seams: tuple[Seam, ...] = ()
    #: Whether the library has all seams. False: the driver uses only what is public.
    is_known: bool = True

    def traits(self, conn: Connection) -> Any:  # noqa: ARG002
        """Nothing is known of what a holder can change."""
        return None

    #: For a caller's own ``connect=``: whether it changes nothing but the session's settings. None:
    #: not known.
    sets_only: bool | None = None

    def share(self, conn: Connection, shared: bool) -> str | None:  # noqa: ARG002
        """From now on the library must leave nothing on the session behind *conn* by itself, such
        as a prepared statement: a pooler may give the next transaction another one. Or it may
        again, as it was set (*shared* false). Here: it leaves nothing anyway.

        Gives the setting of the application's, as text, that still has it do so. No I/O. Never
        raises.
        """
        return None

    def told(self, conn: Connection) -> Fault | None:  # noqa: ARG002
        """What the server's last word before the end of *conn* means, where the library raises no
        more than the loss. None: nothing better is known. Never raises.
        """
        return None

    def left_on(self, conn: Connection) -> frozenset[Left]:  # noqa: ARG002
        """What the driver itself saw a holder leave on the session. Here: it does not look."""
        return NOTHING

    def was_closed(self, conn: Connection) -> bool:  # noqa: ARG002
        """Not known: a closed connection counts as lost."""
        return False

    def has_ended(self, conn: Connection) -> bool:  # noqa: ARG002
        """Not known beyond what the socket shows."""
        return False

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Quiet, in no transaction, and as it was opened."""
        driver: Any = self
        return (
            driver.is_in_transaction(conn) is False
            and driver.is_quiet(conn)
            and self.traits(conn) == traits
        )

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was before a driver's ``watch`` changed it."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))

    # -- the proof ---------------------------------------------------------------------------------

    def check_seams(self) -> None:
        """Compare the installed library with the one that the driver's file knows.

        Called first in each constructor.
        """
        module = sys.modules[type(self).__module__]
        flaw = _seams.flaw(self.seams)
        if flaw is not None:
            self.is_known = False
            self.go_blind(flaw)
            return
        reason = _seams.untested(module.MODULE, module.DISTRIBUTION, module.TESTED)
        if reason is not None:
            self._tell_blind(reason)

    def needs_trial(self, conn: Connection) -> bool:
        """Whether connections like *conn* still have to prove that their statements are seen, by
        ``probe``. Once per process.
        """
        if not self.is_known or not hasattr(self, "probe"):
            return False
        tried, flaw = _seams.verdict(self, conn)
        if flaw is not None:
            self.go_blind(flaw)
        return not tried

    def tried(self, conn: Connection, flaw: str | None, *, final: bool = True) -> None:
        """A trial on *conn* has ended: with *flaw*, or well.

        Unless *final*, the next connection is tried again.
        """
        if final:
            _seams.remember(self, conn, flaw)
        if flaw is not None:
            self.go_blind(flaw)
        elif _seams.trust(self):  # an earlier trial could not be carried out
            self.blindness = None
            self.check_seams()

    def go_blind(self, reason: str) -> None:
        """From now on nothing that the driver notes about its connections counts, because of
        *reason*.
        """
        _seams.distrust(self, self.public_calls())
        self._tell_blind(reason)

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Methods in place of the driver's own that need nothing but what its library documents."""
        return {}

    def _tell_blind(self, reason: str) -> None:
        module = sys.modules[type(self).__module__]
        self.blindness = f"{module.NAME} cannot be followed: {reason}"
        _seams.warn(self, module, reason)


def _plain(row: Any) -> tuple[Any, ...]:
    """A row in the order of its columns, whatever kind of cursor gave it."""
    return tuple(row.values() if isinstance(row, Mapping) else row)


def _cannot_ask(_conn: Connection) -> Any:
    raise NotImplementedError("the idle limit is learned: this version of the driver is not known")


class Blocking(Base):
    """For a :class:`unbroken.abc.Driver`."""

    is_async = False

    def adopt(self, conn: Connection) -> Connection:
        """*conn*, which was opened elsewhere, as this driver can look after it. Here: as it is."""
        return conn

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As Python's DB-API has it."""

        def ping(conn: Connection, _timeout: float) -> None:
            cursor = conn.cursor()
            cursor.execute("SELECT 1")
            cursor.fetchall()
            cursor.close()
            conn.rollback()

        return {
            "ping": ping,
            "commit": lambda conn: conn.commit(),
            "rollback": lambda conn: conn.rollback(),
            "idle_limit": _cannot_ask,
            "ask": lambda conn, sql: Blocking.ask(self, conn, sql),
        }

    def restore(self, conn: Connection, traits: Any) -> None:
        """Nothing to put back."""

    def remember(self, conn: Connection) -> Any:
        """This driver knows no reset: a session with something left on it is closed."""

    def reset_session(self, conn: Connection, opening: Any, left: Collection[Left]) -> None:
        """Never called, for want of an *opening*."""
        raise NotImplementedError

    def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """The rows of *sql*, which asks the server something. May leave a transaction open."""
        cursor = conn.cursor()
        try:
            cursor.execute(sql)
            return [_plain(row) for row in cursor.fetchall()]
        finally:
            cursor.close()


class Awaited(Base):
    """For an :class:`unbroken.abc.AsyncDriver`."""

    is_async = True

    async def adopt(self, conn: Connection) -> Connection:
        """*conn*, which was opened elsewhere, as this driver can look after it. Here: as it is."""
        return conn

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As Python's DB-API has it, awaited."""

        async def ping(conn: Connection, _timeout: float) -> None:
            cursor = conn.cursor()
            if isawaitable(cursor):
                cursor = await cursor
            await cursor.execute("SELECT 1")
            await cursor.fetchall()
            await cursor.close()
            await conn.rollback()

        async def idle_limit(conn: Connection) -> float | None:
            return _cannot_ask(conn)  # type: ignore[no-any-return]

        return {
            "ping": ping,
            "commit": lambda conn: conn.commit(),
            "rollback": lambda conn: conn.rollback(),
            "idle_limit": idle_limit,
            "ask": lambda conn, sql: Awaited.ask(self, conn, sql),
        }

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Nothing to put back."""

    async def remember(self, conn: Connection) -> Any:
        """This driver knows no reset: a session with something left on it is closed."""

    async def reset_session(self, conn: Connection, opening: Any, left: Collection[Left]) -> None:
        """Never called, for want of an *opening*."""
        raise NotImplementedError

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """The rows of *sql*, which asks the server something. May leave a transaction open."""
        cursor = conn.cursor()
        if isawaitable(cursor):
            cursor = await cursor
        try:
            await cursor.execute(sql)
            return [_plain(row) for row in await cursor.fetchall()]
        finally:
            closing = cursor.close()
            if isawaitable(closing):
                await closing
