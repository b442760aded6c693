"""mysqlclient (MySQLdb): the C client library. It exposes its socket, but not the server's status,
so that is deduced.

It has no timeout per call: a ping is bounded only by the pool's ``shutdown()`` on its descriptor
(or a user's own ``read_timeout``). Its connect timeout is whole seconds: others are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from unbroken.abc import Capabilities, Connection, Login, Target
from unbroken.drivers import _mysql, _mysql_reset
from unbroken.drivers._login import target_of
from unbroken.drivers._mysql_ahead import Ahead
from unbroken.drivers._mysql_driver import Blocking, unheard
from unbroken.drivers._mysqlclient_connection import (
    IN_CALL,
    SENDS,
    deduced,
    pipelines,
    texts_of,
    watched,
)
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import (
    boolean,
    class_of,
    dial,
    seconds,
    without_target,
)
from unbroken.ledger.residue import Left

NAME = "mysqlclient"
SCHEMES = ("mysql+mysqldb", "mariadb+mysqldb")
DISTRIBUTION = "mysqlclient"
MODULE = "MySQLdb"
TESTED = ">=2.3,<2.4"
RANK = 10

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON, **_mysql.TLS, "read_timeout": seconds, "write_timeout": seconds,
    "compress": boolean, "collation": str, "auth_plugin": str, "ssl_mode": str,
    "multi_statements": boolean, "binary_prefix": boolean, "server_public_key_path": str,
    "local_infile_dir": str,
}  # fmt: skip
#: The attributes that MySQLdb keeps on a connection, and a holder can change: tables of converters,
#: and all others.
_TABLES = ("converter", "encoders")
_TRAITS = (*_TABLES, "cursorclass", "encoding")
_WHOLE_SECONDS = ("read_timeout", "write_timeout")

# completion_type=CHAIN makes a COMMIT open the next transaction immediately. Only a query shows it.
_ASK = "SELECT @@SESSION.wait_timeout, @@SESSION.completion_type"
_ASK_COMPLETION = "SELECT @@SESSION.completion_type"

_CONNECTION = "MySQLdb.connections:Connection"
_SEAMS = (  # mostly written in C
    *(
        Seam(_CONNECTION, name)
        for name in (
            "store_result",
            "use_result",
            "next_result",
            "more_results",
            "field_count",
            "read_query_result",
        )
    ),
    *(
        Seam(_CONNECTION, name)
        for name in ("get_autocommit", "commit", "rollback", "close", "ping", "fileno", "thread_id")
    ),
    *(Seam(_CONNECTION, name) for name in ("character_set_name", "converter")),
    *(Seam(_CONNECTION, name) for name in SENDS),
    Seam(_CONNECTION, "__init__", None, ("cursorclass", "encoders", "encoding", "converter")),
    Seam(_CONNECTION, "query", ("self", "query")),
    Seam(_CONNECTION, "autocommit", ("self", "on"), ("get_autocommit",)),
    Seam(_CONNECTION, "set_character_set", ("self", "charset", "collation"), ("encoding",)),
    Seam("MySQLdb.cursors:BaseCursor", "_query", ("self", "q"), ("query",)),
    Seam("MySQLdb.cursors:BaseCursor", "nextset", ("self",), ("next_result",)),
    Seam("MySQLdb.cursors:CursorStoreResultMixIn", "_get_result", ("self",), ("store_result",)),
    Seam("MySQLdb.cursors:CursorUseResultMixIn", "_get_result", ("self",), ("use_result",)),
)


class Driver(Ahead, Blocking):
    """The blocking driver for mysqlclient; its methods are described in
    :class:`unbroken.abc.Driver`.

    Connections are MySQLdb's, of a subclass that follows everything sent.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS
    _names = ("password", "unix_socket")

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import MySQLdb
        import MySQLdb.connections

        # Modules that the library imports only while it connects. A child that is forked in the
        import MySQLdb.constants.CLIENT

        # middle of another thread's import waits for that module for ever.
        import MySQLdb.constants.FIELD_TYPE
        import MySQLdb.converters

        self.check_seams()
        self.target = target or without_target(NAME, "mysql")
        self.errors: tuple[type[BaseException], ...] = (
            MySQLdb.OperationalError,
            MySQLdb.InterfaceError,
            MySQLdb.Error,
        )
        self._base: type[BaseException] = MySQLdb.Error
        self._connect = connect
        self._arguments = _mysql.arguments(
            self.target,
            _OPTIONS,
            NAME,
            password="password",
            database="database",
        )
        for name in _WHOLE_SECONDS:
            if name in self._arguments:
                self._arguments[name] = math.ceil(self._arguments[name])
        tls = _mysql.take_tls(self._arguments)
        if tls:
            _mysql.refuse(
                {f"ssl_{name}": 0 for name in tls},
                {"ssl_check_hostname"},
                "use mysqlclient's ssl_mode=VERIFY_IDENTITY",
            )
            self._arguments["ssl"] = tls
        base: Any = MySQLdb.connections.Connection
        self._class = deduced(base) if self.is_known else base
        #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
        self.pipelines = pipelines()
        # statements that the user runs at connect may leave anything open
        self._fresh = not {"init_command", "read_default_file", "read_default_group"} & set(
            self._arguments
        )
        self._chains = False

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. The client library bounds the TCP connect and the handshake with
        *timeout*, in whole seconds.
        """
        return dial(lambda: self._dial(timeout, login))

    def _dial(self, timeout: float, login: Login | None) -> Connection:
        if self._connect is not None:
            return self.adopt(self.own(login))
        timeout = min(timeout, self._arguments.get("connect_timeout", timeout))
        conn = self._class(**{**self.aimed(login), "connect_timeout": math.ceil(timeout)})
        conn._login = login
        if self.is_known:
            conn._seen_open = False if self._fresh else None
            conn._seen_busy, conn._seen_chains = False, self._chains
        return conn

    def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = deduced(class_of(conn))
            # the caller handed it over as usable
            conn.__dict__.setdefault("_seen_busy", False)
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:  # noqa: ARG002 - as the protocol has it
        """Send COM_PING. This driver cannot enforce *timeout*; see the module's docstring."""
        conn.ping()

    def may_leave(self, conn: Connection) -> bool:
        """Return whether the answer to a COMMIT or ROLLBACK that is sent now holds nothing new, so
        that it can be read later.
        """
        state = conn.__dict__
        knows_end = not (state.get("_seen_chains") or state.get("_seen_code"))
        return knows_end and self.is_in_transaction(conn) is not False

    def end_seen(self, conn: Connection) -> None:
        """Do nothing: the library does not expose the server's status, so an answer tells nothing
        about it.
        """

    def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT, ROLLBACK or :data:`.AUTOCOMMIT_ON`. :meth:`take_answer` reads the
        answer.
        """
        conn._seen_leave(sql)

    def want(self, conn: Connection, sql: str | None, follows: Callable[[Any], bool]) -> None:
        """Send *sql*, BEGIN or :data:`.AUTOCOMMIT_OFF`, before the next command, and send a query
        that satisfies *follows* immediately behind it. None cancels that. This method itself sends
        nothing.
        """
        conn._seen_want(sql, follows)

    def wants(self, conn: Connection) -> str | None:
        """Return the statement that is sent before the next command."""
        wanted: str | None = conn.__dict__.get("_seen_wants")
        return wanted

    #: Switching autocommit takes a statement.
    sends_autocommit = True

    def autocommits(self, conn: Connection) -> bool:
        """Return whether autocommit is on, or will be once every due answer has come."""
        return bool(conn.get_autocommit())

    def is_unread(self, conn: Connection) -> bool:
        """Do the same as :meth:`Ahead.is_unread`. Answers are counted here."""
        return bool(conn.__dict__.get("_seen_due"))

    def texts(self, conn: Connection) -> Sequence[bytes | None]:
        """Return the statements sent in the transaction that may be open. None stands for an
        unknown statement.
        """
        return texts_of(conn)

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        return bool(conn.__dict__.get("_seen_due")) and self.fileno(conn) is not None

    def take_answer(self, conn: Connection, timeout: float) -> bool:  # noqa: ARG002 - as for ping
        """Read that answer, if it was not read yet. Returns whether it did."""
        if not self.owes_answer(conn):
            return False
        conn._seen_take()
        return True

    def begin(self, conn: Connection) -> None:
        """Do nothing: MySQL opens a transaction by itself while autocommit is off."""
        conn.begin()

    def close(self, conn: Connection) -> None:
        """Send COM_QUIT and close; the library does not wait for an answer."""
        try:
            conn.close()
        except Exception:  # closed before
            pass

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``wait_timeout`` of this session, in seconds."""
        held = self.is_in_transaction(conn)
        conn.query(_ASK)
        limit, completion = conn.store_result().fetch_row()[0]
        if self._hear_completion(conn, completion):
            self._chains = True
        if not held:
            conn.rollback()
        return float(limit)

    @staticmethod
    def _hear_completion(conn: Connection, completion: Any) -> bool:
        """Return whether, by the server's answer, a COMMIT has an unusual effect on *conn*."""
        told = completion.decode() if isinstance(completion, bytes) else str(completion)
        if told in ("NO_CHAIN", "0"):
            return False
        conn._seen_chains = True
        return True

    def remember(self, conn: Connection) -> str | None:
        """Return the statement that restores the settings that *conn* had when it was opened."""
        known = (
            _mysql_reset.sets_nothing_else(self._arguments)
            if self._connect is None
            else self.sets_only
        )
        user, _ = self._user_of(conn)
        if not known or user is None or self.target.database is None:
            return None
        conn.query(_mysql_reset.ASK)
        rows = conn.store_result().fetch_row(0)
        conn.rollback()
        return _mysql_reset.set_again(rows)

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:  # noqa: ARG002
        """Send COM_CHANGE_USER to the same user, which the library offers, and one statement."""
        with unheard(self, conn):
            conn._seen_want(None, bool)
            user, password = self._user_of(conn)
            conn.change_user(user, password or "", self.target.database)
            conn.__dict__["_seen_moved"] = 0
            conn.query(opening)
            conn.rollback()

    def _user_of(self, conn: Connection) -> tuple[str | None, str | None]:
        """Return the user of *conn*, and the password that it logged in with."""
        found = target_of(self.target, conn.__dict__.get("_login"))
        return found.user, found.password

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's number; the library keeps it through errors, until close."""
        try:
            fd: int = conn.fileno()
        except Exception:
            return None
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return a value derived from the statements since the last COMMIT, ROLLBACK or BEGIN.

        False if certainly none of them opened a transaction, True if none of them ended it.
        """
        state = conn.__dict__
        seen: bool | None = state.get("_seen_open")
        return (
            None
            if state.get("_seen_busy") is IN_CALL or (seen is False and state.get("_seen_chains"))
            else seen
        )

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether the last statement was answered in full."""
        if self.fileno(conn) is None or conn.__dict__.get("_seen_busy", True):
            return False
        more = getattr(conn, "more_results", None)
        return more is not None and not more()

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` was called."""
        return bool(conn.__dict__.get("_seen_closed"))

    def traits(self, conn: Connection) -> tuple[Any, ...] | None:
        """Return the client library's autocommit and character set, and the attributes that MySQLdb
        keeps on the connection.
        """
        try:
            autocommit, charset, moved, converter, encoders, *others = self._now(conn)
            return autocommit, charset, moved, {**converter}, {**encoders}, *others
        except Exception:  # closed
            return None

    def has_traits(self, conn: Connection, traits: Any) -> bool:
        """Return the same as comparing :meth:`traits`, without a copy."""
        try:
            return bool(self._now(conn) == traits)
        except Exception:  # closed
            return False

    @staticmethod
    def _now(conn: Connection) -> tuple[Any, ...]:
        return (
            conn.get_autocommit(),
            conn.character_set_name(),
            conn.__dict__.get("_seen_moved", 0),
            conn.converter,
            conn.encoders,
            conn.cursorclass,
            conn.encoding,
        )

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether *conn* was answered in full, certainly has nothing open, and is as it was
        opened.
        """
        state = conn.__dict__
        if (
            state.get("_seen_open") is not False
            or state.get("_seen_busy", True)
            or state.get("_seen_chains")
            or state.get("_seen_code")
            or state.get("_seen_wants")
        ):
            return False
        try:
            return traits is not None and self._now(conn) == traits and self.is_quiet(conn)
        except Exception:  # closed
            return False

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the attributes, then autocommit, the character set, or the database.

        After a routine was run, the server is asked for the effect of a COMMIT on this session.
        """
        conn._seen_want(None, bool)
        if _mysql.ran_code(conn):
            conn.query(_ASK_COMPLETION)
            self._hear_completion(conn, conn.store_result().fetch_row()[0][0])
            conn.__dict__.pop("_seen_code", None)
            conn.__dict__["_seen_open"] = False  # that query begins nothing
        now = self.traits(conn)
        if (
            now is None
            or traits is None
            or sum(a != b for a, b in zip(now[:3], traits[:3], strict=True)) > 1
            or now[2] == _mysql.ANOTHER_USER
            or (now[2] != traits[2] and self.target.database is None)
            or self.is_in_transaction(conn) is not False
        ):
            raise conn.InterfaceError(0, "the connection's opening state cannot be restored")
        for name, value in zip(_TRAITS, traits[3:], strict=True):
            if getattr(conn, name) != value:
                setattr(conn, name, {**value} if name in _TABLES else value)
        if now[0] != traits[0]:
            conn.autocommit(traits[0])
            conn.__dict__["_seen_open"] = False  # nothing was open before
        elif now[1] != traits[1]:
            conn.set_character_set(traits[1])
        elif now[2] != traits[2]:
            conn.select_db(self.target.database)
            conn.__dict__["_seen_moved"] = traits[2]

    def session_id(self, conn: Connection) -> str | None:
        """Return CONNECTION_ID(), from the handshake."""
        try:
            return str(conn.thread_id())
        except Exception:  # closed
            return None

    def watch(self, conn: Connection) -> None:
        """Report statements that are sent through ``query``, and the rest through a few methods of
        the C class.
        """
        conn.__class__ = watched(type(conn))
