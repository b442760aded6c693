"""How far an asyncpg connection is, and what its holder left on it: it may say so without I/O.

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
    """Arguments that no statement can have: a sequence (asyncpg looks) without a length."""

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
    """The part of asyncpg's driver that knows how far a connection is, and what was left on it."""

    _asyncpg: Any
    _arguments: dict[str, Any]
    _probe_state: Any = None

    def _check_ready(self, conn: Connection) -> None:
        """Raise where nothing can be sent: asyncpg's own methods would fail for want of a protocol,
        or wait.
        """
        if conn.is_closed():
            raise self._asyncpg.InterfaceError("connection is closed")
        if not self.is_quiet(conn):
            raise lost(
                self._asyncpg.InterfaceError(
                    "the connection is out of step: an answer was not read to its end"
                )
            )

    def was_closed(self, conn: Connection) -> bool:
        """Whether ``close()`` or ``terminate()`` ended it, and not a loss."""
        return conn in closed_by_holder and conn.is_closed()

    def share(self, conn: Connection, shared: bool) -> str | None:
        """asyncpg keeps its statements by name on the session: not on a shared one. Statements
        without a name are parsed again at each execution, also those of ``conn.prepare()``.
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
        except Exception:  # closed, or of another make
            pass
        return None

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Whether a statement may be sent on *conn* before the last one was answered, where its
        session is its own. It may not, until that was tried (:meth:`try_flight`).
        """
        if isinstance(getattr(conn, "_protocol", None), Layer):
            conn._protocol.flies = may
            self._decide(conn)

    def _decide(self, conn: Connection) -> None:
        layer = conn._protocol
        layer.alone = layer.flies and self._can_fly(conn)

    def _can_fly(self, conn: Connection) -> bool:
        """Whether several commands can be sent on *conn* before an answer has come."""
        layer = getattr(conn, "_protocol", None)
        if not (self.is_known and self.blindness is None and isinstance(layer, Layer)):
            return False
        is_plain = "replication" not in (conn._params.server_settings or ())
        return is_plain and not layer.shared

    async def try_flight(self, conn: Connection, timeout: float) -> bool | None:
        """Send three statements in one flight: whether each got its own answer. None: that cannot
        be tried on *conn*. Nothing is open afterwards, unless the answer is False.

        Raises what a lost connection raises, also where not even the first was answered within
        *timeout* seconds.
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
        """Whether the answer that is due was never read, also where *conn* has ended."""
        return self.owes_answer(conn)

    def _usual_cache(self) -> int:
        usual: int = signature(self._asyncpg.connect).parameters["statement_cache_size"].default
        return usual

    def left_on(self, conn: Connection) -> frozenset[Left]:
        """Our layer judges each statement."""
        layer = conn._protocol
        return layer.residue if isinstance(layer, Layer) else NOTHING

    def traits(self, conn: Connection) -> Any:
        """Listeners of every kind, whether something may be left on the session, and codecs that
        were set.
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
        except Exception:  # another make of connection
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Every answer was read, nothing is open, and nothing was left on the session or the
        connection.
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
            # ended by a COMMIT written as text, perhaps: asyncpg's own nesting would not know
            conn._top_xact = None
        except Exception:  # closed, or of another make
            return False
        return True

    def has_traits(self, conn: Connection, traits: Any) -> bool:
        """Whether nothing was left on *conn* since *traits* were seen, but an open transaction."""
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
        except Exception:  # closed, or of another make
            return False

    async def restore(self, conn: Connection, traits: Any) -> None:
        """As asyncpg's own pool does, but only what is due: one round trip for the session, one for
        each codec that was set.

        Raises InterfaceError where the caller's own ``connect=`` may have changed the session
        before: what it set cannot be told from what the holder set.
        """
        self._check_ready(conn)
        layer = conn._protocol
        if (
            traits is None
            or self.is_in_transaction(conn) is not False
            or (not layer.was_new and (layer.residue or layer.changed_codecs))
        ):
            raise self._asyncpg.InterfaceError("the connection cannot be put back to what it was")
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
            raise self._asyncpg.InterfaceError("no reset undoes what was left on the session")
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
        """Whether a statement was prepared and not executed: the server waits for the rest of it,
        and keeps its locks.
        """
        layer = conn._protocol
        return isinstance(layer, Layer) and layer.unsynced

    async def let_go(self, conn: Connection) -> None:
        """Have the server end that. One round trip."""
        await conn._protocol.unreported("SELECT 1")

    async def remember(self, conn: Connection) -> Any:
        """Nothing is set when it is opened.

        What the caller's own ``connect=`` set is not known: see :meth:`restore`.
        """
        layer = conn._protocol
        return "" if isinstance(layer, Layer) and layer.was_new else None

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:  # noqa: ARG002
        """One round trip."""
        conn._protocol.residue |= frozenset(left)
        await conn._protocol.unreported(_postgresql.reset_of(left))
        conn._protocol.residue = NOTHING

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    async def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK: :meth:`take_answer` reads the answer."""
        outer = conn._top_xact
        conn._protocol.leave(sql)
        conn._top_xact = None
        if outer is not None:  # the application may have kept it
            states = self._asyncpg.transaction.TransactionState
            outer._state = states.COMMITTED if sql == "COMMIT" else states.ROLLEDBACK

    async def take_answer(self, conn: Connection, timeout: float) -> None:
        """Wait until it has come."""
        layer = conn._protocol
        if conn.is_closed() or layer is None:
            raise self._asyncpg.InterfaceError("connection is closed")
        try:
            async with asyncio.timeout(timeout):
                await layer.take()
        except TimeoutError as error:
            raise _late(timeout) from error

    def owes_answer(self, conn: Connection) -> bool:
        """Whether that answer was not read yet."""
        layer = conn._protocol
        return isinstance(layer, Layer) and layer.owes_answer()

    def may_leave(self, conn: Connection) -> bool:
        """Whether a transaction is open of which the server knows."""
        layer = conn._protocol
        return isinstance(layer, Layer) and layer.may_leave()

    def was_unsent(self, conn: Connection) -> bool:
        """Whether *conn* was lost at a BEGIN that went alone."""
        layer = getattr(conn, "_protocol", None)
        return isinstance(layer, Layer) and layer.was_unsent

    def texts(self, conn: Connection) -> Sequence[str | None]:
        """What was sent in the transaction that is open; None stands for what is not known."""
        texts: Sequence[str | None] = conn._protocol.texts()
        return texts

    @contextmanager
    def leaving(self, conn: Connection) -> Iterator[None]:
        """Within it, a COMMIT or ROLLBACK of asyncpg's own transaction object is sent as by
        :meth:`send_end`: for a framework whose own books must know of it.
        """
        layer = conn._protocol
        layer.leaves = True
        try:
            yield
        finally:
            layer.leaves = False

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last ReadyForQuery; None in the middle of an exchange."""
        if not self.is_quiet(conn):
            return None
        is_open: bool = conn._protocol.is_in_transaction()
        if not is_open:
            # ended by a COMMIT written as text, perhaps: asyncpg's own nesting would not know
            conn._top_xact = None
        return is_open

    def is_quiet(self, conn: Connection) -> bool:
        """Whether asyncpg would accept a new command now."""
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
        except Exception:  # closed meanwhile, or of another make
            return False
        return True

    def _accepts(self, protocol: Any) -> bool:
        # The protocol's state is hidden in C. It is checked first thing by every command, before
        # the arguments are: a command whose arguments cannot be encoded tells it, and sends
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
                None  # it is one object for all: keep no frames alive
            )
            return True
        except Exception:
            return False
        finally:
            attempt.close()
        return False
