"""The base class of every driver: cautious answers to questions that its file does not answer
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

    A driver's file overrides those that it knows better.
    """

    #: The reason why the statements of this driver's connections cannot be followed; None: they
    #: can.
    blindness: str | None = None
    #: Whether its connections belong to an event loop.
    is_async: bool = False
    #: The internals of its library that the driver relies on; see _seams.py.
    seams: tuple[Seam, ...] = ()
    #: Whether the library has all seams. False: the driver uses only the public API.
    is_known: bool = True

    def traits(self, conn: Connection) -> Any:  # noqa: ARG002
        """Return nothing: this driver does not know what a holder can change."""
        return None

    #: For a caller's own ``connect=``: whether it changes only the session's settings. None: not
    #: known.
    sets_only: bool | None = None

    def share(self, conn: Connection, shared: bool) -> str | None:  # noqa: ARG002
        """Tell the library whether the session behind *conn* is shared.

        While *shared*, the library must leave nothing on it by itself, such as a prepared
        statement: a pooler may give the next transaction another session. If *shared* is false, the
        library works as it was configured. This base class has nothing to do, because it leaves
        nothing.

        Returns the application's setting, as text, that still makes the library leave something. No
        I/O. Never raises.
        """
        return None

    def told(self, conn: Connection) -> Fault | None:  # noqa: ARG002
        """Return the fault that the server's last message before the end of *conn* reports, for a
        library that raises only the loss. None: nothing better is known. Never raises.
        """
        return None

    def left_on(self, conn: Connection) -> frozenset[Left]:  # noqa: ARG002
        """Return what the driver itself saw a holder leave on the session. This base class does not
        look.
        """
        return NOTHING

    def was_closed(self, conn: Connection) -> bool:  # noqa: ARG002
        """Return False, because it is not known: a closed connection counts as lost."""
        return False

    def has_ended(self, conn: Connection) -> bool:  # noqa: ARG002
        """Return False: nothing is known beyond the state of the socket."""
        return False

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether *conn* is quiet, in no transaction, and as it was opened."""
        driver: Any = self
        return (
            driver.is_in_transaction(conn) is False
            and driver.is_quiet(conn)
            and self.traits(conn) == traits
        )

    def unwatch(self, conn: Connection) -> None:
        """Restore the class that *conn* had before a driver's ``watch`` changed it."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))

    # -- the proof ---------------------------------------------------------------------------------

    def check_seams(self) -> None:
        """Compare the installed library with the one that the driver's file knows.

        Each constructor calls it first.
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
        """Return whether connections like *conn* still have to prove, by ``probe``, that their
        statements are seen. Once per process.
        """
        if not self.is_known or not hasattr(self, "probe"):
            return False
        tried, flaw = _seams.verdict(self, conn)
        if flaw is not None:
            self.go_blind(flaw)
        return not tried

    def tried(self, conn: Connection, flaw: str | None, *, final: bool = True) -> None:
        """Record that a trial on *conn* has ended: with *flaw*, or well.

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
        """Ignore, because of *reason*, everything that the driver notes about its connections from
        now on.
        """
        _seams.distrust(self, self.public_calls())
        self._tell_blind(reason)

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return methods that replace the driver's own and need only what the library documents."""
        return {}

    def _tell_blind(self, reason: str) -> None:
        module = sys.modules[type(self).__module__]
        self.blindness = f"unbroken cannot follow the driver {module.NAME}: {reason}"
        _seams.warn(self, module, reason)


def _plain(row: Any) -> tuple[Any, ...]:
    """Return a row in the order of its columns, for any kind of cursor."""
    return tuple(row.values() if isinstance(row, Mapping) else row)


def _cannot_ask(_conn: Connection) -> Any:
    raise NotImplementedError(
        "the idle limit is learned, because this version of the driver is unknown"
    )


class Blocking(Base):
    """The base of a :class:`unbroken.abc.Driver`."""

    is_async = False

    def adopt(self, conn: Connection) -> Connection:
        """Return *conn*, which was opened elsewhere, in the form that this driver can manage. Here:
        unchanged.
        """
        return conn

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return the calls of Python's DB-API."""

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
        """Do nothing: there is nothing to restore."""

    def remember(self, conn: Connection) -> Any:
        """Return None: this driver knows no reset, so a session with leftovers is closed."""

    def reset_session(self, conn: Connection, opening: Any, left: Collection[Left]) -> None:
        """Do nothing: it is never called, because there is no *opening*."""
        raise NotImplementedError

    def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*, a query for the server. May leave a transaction open."""
        cursor = conn.cursor()
        try:
            cursor.execute(sql)
            return [_plain(row) for row in cursor.fetchall()]
        finally:
            cursor.close()


class Awaited(Base):
    """The base of an :class:`unbroken.abc.AsyncDriver`."""

    is_async = True

    async def adopt(self, conn: Connection) -> Connection:
        """Return *conn*, which was opened elsewhere, in the form that this driver can manage. Here:
        unchanged.
        """
        return conn

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return the calls of Python's DB-API, awaited."""

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
        """Do nothing: there is nothing to restore."""

    async def remember(self, conn: Connection) -> Any:
        """Return None: this driver knows no reset, so a session with leftovers is closed."""

    async def reset_session(self, conn: Connection, opening: Any, left: Collection[Left]) -> None:
        """Do nothing: it is never called, because there is no *opening*."""
        raise NotImplementedError

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*, a query for the server. May leave a transaction open."""
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
