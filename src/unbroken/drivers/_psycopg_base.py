"""The common part of psycopg's blocking and async drivers."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Login, Target
from unbroken.backends.postgresql import is_fatal, postgres_fault
from unbroken.backends.system import os_fault
from unbroken.drivers import _postgresql
from unbroken.drivers import _psycopg_trips as trips
from unbroken.drivers._base import Base as _Inherited
from unbroken.drivers._psycopg_lock import TaskLock, ThreadLock
from unbroken.drivers._psycopg_seams import SEAMS
from unbroken.drivers._psycopg_texts import new_texts, texts
from unbroken.drivers._psycopg_traits import (
    Traits,
    is_as_opened,
    keep_adapters,
    noting,
    put_back,
    traits_of,
)
from unbroken.drivers._psycopg_watch import real_pgconn, watched
from unbroken.drivers._shared import (
    class_of,
    coerce,
    from_connect,
    is_lost,
    optional_boolean,
    whole,
    without_target,
)
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import BAD_OPTION

_IDLE, _IN_TRANSACTION, _IN_ERROR = 0, 2, 3  # PQtransactionStatus; 1 is active, 4 unknown


_OK = 0  # PQstatus


_IN_PROGRESS = (  # libpq's message for a connection that is out of step
    "another command is already in progress"
)


#: psycopg's message for a command of its own (BEGIN, COMMIT) that was not answered by one result.
_SEVERAL = re.compile(r"received \d+ results from command")


_FATAL = 7  # PGRES_FATAL_ERROR


_MINIMUM = 2  # the shortest connect_timeout of psycopg and libpq; _Bounded enforces shorter limits


class Base(_Inherited):
    """The common part of the blocking and the async driver."""

    name = "psycopg"
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = SEAMS
    told = staticmethod(_postgresql.told)

    def __init__(self, target: Target | None, connect: Callable[[], Any] | None = None) -> None:
        import psycopg

        self.check_seams()
        self.target = target or without_target("psycopg", "postgresql")
        self.errors: tuple[type[BaseException], ...] = (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            psycopg.Error,
        )
        self._psycopg = psycopg
        self._connect = connect
        self._arguments = _arguments(self.target)

    def fileno(self, conn: Connection) -> int | None:
        """Return the number of libpq's socket, or None once it is closed."""
        try:
            fd: int = real_pgconn(conn).socket
        except Exception:  # psycopg raises its OperationalError for a closed connection
            return None
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state from the last ReadyForQuery; None in the middle of an exchange or of a
        pipeline.
        """
        pgconn = conn.__dict__[
            "pgconn"
            # like real_pgconn; it runs at the end of every lease, where a call costs as much as all
            # of this
        ]
        # like is_out_of_pipelines
        inside = conn._pipeline is not None or conn.__dict__.get("_unbroken_inside")
        if inside or conn.lock.locked():
            return None
        if conn.__dict__.get("_unbroken_due") is not None:
            return False if pgconn.status == _OK else None
        if pgconn.pipeline_status:
            return None
        status = pgconn.transaction_status  # 4 if the connection is lost
        return (
            False if status == _IDLE else True if status in (_IN_TRANSACTION, _IN_ERROR) else None
        )

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether libpq waits for nothing, and the connection's lock is free.

        A half-read ``stream()`` holds the lock, and so does a ``notifies()`` that was left in a
        variable. A caller that asked for the lock would wait for ever.
        """
        # like real_pgconn; it runs at the end of every use of an engine
        pgconn = conn.__dict__["pgconn"]
        is_due = conn.__dict__.get("_unbroken_due") is not None
        return (
            (is_due or pgconn.transaction_status in (_IDLE, _IN_TRANSACTION, _IN_ERROR))
            and pgconn.status == _OK
            and (is_due or not pgconn.pipeline_status)
            and not conn.lock.locked()
            and conn._pipeline is None
            and not conn.__dict__.get("_unbroken_inside")  # like is_out_of_pipelines
        )

    def was_closed(self, conn: Connection) -> bool:
        """Return whether psycopg's ``close()`` ended it. psycopg notes that, unless libpq had lost
        the connection before.

        ``with conn:`` calls it.
        """
        return bool(conn.__dict__.get("_closed", False))

    def share(self, conn: Connection, shared: bool) -> str | None:
        """Turn psycopg's automatic preparing on or off. By default it prepares a statement that is
        sent for the fifth time, which is not allowed on a shared session.
        """
        conn.__dict__["_unbroken_shared"] = shared
        self._decide(conn)
        try:
            usual = self._psycopg._preparing.PrepareManager.prepare_threshold
            given = conn.__dict__.setdefault("_unbroken_threshold", conn.prepare_threshold)
            if "prepare_threshold" in self._arguments or given != usual:
                return None if given is None else f"prepare_threshold={given}"
            wanted = None if shared else given
            if conn.prepare_threshold != wanted:
                conn.prepare_threshold = wanted
        except Exception:  # another class of connection
            pass
        return None

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Set whether a statement may be sent on *conn* before the last one was answered, if its
        session is its own. This is forbidden until :meth:`try_flight` has tried it.
        """
        conn.__dict__["_unbroken_flies"] = may
        self._decide(conn)

    def _decide(self, conn: Connection) -> None:
        state = conn.__dict__
        state["_unbroken_alone"] = bool(state.get("_unbroken_flies") and self._can_fly(conn))

    def is_unread(self, conn: Connection) -> bool:
        """Return whether the answer that is due was never read, also if *conn* has ended."""
        return trips.is_due(conn) or conn.__dict__.get("_unbroken_unread", False)

    def traits(self, conn: Connection) -> Traits | None:
        """Return the transactions' modes, factories, adapters and handlers: everything that psycopg
        keeps for a connection.
        """
        try:
            if self.is_known:
                # queries since it was opened may have made psycopg create them
                keep_adapters(conn)
            return traits_of(conn)
        except Exception:  # another class of connection
            return None

    def has_traits(self, conn: Connection, traits: Any) -> bool:
        """Return whether all traits are unchanged since the connection was opened."""
        try:
            return not conn._unbroken_changed or is_as_opened(conn, traits)
        except AttributeError:  # another class of connection
            return bool(self.traits(conn) == traits)

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether libpq is idle, the lock is free and the traits are unchanged."""
        try:
            state = conn.__dict__
            return (
                (
                    state["pgconn"].transaction_status == _IDLE
                    or (state["_unbroken_due"] is not None and state["pgconn"].status == _OK)
                )
                and not conn.lock.locked()
                and (not conn._unbroken_changed or is_as_opened(conn, traits))
            )
        except Exception:  # an attribute was removed or replaced
            return False

    def _known(self, conn: Connection) -> Connection:
        """Give a connection that the caller opened a class that notes changes."""
        if self.is_known:
            conn.__class__ = noting(class_of(conn))
            keep_adapters(conn)
            if not conn.lock.locked():
                this = weakref.ref(conn)
                kind = TaskLock if self.is_async else ThreadLock
                conn.lock = kind(
                    lambda: None if (conn := this()) is None else self.fileno(conn),
                    self._out_of_step,
                )
            conn.__dict__.update(_unbroken_due=None, _unbroken_texts=new_texts())
        return conn

    def _restore(self, conn: Connection, traits: Any) -> None:
        if traits is None or not put_back(conn, traits):
            raise self._out_of_step()

    def _out_of_step(self) -> BaseException:
        return trips.out_of_step()

    def _check_free(self, conn: Connection) -> None:
        """Raise if a statement would wait for ever, or not get its own answer."""
        if self.blindness is None and real_pgconn(conn).status == _OK and not self.is_quiet(conn):
            raise self._out_of_step()

    def classify(self, exc: BaseException) -> Fault:
        """Classify an error by SQLSTATE, or by libpq's message if there is none, as for a failed
        connect.
        """
        connecting = from_connect(exc)
        if is_lost(exc):
            fault = Fault(FaultKind.LOST, Cause.CANCELLED, None, str(exc))
        elif not isinstance(exc, self._psycopg.Error):
            fault = os_fault(exc, connecting=connecting)
        elif isinstance(exc, self._psycopg.errors.ConnectionTimeout):
            fault = os_fault(TimeoutError(str(exc)), connecting=connecting)
        else:
            diag = exc.diag
            fatal = is_fatal(diag.source_file, diag.severity_nonlocalized, diag.severity)
            fault = postgres_fault(exc.sqlstate, str(exc), connecting=connecting, fatal=fatal)
            if (
                fault.kind is FaultKind.OTHER
                and isinstance(exc, self._psycopg.OperationalError)
                and exc.sqlstate is None
            ):
                pgconn = getattr(exc, "pgconn", None)
                gone = pgconn is not None and pgconn.status != _OK
                fault = (
                    replace(fault, kind=FaultKind.LOST)
                    if gone or _IN_PROGRESS in str(exc)
                    else fault
                )
            elif isinstance(exc, self._psycopg.InternalError) and _SEVERAL.match(str(exc)):
                # an error, and another one when the socket closed behind it: psycopg shows neither
                fault = replace(fault, kind=FaultKind.LOST, code=None)
        return replace(fault, text=self.shown(fault.text))

    def session_id(self, conn: Connection) -> str | None:
        """Return the backend's pid."""
        pgconn = real_pgconn(conn)
        return str(pgconn.backend_pid) if pgconn.status == _OK else None

    def watch(self, conn: Connection) -> None:
        """Report statements of cursors, and everything that the connection sends by itself."""
        conn.__class__ = watched(type(conn))

    def close(self, conn: Connection) -> None:
        """Close the connection: libpq sends Terminate without waiting, then closes."""
        try:
            conn._closed = True
            real_pgconn(conn).finish()
        except Exception:  # finished before
            pass

    def _limit(self, timeout: float) -> float:
        given: float = self._arguments.get("connect_timeout", timeout)
        return min(timeout, given)

    def _timeout_arguments(self, timeout: float, login: Login | None) -> dict[str, Any]:
        return {
            **self.aimed(login),
            "connect_timeout": max(_MINIMUM, math.ceil(self._limit(timeout))),
        }

    def _can_fly(self, conn: Connection) -> bool:
        """Return whether several commands can be sent on *conn* before an answer has come."""
        return (
            self.is_known
            and self.blindness is None
            and "_unbroken_texts" in conn.__dict__
            and conn.__dict__.get("_unbroken_shared") is False
            and "replication" not in self._arguments
            and self._psycopg.capabilities.has_pipeline()
        )

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    def want(self, conn: Connection, sql: str | None, follows: Callable[[Any], bool]) -> None:  # noqa: ARG002 - for drivers whose server goes on behind an error
        """Send *sql*, BEGIN, together with the next statement. None: nothing is sent with it."""
        conn._unbroken_wants = None if sql is None else sql.encode()

    def wants(self, conn: Connection) -> str | None:
        """Return the command that is sent with the next statement."""
        wanted: bytes | None = conn._unbroken_wants
        return None if wanted is None else wanted.decode()

    def was_unsent(self, conn: Connection) -> bool:
        """Return whether *conn* was lost before anything of the last statement was sent."""
        return getattr(conn, "_unbroken_unsent", False)

    def autocommits(self, conn: Connection) -> bool:
        """Return whether autocommit is on."""
        return bool(conn._autocommit)

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        return trips.is_due(conn)

    def texts(self, conn: Connection) -> Sequence[str | bytes | None]:
        """Return the statements sent in the open transaction. None stands for an unknown one."""
        return texts(conn)

    def _exchange(self, conn: Connection, pgconn: Any, query: bytes) -> Generator[Any, Any, Any]:
        """Send one simple query below psycopg, which would open a transaction. Returns the last
        result.
        """
        if trips.is_due(conn):
            yield from trips.take(conn)
        pgconn.send_query(query)
        results = yield from self._psycopg.generators.execute(pgconn)
        if results and results[-1].status == _FATAL:
            raise self._psycopg.errors.error_from_result(results[-1])
        return results[-1] if results else None

    def _timed_out(self) -> BaseException:
        error: BaseException = self._psycopg.errors.ConnectionTimeout(
            "the server did not answer in time"
        )
        return error

    def _is_failed(self, conn: Connection) -> bool:
        pgconn = real_pgconn(conn)
        return bool(pgconn.status == _OK and pgconn.transaction_status == _IN_ERROR)

    def _tell(self, failed: bool) -> None:
        if failed:
            raise self._psycopg.errors.InFailedSqlTransaction(_postgresql.NOT_COMMITTED)

    def _check_usable(self, conn: Connection) -> Any:
        pgconn = real_pgconn(conn)
        if pgconn.status != _OK:
            raise self._psycopg.OperationalError("the connection is closed")
        return pgconn

    def _ask_opening(self) -> bytes:
        return _postgresql.ask_opening(self._connect is None or self.sets_only).encode()

    def _opening(self, result: Any) -> str | None:
        value = result.get_value(0, 0)
        return None if value is None else value.decode()


_EXTRA: dict[str, Callable[[str], Any]] = {
    "autocommit": optional_boolean,
    "prepare_threshold": whole,
    "connect_timeout": whole,
}


def _arguments(target: Target) -> dict[str, Any]:
    out = coerce(target.options, {**dict.fromkeys(_libpq_options(), str), **_EXTRA}, "psycopg")
    if "connect_timeout" in out and out["connect_timeout"] <= 0:
        raise ConfigurationError(
            BAD_OPTION("option connect_timeout in the URL is not a number of seconds above 0")
        )
    given = {
        "host": target.unix_socket or target.host,
        "port": target.port,
        "user": target.user,
        "password": target.password,
        "dbname": target.database,
    }
    out.update({name: value for name, value in given.items() if value is not None})
    return out


@cache
def _libpq_options() -> frozenset[str]:
    """Return the options that this libpq takes in a connection string."""
    from psycopg import pq

    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults()) - {
        "user",
        "password",
        "dbname",
    }
