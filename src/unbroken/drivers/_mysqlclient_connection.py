"""Subclasses of mysqlclient's connections that deduce whether a transaction is open, and report."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers._mysql_exchange import LONGEST_TEXT, TEXTS
from unbroken.drivers._shared import (
    AUTOCOMMIT_OFF,
    AUTOCOMMIT_ON,
    is_commit,
    is_rollback,
)
from unbroken.ledger import scope, unit

SENDS = ("send_query", "change_user", "set_server_option", "kill", "shutdown", "dump_debug_info")


# Statements that open no transaction while autocommit is on, if they stand alone.
_HARMLESS = re.compile(
    rb"\s*(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|SHOW|EXPLAIN|DESCRIBE|DESC|WITH|SET(?!\s+STATEMENT\b))\b",
    re.IGNORECASE,
)


# Statements that certainly begin one, and that, if they stand alone and succeed, do not end it.
_BEGINS = re.compile(
    rb"\s*(?:BEGIN(?:\s+WORK)?|START\s+TRANSACTION(?:\s[\w\s,]+)?)\s*;?\s*", re.IGNORECASE
)


_STAYS = re.compile(
    rb"\s*(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|SHOW|EXPLAIN|DESCRIBE|DESC|WITH|SAVEPOINT|RELEASE\s+SAVEPOINT|ROLLBACK\s+TO)\b",
    re.IGNORECASE,
)


_TOUCHES_MODE = re.compile(rb"autocommit|completion_type", re.IGNORECASE)


def _still_closed(sql: bytes) -> bool:
    """Return whether *sql*, sent with autocommit on and nothing open, leaves nothing open."""
    return _HARMLESS.match(sql) is not None and _is_alone(sql) and _TOUCHES_MODE.search(sql) is None


def _is_open_after(sql: bytes, before: bool | None) -> bool | None:
    """Return whether a transaction is open after *sql*, which succeeded; None if uncertain."""
    if is_commit(sql) or is_rollback(sql):
        return False
    if _BEGINS.fullmatch(sql) is not None:
        return True
    return True if before and _STAYS.match(sql) is not None and _is_alone(sql) else None


def _is_alone(sql: bytes) -> bool:
    return b";" not in sql.rstrip(b"; \n\t\r")


def _may_follow(sql: bytes) -> bool:
    """Return whether *sql* may be sent before the answer to the last statement was read.

    MariaDB's library allows the server to ask for a file while it waits for the answer to LOAD
    DATA. It forgets that permission when it reads any answer.
    """
    return sql[:4].lower() != b"load"


def pipelines() -> bool:
    """Return whether the C library lets a statement be sent before the answer to the last one was
    read.

    MariaDB's does. MySQL's treats the answers as out of order.
    """
    from MySQLdb import _mysql as library

    return str(library.get_client_info()).startswith("3.")


#: The value of ``_seen_busy`` in the middle of a COMMIT or ROLLBACK. It counts as true.
IN_CALL = "in a call"


@cache
def deduced(base: Any) -> Any:
    """Return a subclass of *base*, a MySQLdb connection class, that deduces whether a transaction
    can be open. Return *base* itself if it already does so.
    """
    if getattr(base, "_deduces", False):
        return base

    behind = pipelines()

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _deduces = True

        def query(self, query: Any) -> None:
            state = self.__dict__
            sql = (
                query.encode("utf-8", "surrogateescape") if isinstance(query, str) else bytes(query)
            )
            if state.get("_seen_wants") is not None:
                self._seen_begin(sql)
            flies = behind and state.get("_seen_flies") and _may_follow(sql)
            if state.get("_seen_due") and not flies:
                self._seen_take()
            self._seen_refuse()
            if _mysql.changes_ends(sql, self):
                state["_seen_chains"] = True
            _note(state, sql)
            before = state.get("_seen_open")
            closed = before is False and self.get_autocommit() and _still_closed(sql)
            due = state.get("_seen_due")
            state["_seen_open"], state["_seen_busy"] = None, IN_CALL if due else True
            try:
                if due:
                    super().send_query(sql)
                    self._seen_hear()
                    super().read_query_result()
                else:
                    super().query(query)
            except self.Error as error:
                if _mysql.is_answer(error):
                    state["_seen_busy"] = False
                raise
            after = state["_seen_open"] = False if closed else _is_open_after(sql, before)
            if after is False:
                state["_seen_texts"].clear()
            state["_seen_busy"] = self.field_count() > 0

        def store_result(self) -> Any:
            try:
                result = super().store_result()
            except self.Error as error:  # INSERT … RETURNING may fail after its columns were sent
                if _mysql.is_answer(error):
                    self.__dict__["_seen_busy"] = False
                raise
            if self.__dict__.get("_seen_busy") is not IN_CALL:  # which was broken off
                self.__dict__["_seen_busy"] = False
            return result

        def commit(self) -> None:
            self._finish(super().commit)

        def rollback(self) -> None:
            self._finish(super().rollback)

        def autocommit(self, on: Any) -> None:
            if self.get_autocommit() == bool(on):
                return
            self._seen_settle()
            _note(self.__dict__, None)
            super().autocommit(on)
            if self.__dict__.get("_seen_open"):  # switching it on commits
                self.__dict__["_seen_open"] = None

        def close(self) -> None:
            self.__dict__["_seen_open"] = (
                # nothing is certain of a closed connection, least of all that it may be reused
                None
            )
            self.__dict__["_seen_closed"] = True
            super().close()

        def next_result(self) -> Any:
            out = super().next_result()
            if out == -1 and self.__dict__.get("_seen_busy") is IN_CALL:
                return out  # of a call that was broken off, before or after the library's own
            if (
                out == -1
                # there is no other result, and the rows of the last one were read: otherwise the
                # library would not return this
            ):
                self.__dict__["_seen_busy"] = False
            else:
                self.__dict__["_seen_open"], self.__dict__["_seen_busy"] = None, True
            return out

        def select_db(self, db: Any) -> None:
            self._seen_settle()
            self._seen_refuse()
            _mysql.note_move(self, _mysql.MOVED)
            super().select_db(db)

        def ping(self, *args: Any) -> Any:
            self._seen_settle()
            self._seen_refuse()
            if args and args[0]:  # from now on the library may reconnect unnoticed
                _mysql.note_move(self, _mysql.ANOTHER_USER)
            return super().ping(*args)

        def _finish(self, send: Callable[[], None]) -> None:
            state = self.__dict__
            self._seen_settle()
            self._seen_refuse()
            state["_seen_open"], state["_seen_busy"] = None, IN_CALL
            try:
                send()
            except self.Error as error:
                if _mysql.is_answer(error):
                    state["_seen_busy"] = False
                raise
            if "_seen_texts" in state:
                state["_seen_texts"].clear()
            state["_seen_open"] = False
            state["_seen_busy"] = False

        def get_autocommit(self) -> bool:
            state = self.__dict__
            if state.get("_seen_wants") == AUTOCOMMIT_OFF:
                return False
            if state.get("_seen_due"):  # the library has not read it yet
                return bool(state["_seen_mode"])
            return bool(super().get_autocommit())

        def _seen_want(self, sql: str | None, follows: Callable[[Any], bool]) -> None:
            """Send *sql* before the next command. A query that satisfies *follows* may be sent
            behind it without waiting. None: nothing is sent first.
            """
            self.__dict__["_seen_follows"] = follows
            self.__dict__["_seen_wants"] = sql

        def _seen_begin(self, sql: bytes | None) -> None:
            """Send the statement that must precede *sql*. Wait if *sql* would do harm alone."""
            state = self.__dict__
            flies = behind and state.get("_seen_flies") and sql is not None
            waits = not (flies and state["_seen_follows"](sql))
            self._seen_leave(state["_seen_wants"])
            if waits:
                self._seen_take()
            # not before: a statement that was broken off on its way is sent once more, which
            # changes nothing
            state["_seen_wants"] = None

        def _seen_leave(self, sql: str) -> None:
            """Send *sql*: COMMIT, ROLLBACK, BEGIN or a statement that sets autocommit. Its answer
            is read before that of the next statement.
            """
            state = self.__dict__
            if state.get("_seen_due") and not (behind and state.get("_seen_flies")):
                self._seen_take()
            self._seen_refuse()
            mode = self.get_autocommit()
            state["_seen_open"], state["_seen_busy"] = None, IN_CALL
            super().send_query(sql.encode())
            state["_seen_mode"] = sql == AUTOCOMMIT_ON or (mode and sql != AUTOCOMMIT_OFF)
            state["_seen_due"] = state.get("_seen_due", 0) + 1
            texts_of(self).clear()
            state["_seen_busy"] = False
            state["_seen_open"] = sql == "BEGIN"  # last: it marks the exchange as complete

        def _seen_settle(self) -> None:
            """Send the statement that must go first; read those answers, if any are due."""
            if self.__dict__.get("_seen_wants") is not None:
                self._seen_begin(None)
            if self.__dict__.get("_seen_due"):
                self._seen_take()

        def _seen_take(self) -> None:
            """Read those answers."""
            state = self.__dict__
            self._seen_refuse()  # it was broken off before
            after = state.get("_seen_open")
            state["_seen_open"], state["_seen_busy"] = None, IN_CALL
            self._seen_hear()
            state["_seen_busy"] = False
            state["_seen_open"] = after

        def _seen_hear(self) -> None:
            """Read those answers, regardless of any statement sent behind them. An error in place
            of one means that the connection is out of step.
            """
            try:
                for _ in range(self.__dict__["_seen_due"]):
                    super().read_query_result()
                    if self.field_count():  # rows are no answer to that
                        raise self.OperationalError(2014, _mysql.OUT_OF_STEP)
            except self.Error as error:
                raise self.OperationalError(2014, _mysql.OUT_OF_STEP) from error
            self.__dict__["_seen_due"] = 0

        def _seen_refuse(self) -> None:
            """Raise after an exchange that is not known to have ended, so that nothing is sent."""
            if self.__dict__.get("_seen_busy", False):
                raise self.OperationalError(2014, _mysql.OUT_OF_STEP)

    for name in ("send_query", "change_user", "set_server_option", "kill"):
        _forgets(Connection, base, name)
    for name in ("set_character_set", "stat", "shutdown", "dump_debug_info"):
        _settles(Connection, base, name)
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def texts_of(conn: Any) -> deque[bytes | None]:
    """Return the statements sent on *conn* since it last had no open transaction. None stands for a
    statement whose text is not known.
    """
    texts: deque[bytes | None] = conn.__dict__.setdefault("_seen_texts", deque([None], TEXTS))
    return texts


def _note(state: dict[str, Any], sql: bytes | None) -> None:
    texts = state.setdefault("_seen_texts", deque([None], TEXTS))
    texts.append(None if sql is None or len(sql) > LONGEST_TEXT else sql)


def _forgets(cls: type[Any], base: type[Any], name: str) -> None:
    """Wrap the method *name*, after which nothing is known of the transaction any more."""
    plain = getattr(base, name, None)
    if plain is None:
        return

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._seen_settle()
        _note(self.__dict__, None)
        self.__dict__["_seen_open"] = None
        if name == "change_user":
            _mysql.note_move(self, _mysql.ANOTHER_USER)
        if name == "send_query":
            self.__dict__["_seen_busy"] = True  # its answer is read by calls that are not followed
        return plain(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


def _settles(cls: type[Any], base: type[Any], name: str) -> None:
    """Wrap the method *name*, so that an answer that is due is read before it."""
    plain = getattr(base, name, None)
    if plain is None:
        return

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._seen_settle()
        return plain(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


def watched(base: Any) -> Any:
    """Return a subclass of *base* that tells the ledger of everything it sends.

    ``unwatched`` is the original class, to restore it.
    """
    if hasattr(base, "unwatched"):
        return base
    plain = deduced(base)
    known = plain.__dict__.get("_watched")
    if known is not None:
        return known

    class Watched(plain):  # type: ignore[misc, valid-type] # the base is only known here
        __module__ = base.__module__
        unwatched = plain

        def query(self, query: Any) -> None:
            state = self.__dict__
            state.pop("_seen_told", None)
            ledger = None if state.get("_seen_closed") else scope.current(id(self))
            if ledger is None:
                super().query(query)
            elif is_commit(query):
                _committing(ledger, self, lambda: super(Watched, self).query(query))
            else:
                ledger.statement(query, _commits_itself(self), conn_id=id(self))
                try:
                    super().query(query)
                except self.Error as error:
                    _mysql.refused(ledger, self, error)
                    raise
                told = _mysql.ROLLBACK if is_rollback(query) else _mysql.STATEMENT
                if state.get("_seen_busy"):
                    state["_seen_told"] = told  # its rows are still to come
                else:
                    _mysql.answered(self, told, None)

        def store_result(self) -> Any:
            result = super().store_result()
            told = self.__dict__.pop("_seen_told", None)
            if told is not None:
                _mysql.answered(self, told, None)
            return result

        def commit(self) -> None:
            ledger = scope.current(id(self))
            if ledger is None:
                super().commit()
            else:
                _committing(ledger, self, super().commit)

        def rollback(self) -> None:
            super().rollback()
            ledger = scope.current(id(self))
            if ledger is not None:
                ledger.rolled_back(conn_id=id(self))

        def autocommit(self, on: Any) -> None:
            ledger = scope.current(id(self))
            if ledger is not None and bool(on) != self.get_autocommit():
                ledger.statement(f"SET autocommit={int(bool(on))}", None, conn_id=id(self))
            super().autocommit(on)

    for name in SENDS:
        _doubtful(Watched, plain, name)
    Watched.__name__ = Watched.__qualname__ = base.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched


def _commits_itself(conn: Any) -> bool | None:
    """Return whether a statement sent now is committed by itself."""
    if conn.__dict__.get("_seen_wants") is not None or not conn.get_autocommit():
        return False
    seen: bool | None = conn.__dict__.get("_seen_open")
    return None if seen is None else not seen


def _committing(ledger: unit.Unit, conn: Any, send: Callable[[], None]) -> None:
    ledger.committing(conn_id=id(conn))
    try:
        send()
    except conn.Error as error:
        _mysql.refused(ledger, conn, error)
        raise
    ledger.committed(conn_id=id(conn))


def _doubtful(cls: type[Any], base: type[Any], name: str) -> None:
    plain = getattr(base, name, None)
    if plain is None:
        return

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        ledger = scope.current(id(self))
        if ledger is not None:
            ledger.doubt(f"the application called {name}() of mysqlclient", conn_id=id(self))
        return plain(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)
