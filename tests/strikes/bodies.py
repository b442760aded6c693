"""What is struck: the same jobs through each body of the library, on each blocking driver.

A job is what an application does in one request or task. It says in :class:`Told` what it began,
what was acknowledged and what must not be there, before and after each write.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import unbroken
from unbroken.brain.stats import Stats

#: Seconds that a caller waits for a connection. Lost places must come back within one; the rest is
#: for a busy machine.
PATIENCE = float(os.environ.get("UNBROKEN_STRIKES_PATIENCE", "1.5"))


class AppError(Exception):
    """The application's own error, which rolls its work back."""


class Told:
    """What was said of each row: begun, acknowledged, or given up (it must never be stored)."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.begun: dict[int, str] = {}  #: with the point that was struck meanwhile
        self.acknowledged: set[int] = set()
        self.given_up: set[int] = set()
        self.point = ""

    def begin(self) -> int:
        """The number of a row that is about to be written."""
        number = next(self.numbers)
        self.begun[number] = self.point
        return number


#: Scenes whose parts are alike: what was struck in one need not be struck again in another.
PLAIN = ("select", "write", "several", "fail", "error", "caught", "caught_write", "own_commit")

STATEMENTS = ("ask", "insert", "update")
#: Scenes whose statements are not sent as in the plain ones, and which of them are alike.
LIKE = {
    "again": "again",
    "deadline": "again",
    "autocommit": "autocommit",
    "raw": "raw",
    "caught": "caught",
    "caught_write": "caught_write",
}


class Body:
    """One body on one driver, with a pool of *size*.

    The subclasses say how each of its parts is spelled.
    """

    name = "?"
    scenes: tuple[str, ...] = (
        "select", "write", "several", "fail", "error", "caught", "caught_write", "own_commit",
        "again", "acquire", "waiting", "connecting", "doubtful", "deadline",
    )  # fmt: skip

    def __init__(self, driver: str, url: str, size: int, told: Told) -> None:
        self.driver, self.url, self.size, self.told = driver, url, size, told
        self.is_postgres = url.startswith("postgresql")
        self.limits: tuple[
            type[BaseException], ...
        ] = ()  #: the strikes, which an application catches within its work
        #: told of each part of a job as it begins
        self.begin: Callable[[str], None] = lambda _part: None
        self.manner = ""  #: of the scene, where its parts differ from the others'
        self._before = ""
        self.open()

    # -- what a subclass has -----------------------------------------------------------------------

    def open(self) -> None:
        """Make what the jobs go through."""
        raise NotImplementedError

    def transaction(self) -> Any:
        """A context manager: one transaction, committed on success."""
        raise NotImplementedError

    def execute(self, session: Any, sql: str) -> Any:
        """Run *sql*; the first value of its first row, or None."""
        raise NotImplementedError

    def replayed(self, work: Callable[[Any], Any], deadline: float | None = None) -> Any:
        """Run *work* (given a session) as a unit of work."""
        raise NotImplementedError

    def acquire(self) -> None:
        """Take a connection and give it back, in the plainest way that there is."""
        raise NotImplementedError

    def own_commit(self) -> None:
        """Insert, COMMIT by the application, insert, ROLLBACK by the application."""
        raise NotImplementedError

    def end(self) -> None:
        """What a framework does after (and before) each request, whatever became of it."""

    def close(self) -> None:
        """End everything."""
        raise NotImplementedError

    @property
    def pool(self) -> Any:
        """The pool (or SQLAlchemy's stand-in of one) behind it."""
        raise NotImplementedError

    # -- statements --------------------------------------------------------------------------------

    def session(self) -> Any:
        """A transaction that begins as a part of its own."""
        self.mark("enter")
        return self.transaction()

    def mark(self, part: str) -> None:
        """The job begins its next part. What leaving does depends on what came before."""
        manner = self.manner
        if part in STATEMENTS:
            manner = LIKE.get(manner, "")
        elif part != "enter" and manner in ("waiting", "connecting", "doubtful"):
            manner = ""
        self.begin(
            f"{manner}:{part} after {self._before}" if part == "leave" else f"{manner}:{part}"
        )
        self._before = part

    def ask(self, session: Any) -> int:
        """SELECT a number that nobody selected before; AssertionError where another came back."""
        number = next(self.told.numbers)
        self.mark("ask")
        got = self.execute(session, f"SELECT {number}")
        assert got == number, f"SELECT {number} gave {got!r}"
        return number

    def insert(self, session: Any, number: int) -> None:
        """Write a row."""
        self.mark("insert")
        self.execute(session, f"INSERT INTO strikes VALUES ({number})")

    def update(self, session: Any) -> None:
        """Change a row that is there."""
        self.mark("update")
        self.execute(session, "UPDATE strike_counter SET v = v + 1 WHERE id = 1")

    # -- jobs --------------------------------------------------------------------------------------

    def select(self) -> None:
        """A job that reads."""
        with self.session() as session:
            self.ask(session)
            self.mark("leave")

    def write(self) -> None:
        """A job that writes one row."""
        number = self.told.begin()
        with self.session() as session:
            self.insert(session, number)
            self.mark("leave")
        self.told.acknowledged.add(number)

    def several(self) -> None:
        """A job of several statements."""
        number = self.told.begin()
        with self.session() as session:
            self.ask(session)
            self.update(session)
            self.insert(session, number)
            self.ask(session)
            self.mark("leave")
        self.told.acknowledged.add(number)

    def fail(self) -> None:
        """A job that changes its mind: its error rolls back what it did."""
        number = self.told.begin()
        self.told.given_up.add(number)
        with suppress(AppError), self.session() as session:
            self.insert(session, number)
            self.mark("change its mind")
            raise AppError

    def error(self) -> None:
        """A job that the server refuses: the driver's error rolls back what it did."""
        number = self.told.begin()
        self.told.given_up.add(number)
        try:
            with self.session() as session:
                self.insert(session, number)
                self.mark("error")
                self.execute(session, "SELECT id FROM no_such_table")
        except self.limits:
            raise
        except Exception as error:
            if type(error) is AssertionError or "no_such_table" not in str(error):
                raise

    def _ask_until_struck(self, session: Any, manner: str = "caught") -> None:
        """A statement whose strike the application catches, and goes on."""
        self.manner = manner
        try:
            self.ask(session)
        except self.limits:
            pass
        finally:
            self.manner = ""

    def caught(self) -> None:
        """A job that goes on after the strike, with the connection that was struck."""
        with self.session() as session:
            self._ask_until_struck(session)
            self.ask(session)
            self.mark("leave")

    def caught_write(self) -> None:
        """Likewise; what it wrote before must be there if it is told that all is well."""
        number = self.told.begin()
        with self.session() as session:
            self.insert(session, number)
            self._ask_until_struck(session, "caught_write")
            self.mark("leave")
        self.told.acknowledged.add(number)

    def again(self) -> None:
        """A unit of work that may be run again."""
        number = self.told.begin()

        def work(session: Any) -> None:
            self.ask(session)
            self.insert(session, number)
            self.mark("leave")

        self.mark("enter")
        self.replayed(work)
        self.told.acknowledged.add(number)

    def deadline(self) -> None:
        """A unit of work with a deadline that it keeps."""
        number = self.told.begin()
        self.mark("enter")
        self.replayed(lambda session: self.insert(session, number), deadline=60.0)
        self.told.acknowledged.add(number)

    # -- the state before a job --------------------------------------------------------------------

    @contextmanager
    def stage(self, scene: str) -> Iterator[Callable[[], None]]:
        """Prepare for *scene*: gives the job."""
        self._before = ""
        self.manner = "" if scene in PLAIN else scene
        if scene == "waiting":
            with self._crowd():
                yield self.select
            return
        if scene == "connecting":
            self.drain()
        if scene == "doubtful":
            for entry in list(self.state.idle):
                entry.last_used -= 1e6
        yield self.select if scene in ("connecting", "doubtful") else getattr(self, scene)

    @contextmanager
    def _crowd(self) -> Iterator[None]:
        """All connections are in use, and are given back once somebody waits."""
        over, taken = threading.Event(), threading.Event()

        def hold() -> None:
            held = self.hold()
            taken.set()
            while not over.is_set() and not self.is_awaited():
                time.sleep(0.0002)
            self.let_go(held)

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        taken.wait(PATIENCE)
        try:
            yield
        finally:
            over.set()
            thread.join(PATIENCE)

    # -- places ------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """The state behind the pool."""
        return self.pool._state

    def drain(self) -> None:
        """Close what is idle."""
        self.pool.drain()

    def is_awaited(self) -> bool:
        """Whether somebody waits for a connection."""
        return bool(self.state.waiting)

    def hold(self) -> list[Any]:
        """Take as many connections as there are places. Raises when there are fewer."""
        held: list[Any] = []
        try:
            while len(held) < self.size:
                held.append(self.take())
        except BaseException:
            self.let_go(held)
            raise
        return held

    def let_go(self, held: list[Any]) -> None:
        """Give them back."""
        while held:
            self.give(held.pop())

    def take(self) -> Any:
        """Take one connection."""
        return self.pool.acquire()

    def give(self, conn: Any) -> None:
        """Give it back."""
        self.pool.release(conn)

    def ask_raw(self, conn: Any) -> None:
        """As :meth:`ask`, on a driver's connection."""
        number = next(self.told.numbers)
        cursor = conn.cursor()
        cursor.execute(f"SELECT {number}")
        got = cursor.fetchone()
        cursor.close()
        assert got is not None, f"SELECT {number} gave nothing"
        assert got[0] == number, f"SELECT {number} gave {got[0]!r}"

    def stats(self) -> Stats:
        """The pool's numbers."""
        return self.pool.stats()  # type: ignore[no-any-return]


class PoolBody(Body):
    """``unbroken.Pool``."""

    name = "pool"
    scenes = (*Body.scenes, "no_transaction")

    def open(self) -> None:
        self.made = unbroken.Pool(self.url, max_size=self.size, acquire_timeout=PATIENCE)
        self.close = lambda: self.made.close(timeout=0.0)  # type: ignore[method-assign]

    @property
    def pool(self) -> Any:
        return self.made

    def transaction(self) -> Any:
        return self.made.connection()

    def execute(self, session: Any, sql: str) -> Any:
        cursor = session.cursor()
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        cursor.close()
        return None if row is None else row[0]

    def replayed(self, work: Callable[[Any], Any], deadline: float | None = None) -> Any:
        return self.made.run(work, **({} if deadline is None else {"deadline": deadline}))

    def acquire(self) -> None:
        self.made.release(self.made.acquire())

    def no_transaction(self) -> None:
        """A lease without a transaction of its own, bounded in time."""
        number = self.told.begin()
        with self.made.connection(transaction=False, deadline=60.0) as conn:
            self.insert(conn, number)
            self.mark("commit")
            conn.commit()
            self.told.acknowledged.add(number)
            self.ask(conn)

    def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        with self.made.connection() as conn:
            self.insert(conn, stays)
            self.mark("commit")
            conn.commit()
            self.told.acknowledged.add(stays)
            self.insert(conn, goes)
            self.mark("rollback")
            conn.rollback()
            self.mark("leave")


class SQLAlchemyBody(Body):
    """An engine with the plugin."""

    name = "sqlalchemy"
    scenes = (*Body.scenes, "raw", "orm")

    def open(self) -> None:
        import sqlalchemy as sa

        import unbroken.sqlalchemy

        self.engine = sa.create_engine(
            self.url,
            plugins=["unbroken"],
            pool_size=self.size,
            max_overflow=0,
            pool_timeout=PATIENCE,
        )
        self._stats = unbroken.sqlalchemy.stats
        self.close = self.engine.dispose  # type: ignore[method-assign]

    @property
    def pool(self) -> Any:
        return self.engine.pool

    def transaction(self) -> Any:
        return self.engine.begin()

    def execute(self, session: Any, sql: str) -> Any:
        result = session.exec_driver_sql(sql)
        return result.scalar() if result.returns_rows else None

    def replayed(self, work: Callable[[Any], Any], deadline: float | None = None) -> Any:
        def whole() -> Any:
            with self.engine.begin() as conn:
                return work(conn)

        return unbroken.replayable(whole, deadline=deadline)()

    def acquire(self) -> None:
        self.engine.connect().close()

    def raw(self) -> None:
        """A pooled connection of the driver's, without SQLAlchemy's own face."""
        fairy = self.engine.raw_connection()
        try:
            self.ask_raw(fairy)
        finally:
            fairy.close()

    def orm(self) -> None:
        """A session of the ORM's."""
        from sqlalchemy.orm import Session

        number = self.told.begin()
        with Session(self.engine) as session:
            self.ask(session.connection())
            self.insert(session.connection(), number)
            session.commit()
            self.told.acknowledged.add(number)
            self.ask(session.connection())

    def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        with self.engine.connect() as conn:
            self.insert(conn, stays)
            self.mark("commit")
            conn.commit()
            self.told.acknowledged.add(stays)
            self.insert(conn, goes)
            self.mark("rollback")
            conn.rollback()
            self.mark("leave")

    def drain(self) -> None:
        self.engine.dispose()

    @property
    def state(self) -> Any:
        return self.engine.pool._body  # type: ignore[attr-defined] # the plugin's pool

    def is_awaited(self) -> bool:
        return bool(self.state.waiting)

    def take(self) -> Any:
        return self.engine.raw_connection()

    def give(self, conn: Any) -> None:
        conn.close()

    def stats(self) -> Stats:
        return self._stats(self.engine)


class DjangoBody(Body):
    """An alias of a Django site."""

    name = "django"
    scenes = (*Body.scenes, "autocommit", "savepoint")
    _numbers = count()

    def open(self) -> None:
        import django
        from django.conf import settings
        from django.db import connections

        if not settings.configured:
            settings.configure(DATABASES={}, USE_TZ=True)
            django.setup()
        self.alias = f"shop{next(self._numbers)}"
        given = connections.configure_settings({"default": {}, self.alias: self._settings()})
        connections.settings[self.alias] = given[self.alias]
        self._connections = connections

    def _settings(self) -> dict[str, Any]:
        from unbroken.drivers.url import parse

        target = parse(self.url)
        options: dict[str, Any] = {"unbroken": {"max_size": self.size, "acquire_timeout": PATIENCE}}
        return {
            "ENGINE": f"unbroken.django.{'postgresql' if self.is_postgres else 'mysql'}",
            "NAME": target.database, "USER": target.user, "PASSWORD": target.password,
            "HOST": target.host, "PORT": target.port, "OPTIONS": options,
        }  # fmt: skip

    @property
    def wrapper(self) -> Any:
        """This thread's."""
        return self._connections[self.alias]

    @property
    def pool(self) -> Any:
        return self.wrapper.unbroken_pool

    def transaction(self) -> Any:
        from django.db import transaction

        return transaction.atomic(using=self.alias)

    def execute(self, session: Any, sql: str) -> Any:
        with self.wrapper.cursor() as cursor:
            cursor.execute(sql)
            row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]

    def replayed(self, work: Callable[[Any], Any], deadline: float | None = None) -> Any:
        import unbroken.django

        def whole() -> Any:
            with self.session():
                return work(None)

        return unbroken.django.replayable(whole, deadline=deadline)()

    def acquire(self) -> None:
        self.wrapper.ensure_connection()
        self.wrapper.close()

    def autocommit(self) -> None:
        """Statements outside atomic."""
        number = self.told.begin()
        self.ask(None)
        self.insert(None, number)
        self.told.acknowledged.add(number)
        self.ask(None)

    def savepoint(self) -> None:
        """A block within a block, whose error the application catches."""
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        with self.session():
            self.insert(None, stays)
            with suppress(AppError), self.session():
                self.insert(None, goes)
                raise AppError
        self.told.acknowledged.add(stays)

    def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        wrapper = self.wrapper
        wrapper.set_autocommit(False)
        try:
            self.insert(None, stays)
            wrapper.commit()
            self.told.acknowledged.add(stays)
            self.insert(None, goes)
            wrapper.rollback()
        finally:
            wrapper.set_autocommit(True)

    def end(self) -> None:
        self.wrapper.close_if_unusable_or_obsolete()

    def close(self) -> None:
        wrapper = self.wrapper
        wrapper.close()
        wrapper.close_pool()
        del self._connections[self.alias]
        self._connections.settings.pop(self.alias, None)


class DjangoPyMySQLBody(DjangoBody):
    """Likewise, PyMySQL in mysqlclient's place."""

    def open(self) -> None:
        import pymysql

        pymysql.install_as_MySQLdb()
        super().open()


class PeeweeBody(Body):
    """A database of ``unbroken.peewee``'s."""

    name = "peewee"
    scenes = (*Body.scenes, "autocommit", "savepoint")

    def open(self) -> None:
        import unbroken.peewee

        self.db = unbroken.peewee.connect(self.url, max_size=self.size, acquire_timeout=PATIENCE)

    @property
    def pool(self) -> Any:
        return self.db.pool

    def transaction(self) -> Any:
        return self.db

    def execute(self, session: Any, sql: str) -> Any:
        cursor = self.db.execute_sql(sql)
        row = cursor.fetchone() if cursor.description else None
        cursor.close()
        return None if row is None else row[0]

    def replayed(self, work: Callable[[Any], Any], deadline: float | None = None) -> Any:
        return self.db.unit(lambda: work(None), atomic=True, deadline=deadline)()

    def acquire(self) -> None:
        self.db.connect(reuse_if_open=True)
        self.db.close()

    def autocommit(self) -> None:
        """Statements outside of any scope."""
        number = self.told.begin()
        self.ask(None)
        self.insert(None, number)
        self.told.acknowledged.add(number)
        self.ask(None)

    def savepoint(self) -> None:
        """A block within a block, whose error the application catches."""
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        with self.db.connection_context(), self.db.atomic():
            self.insert(None, stays)
            with suppress(AppError), self.db.atomic():
                self.insert(None, goes)
                raise AppError
        self.told.acknowledged.add(stays)

    def own_commit(self) -> None:
        stays, goes = self.told.begin(), self.told.begin()
        self.told.given_up.add(goes)
        with self.db.connection_context():
            self.db.begin()
            self.insert(None, stays)
            self.db.commit()
            self.told.acknowledged.add(stays)
            self.db.begin()
            self.insert(None, goes)
            self.db.rollback()

    def end(self) -> None:
        if not self.db.is_closed():
            self.db.close()

    def close(self) -> None:
        with suppress(Exception):
            self.end()
        self.db.close_all()


BODIES: dict[str, tuple[type[Body], tuple[str, ...]]] = {
    "pool": (PoolBody, tuple("pymysql mysqldb mariadbconnector mysqlconnector psycopg psycopg2 pg8000 sqlite".split())),  # noqa: E501
    "sqlalchemy": (SQLAlchemyBody, tuple("pymysql mysqldb mariadbconnector mysqlconnector psycopg psycopg2 pg8000".split())),  # noqa: E501
    "django": (DjangoBody, ("mysqldb", "pymysql", "psycopg", "psycopg2")),
    "peewee": (PeeweeBody, tuple("pymysql mariadbconnector mysqlconnector psycopg psycopg2".split())),  # noqa: E501
}  # fmt: skip
