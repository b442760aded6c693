"""How far an asyncpg connection is, and everything that its holder left on it, reported without I/O
where possible.

The protocol's own state is hidden in C.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

from unbroken.abc import Connection
from unbroken.drivers import _postgresql
from unbroken.drivers._asyncpg_layer import Layer, closed_by_holder
from unbroken.drivers._base import Awaited
from unbroken.drivers._shared import (
    lost,
)
from unbroken.ledger.residue import NOTHING, Left


class _Refused(Exception):  # noqa: N818 - never seen outside
    pass


class _NotEncodable:
    """Arguments that no statement can have: a sequence (asyncpg checks for one) without a
    length.
    """

    __slots__ = ()

    def __len__(self) -> int:
        raise _REFUSED

    def __getitem__(self, index: int) -> Any:
        raise _REFUSED


_REFUSED = _Refused()


_PROBE = _NotEncodable()


def _late(timeout: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"the server did not answer within {timeout} s")


class Status(Awaited):
    """The part of asyncpg's driver that tracks how far a connection is, and everything left on
    it.
    """

    _asyncpg: Any
    _arguments: dict[str, Any]
    _probe_state: Any = None

    def _check_ready(self, conn: Connection) -> None:
        """Raise if nothing can be sent. asyncpg's own methods would fail for want of a protocol, or
        wait.
        """
        if conn.is_closed():
            raise self._asyncpg.InterfaceError("connection is closed")
        if not self.is_quiet(conn):
            raise lost(
                self._asyncpg.InterfaceError(
                    "the connection is out of sync: an answer was not read to its end"
                )
            )

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` or ``terminate()`` ended it, and not a loss."""
        return conn in closed_by_holder and conn.is_closed()

    def share(self, conn: Connection, shared: bool) -> str | None:
        """Configure how asyncpg prepares statements on *conn*.

        asyncpg keeps its statements by name on the session, which is not possible on a shared
        session. Statements without a name are parsed again at each execution, also those of
        ``conn.prepare()``.
        """
        try:
            if isinstance(conn._protocol, Layer):
                conn._protocol.shared = shared
                self._decide(conn)
            size = conn._config.statement_cache_size
            if size == 0:
                return None
            if "statement_cache_size" in self._arguments or size != self._usual_cache():
                return f"statement_cache_size={size}"
            if conn._stmt_cache_enabled == shared:
                conn._stmt_cache_enabled = not shared
                conn._stmt_cache.clear()
        except Exception:  # closed, or of another class
            pass
        return None

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Set whether a statement may be sent on *conn* before the last one was answered, if its
        session is its own. This is forbidden until :meth:`try_flight` has tried it.
        """
        if isinstance(getattr(conn, "_protocol", None), Layer):
            conn._protocol.flies = may
            self._decide(conn)

    def _decide(self, conn: Connection) -> None:
        layer = conn._protocol
        layer.alone = layer.flies and self._can_fly(conn)

    def _can_fly(self, conn: Connection) -> bool:
        """Return whether several commands can be sent on *conn* before an answer has come."""
        layer = getattr(conn, "_protocol", None)
        if not (self.is_known and self.blindness is None and isinstance(layer, Layer)):
            return False
        is_plain = "replication" not in (conn._params.server_settings or ())
        return is_plain and not layer.shared

    async def try_flight(self, conn: Connection, timeout: float) -> bool | None:
        """Send three statements in one flight, and return whether each got its own answer. None:
        that cannot be tried on *conn*. Nothing is open afterwards, unless the answer is False.

        Raises the error of a lost connection, also if even the first statement was not answered
        within *timeout* seconds.
        """
        if not self._can_fly(conn):
            return None
        self._check_ready(conn)
        try:
            went_well: bool = await conn._protocol.try_ahead(timeout)
        except TimeoutError as error:
            raise _late(timeout) from error
        return went_well

    def is_unread(self, conn: Connection) -> bool:
        """Return whether the answer that is due was never read, also if *conn* has ended."""
        return self.owes_answer(conn)

    def _usual_cache(self) -> int:
        usual: int = signature(self._asyncpg.connect).parameters["statement_cache_size"].default
        return usual

    def left_on(self, conn: Connection) -> frozenset[Left]:
        """Return the leftovers that the layer found when it examined each statement."""
        layer = conn._protocol
        return layer.residue if isinstance(layer, Layer) else NOTHING

    def traits(self, conn: Connection) -> Any:
        """Return the listeners of every kind, whether something may be left on the session, and the
        codecs that were set.
        """
        try:
            listeners, layer = (
                {channel: set(callbacks) for channel, callbacks in conn._listeners.items()},
                conn._protocol,
            )
            return (
                listeners, set(conn._log_listeners), set(conn._query_loggers),
                set(conn._termination_listeners), layer.residue, frozenset(layer.changed_codecs),
                layer.unsynced,
            )  # fmt: skip
        except Exception:  # another class of connection
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether every answer was read, nothing is open, and nothing was left on the
        session or the connection.
        """
        try:
            layer = conn._protocol
            if (
                layer.residue
                or layer.changed_codecs
                or layer.is_in_transaction()
                or not self.has_traits(conn, traits)
            ):
                return False
            # a COMMIT written as text may have ended it, which asyncpg's own nesting does not
            # notice
            conn._top_xact = None
        except Exception:  # closed, or of another class
            return False
        return True

    def has_traits(self, conn: Connection, traits: Any) -> bool:
        """Return whether nothing but an open transaction was left on *conn* since *traits* were
        seen.
        """
        try:
            layer = conn._protocol
            listeners, log_listeners, query_loggers, termination_listeners, residue, codecs, _ = (
                traits
            )
            return not (
                layer.unsynced
                or layer.forgot
                or conn._stmt_exclusive_section._acquired
                or layer.residue != residue
                or layer.changed_codecs != codecs
                or not layer.is_connected()
                or layer.broken
                or conn._listeners != listeners
                or conn._log_listeners != log_listeners
                or conn._query_loggers != query_loggers
                or conn._termination_listeners != termination_listeners
                or layer.is_torn
                or (layer.may_be_busy and not self.is_quiet(conn))
            )
        except Exception:  # closed, or of another class
            return False

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Reset the connection as asyncpg's own pool does, but send only the parts that are due:
        one round trip for the session, one for each codec that was set.

        Raises InterfaceError if the caller's own ``connect=`` may have changed the session before.
        Its settings cannot be told apart from those of the holder.
        """
        self._check_ready(conn)
        layer = conn._protocol
        if (
            traits is None
            or self.is_in_transaction(conn) is not False
            or (not layer.was_new and (layer.residue or layer.changed_codecs))
        ):
            raise self._asyncpg.InterfaceError("the connection's opening state cannot be restored")
        listeners, log_listeners, query_loggers, termination_listeners, *_ = traits
        conn._listeners.clear()
        conn._listeners.update(
            {channel: set(callbacks) for channel, callbacks in listeners.items()}
        )
        for found, wanted in (
            (conn._log_listeners, log_listeners), (conn._query_loggers, query_loggers),
            (conn._termination_listeners, termination_listeners),
        ):  # fmt: skip
            found.clear()
            found.update(wanted)
        if Left.ENDLESS in layer.residue:
            raise self._asyncpg.InterfaceError("no reset undoes all changes to the session")
        if layer.residue or layer.unsynced:
            await layer.unreported(
                _postgresql.reset_of(layer.residue) if layer.residue else "SELECT 1"
            )
            layer.residue = NOTHING
        if layer.forgot:
            conn._stmt_cache.clear()
            layer.forgot = False
        watched, layer.watched = layer.watched, False
        try:
            for typename, schema in list(layer.changed_codecs):
                await conn.reset_type_codec(typename, schema=schema)
                layer.changed_codecs.discard((typename, schema))
        finally:
            layer.watched = watched

    def holds(self, conn: Connection) -> bool:
        """Return whether a statement was prepared and not executed. The server then waits for the
        rest of it, and keeps its locks.
        """
        layer = conn._protocol
        return isinstance(layer, Layer) and layer.unsynced

    async def let_go(self, conn: Connection) -> None:
        """Make the server end that. One round trip."""
        await conn._protocol.unreported("SELECT 1")

    async def remember(self, conn: Connection) -> Any:
        """Return nothing, because opening the connection sets nothing.

        Settings of the caller's own ``connect=`` are not known; :meth:`restore` handles that case.
        """
        layer = conn._protocol
        return "" if isinstance(layer, Layer) and layer.was_new else None

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:  # noqa: ARG002
        """Reset the session in one round trip."""
        conn._protocol.residue |= frozenset(left)
        await conn._protocol.unreported(_postgresql.reset_of(left))
        conn._protocol.residue = NOTHING

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    async def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        outer = conn._top_xact
        conn._protocol.leave(sql)
        conn._top_xact = None
        if outer is not None:  # the application may have kept it
            states = self._asyncpg.transaction.TransactionState
            outer._state = states.COMMITTED if sql == "COMMIT" else states.ROLLEDBACK

    async def take_answer(self, conn: Connection, timeout: float) -> None:
        """Wait until the answer has come."""
        layer = conn._protocol
        if conn.is_closed() or layer is None:
            raise self._asyncpg.InterfaceError("connection is closed")
        try:
            async with asyncio.timeout(timeout):
                await layer.take()
        except TimeoutError as error:
            raise _late(timeout) from error

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        layer = conn._protocol
        return isinstance(layer, Layer) and layer.owes_answer()

    def may_leave(self, conn: Connection) -> bool:
        """Return whether a transaction is open that the server knows of."""
        layer = conn._protocol
        return isinstance(layer, Layer) and layer.may_leave()

    def was_unsent(self, conn: Connection) -> bool:
        """Return whether *conn* was lost while a BEGIN was sent alone."""
        layer = getattr(conn, "_protocol", None)
        return isinstance(layer, Layer) and layer.was_unsent

    def texts(self, conn: Connection) -> Sequence[str | None]:
        """Return the statements sent in the open transaction. None stands for an unknown one."""
        texts: Sequence[str | None] = conn._protocol.texts()
        return texts

    @contextmanager
    def leaving(self, conn: Connection) -> Iterator[None]:
        """Within this context, a COMMIT or ROLLBACK of asyncpg's own transaction object is sent
        like :meth:`send_end` does it. This serves a framework whose own records must include it.
        """
        layer = conn._protocol
        layer.leaves = True
        try:
            yield
        finally:
            layer.leaves = False

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state from the last ReadyForQuery; None in the middle of an exchange."""
        if not self.is_quiet(conn):
            return None
        is_open: bool = conn._protocol.is_in_transaction()
        if not is_open:
            # a COMMIT written as text may have ended it, which asyncpg's own nesting does not
            # notice
            conn._top_xact = None
        return is_open

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether asyncpg would accept a new command now."""
        try:
            layer = conn._protocol
            if (
                conn.is_closed()
                or layer._is_cancelling()
                or layer.is_torn
                or conn._stmt_exclusive_section._acquired
            ):
                return False
            if not layer.may_be_busy:
                return True
            if layer.may_have_ended:
                return False
            if not self._accepts(layer.real):
                return False
            layer.may_be_busy = False
        except Exception:  # closed meanwhile, or of another class
            return False
        return True

    def _accepts(self, protocol: Any) -> bool:
        # The protocol's state is hidden in C. Every command checks it first, before the arguments
        # are encoded. So a command whose arguments cannot be encoded reveals the state and sends
        # nothing. 1 µs.
        if self._probe_state is None:
            from asyncpg.protocol.protocol import PreparedStatementState

            self._probe_state = PreparedStatementState(
                "", "", protocol, self._asyncpg.Record, False
            )
        attempt = protocol.bind_execute(self._probe_state, _PROBE, "", 0, False, None)
        try:
            attempt.send(None)
        except _Refused as refused:
            refused.__traceback__ = refused.__context__ = (
                None  # one object serves all calls: keep no frames alive
            )
            return True
        except Exception:
            return False
        finally:
            attempt.close()
        return False
