"""Strike a driver at every step of its Python code, and see that it never gives an answer to the wrong question.

A strike is an exception raised where the driver does not expect one, as a signal handler, a time limit or a cancellation
raises it. This program runs each kind of call once for each step of it, strikes at that step, and looks at the connection:
either it is not quiet, then it must refuse every further statement at once; or it is quiet, then the next question must get
its own answer. It runs in an interpreter of its own, so that a crash of a C library is seen by its exit code.

    python striking.py pymysql '{"host": …, "port": …, "user": …, "password": …, "database": …}' [--every opcode]
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import importlib
import inspect
import json
import logging
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from unbroken.drivers import open_driver

HERE = __file__
ASYNC = {"aiomysql", "asyncmy", "mysqlconnector_async"}
#: A strike in the standard library's executor leaves its lock taken: no driver can help that.
SPARED = ("/threading.py", "/concurrent/futures/thread.py", "/concurrent/futures/_base.py")
#: One call to the server may take this long; what takes longer hangs.
LIMIT = 6.0
#: How often each way of striking may be told of in full.
TOLD = 5


class Struck(Exception):  # noqa: N818 - what happened
    """A strike that ``except Exception`` catches."""


class StruckHard(BaseException):
    """A strike that only ``except BaseException`` catches."""


class Hang(BaseException):
    """A call took too long."""


class Striker:
    """A trace function that raises *kind* at the step number *at* of what runs below this file; 0: it only counts."""

    def __init__(self, at: int, kind: type[BaseException], *, opcodes: bool, inside: types.CodeType | None) -> None:
        self.at, self.kind, self.opcodes, self.inside = at, kind, opcodes, inside
        self.steps = 0
        self.place = ""

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if name == HERE or name.endswith(SPARED) or not self._is_ours(frame):
            return None
        frame.f_trace_opcodes = self.opcodes
        return self._step(frame, event, arg)

    def _is_ours(self, frame: types.FrameType | None) -> bool:
        """Whether the call was made by the code under test; an event loop does other things too."""
        if self.inside is None:
            return True
        while frame is not None:
            if frame.f_code is self.inside:
                return True
            frame = frame.f_back
        return False

    def _step(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        if event != "exception":
            self.steps += 1
            if self.steps == self.at:
                sys.settrace(None)
                self.place = f"{event} {frame.f_code.co_filename.rpartition('site-packages/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self.kind
        return self._step


@types.coroutine
def throwing(coroutine: Any, at: int, error: BaseException, waits: list[int]) -> Any:
    """Await *coroutine*, but raise *error* in it where it waits for the time number *at*."""
    value = None
    while True:
        try:
            future = coroutine.send(value)
        except StopIteration as end:
            return end.value
        waits[0] += 1
        if waits[0] == at:
            try:
                future = coroutine.throw(error)
            except StopIteration as end:
                return end.value
        value = yield future


class Subject:
    """A driver, and how its library's cursors are made. All methods are coroutines; a blocking driver's never wait."""

    def __init__(self, name: str, where: dict[str, Any]) -> None:
        self.name, self.where = name, where
        self.is_async = name in ASYNC
        spelling = name.removesuffix("_async")
        query = "?allow_local_infile=1" if spelling == "mysqlconnector" else "?local_infile=1"
        scheme = "mariadb" if spelling == "mariadbconnector" else "mysql"
        place = f"{where['user']}:{where['password']}@{where['host']}:{where['port']}/{where['database']}"
        self.driver: Any = open_driver(f"{scheme}+{spelling}://{place}{query}", is_async=self.is_async)

    async def connect(self) -> Any:
        return await go(self.driver.connect(5.0))

    async def cursor(self, conn: Any, *, stream: bool = False, prepared: bool = False) -> Any:
        how: tuple[Any, ...] = ()
        options: dict[str, Any] = {}
        if stream:
            library = {"pymysql": "pymysql.cursors", "mysqldb": "MySQLdb.cursors", "aiomysql": "aiomysql", "asyncmy": "asyncmy.cursors"}
            if self.name in library:
                how = (importlib.import_module(library[self.name]).SSCursor,)
            else:
                options = {"buffered": False}
        elif self.name.startswith("mysqlconnector") and not prepared:
            options = {"buffered": True}
        if prepared:
            options["prepared"] = True
        return await go(conn.cursor(*how, **options))

    async def execute(self, conn: Any, sql: str, *args: Any, **how: Any) -> Any:
        cursor = await self.cursor(conn, **how)
        try:
            await go(cursor.execute(sql, *args))
            return list(await go(cursor.fetchall())) if cursor.description else []
        finally:
            await go(cursor.close())

    async def ask(self, conn: Any, number: int) -> Any:
        return (await self.execute(conn, f"SELECT {number}"))[0][0]

    async def set_autocommit(self, conn: Any, on: bool) -> None:
        if self.name in ("mariadbconnector", "mysqlconnector"):
            conn.autocommit = on
        elif self.name == "mysqlconnector_async":
            await conn.set_autocommit(on)
        else:
            await go(conn.autocommit(on))


async def go(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


# ------------------------------------------------------------------------------------------------ the kinds of calls


async def select(it: Subject, conn: Any) -> None:
    await it.execute(conn, "SELECT 7, 'x', NULL")


async def parameters(it: Subject, conn: Any) -> None:
    await it.execute(conn, "SELECT %s, %s", (7, "it's"))


async def rows(it: Subject, conn: Any) -> None:
    await it.execute(conn, "SELECT id, n FROM strikes LIMIT 3")


async def insert(it: Subject, conn: Any) -> None:
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")


async def update(it: Subject, conn: Any) -> None:
    await it.execute(conn, "UPDATE strikes SET n = 9 WHERE id < 0")


async def refused(it: Subject, conn: Any) -> None:
    with suppress(*it.driver.errors):
        await it.execute(conn, "SELECT * FROM no_such_table")


async def many(it: Subject, conn: Any) -> None:
    cursor = await it.cursor(conn)
    await go(cursor.executemany("INSERT INTO strikes (n) VALUES (%s)", [(1,), (2,), (3,)]))
    await go(cursor.close())


async def commit(it: Subject, conn: Any) -> None:
    await go(conn.commit())


async def rollback(it: Subject, conn: Any) -> None:
    await go(conn.rollback())


async def driver_rollback(it: Subject, conn: Any) -> None:
    await it.execute(conn, "INSERT INTO strikes (n) VALUES (8)")
    await go(it.driver.rollback(conn))


async def ping(it: Subject, conn: Any) -> None:
    await go(it.driver.ping(conn, 5.0))


async def switching(it: Subject, conn: Any) -> None:
    await it.set_autocommit(conn, True)
    await it.set_autocommit(conn, False)


async def warnings_shown(it: Subject, conn: Any) -> None:
    await it.execute(conn, "SELECT 1/0")
    if hasattr(conn, "show_warnings"):
        await go(conn.show_warnings())


async def charset(it: Subject, conn: Any) -> None:
    for name, args in (("set_character_set", ("utf8mb4",)), ("set_charset", ("utf8mb4",)), ("set_charset_collation", ("utf8mb4",))):
        if hasattr(conn, name):
            with suppress(AttributeError):  # asyncmy's is mistaken in a name
                await go(getattr(conn, name)(*args))
            return


async def database(it: Subject, conn: Any) -> None:
    name = it.where["database"]
    if hasattr(conn, "select_db"):
        await go(conn.select_db(name))
    elif it.is_async:
        await conn.cmd_init_db(name)
    else:
        conn.database = name


async def results(it: Subject, conn: Any) -> None:
    cursor = await it.cursor(conn)
    try:
        if it.name.startswith("mysqlconnector"):
            await go(cursor.callproc("strikes_two"))
        else:
            await go(cursor.execute("CALL strikes_two()"))
            while await go(cursor.nextset()):
                pass
    finally:
        await go(cursor.close())


async def stream(it: Subject, conn: Any) -> None:
    cursor = await it.cursor(conn, stream=True)
    await go(cursor.execute("SELECT id, n FROM strikes LIMIT 4"))
    await go(cursor.fetchone())
    await go(cursor.fetchmany(2))
    await go(cursor.fetchall())
    await go(cursor.close())


async def half_read(it: Subject, conn: Any) -> None:
    cursor = await it.cursor(conn, stream=True)
    await go(cursor.execute("SELECT id, n FROM strikes LIMIT 4"))
    await go(cursor.fetchone())
    if it.driver.is_streaming(conn):
        await go(it.driver.drain(conn))
    await go(cursor.close())


async def prepared(it: Subject, conn: Any) -> None:
    if it.name in ("mariadbconnector",) or it.name.startswith("mysqlconnector"):
        cursor = await it.cursor(conn, prepared=True)
        for number in (1, 2):
            await go(cursor.execute("SELECT ?" if it.name == "mariadbconnector" else "SELECT %s", (number,)))
            await go(cursor.fetchall())
        await go(cursor.close())
    elif hasattr(conn, "prepare"):
        statement = await conn.prepare("SELECT ?")
        await statement.execute((1,))
        await statement.execute((2,))
        await statement.close()


async def load(it: Subject, conn: Any) -> None:
    if it.name == "asyncmy":
        return  # it is mistaken in a type there
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("77\n78\n")
        file.flush()
        await it.execute(conn, f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE strikes (n)")


async def restored(it: Subject, conn: Any) -> None:
    traits = it.driver.traits(conn)
    await it.set_autocommit(conn, True)
    await go(it.driver.restore(conn, traits))


async def reset(it: Subject, conn: Any) -> None:
    for name in ("reset", "cmd_reset_connection"):
        if hasattr(conn, name):
            await go(getattr(conn, name)())
            return


CALLS: list[Callable[[Subject, Any], Awaitable[None]]] = [
    select, parameters, rows, insert, update, refused, many, commit, rollback, driver_rollback, ping, switching, warnings_shown, charset,
    database, results, stream, half_read, prepared, load, restored, reset,
]  # fmt: skip


# ------------------------------------------------------------------------------------------------ the sweep


class Sweep:
    """One driver, all kinds of calls, all steps."""

    def __init__(self, it: Subject, *, opcodes: bool, kinds: list[type[BaseException]]) -> None:
        self.it, self.opcodes, self.kinds = it, opcodes, kinds
        self.runner = asyncio.Runner() if it.is_async else None
        self.figures: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.told: list[str] = []
        self.number = 1000
        self.conn: Any = None
        self.traits: Any = None

    def run(self, coroutine: Any) -> Any:
        """Run to its end, or raise Hang."""
        if self.runner is not None:

            async def bounded() -> Any:
                try:
                    async with asyncio.timeout(LIMIT) as limit:
                        return await coroutine
                except TimeoutError:
                    if limit.expired():
                        raise Hang from None
                    raise

            faulthandler.dump_traceback_later(3 * LIMIT, exit=True)
            try:
                return self.runner.run(bounded())
            finally:
                faulthandler.cancel_dump_traceback_later()
        with watched():
            try:
                coroutine.send(None)
            except StopIteration as end:
                return end.value
            raise AssertionError("a blocking driver waited")

    def fresh(self) -> Any:
        """A connection in step, with nothing open."""
        if self.conn is None:
            self.conn = self.run(self.it.connect())
            self.traits = self.it.driver.traits(self.conn)
        return self.conn

    def sweep(self, call: Callable[[Subject, Any], Awaitable[None]]) -> None:
        for kind in self.kinds:
            at, last = 1, self.steps_of(call, kind)
            while at <= last:
                self.strike(call, kind, at)
                at += 1
        if self.it.is_async:
            waits = self.waits_of(call)
            for error in (asyncio.CancelledError, Struck, StruckHard, TimeoutError):
                for at in range(1, waits + 1):
                    self.throw(call, error, at)

    def steps_of(self, call: Callable[[Subject, Any], Awaitable[None]], kind: type[BaseException]) -> int:
        striker = Striker(0, kind, opcodes=self.opcodes, inside=call.__code__ if self.it.is_async else None)
        for _ in range(2):  # the first time things are imported and remembered
            striker.steps = 0
            self.traced(call, striker)
            self.look(call.__name__, "unstruck", struck=False)
        return striker.steps

    def waits_of(self, call: Callable[[Subject, Any], Awaitable[None]]) -> int:
        waits = [0]
        self.run(throwing(call(self.it, self.fresh()), 0, Struck(), waits))
        self.look(call.__name__, "unstruck", struck=False)
        return waits[0]

    def traced(self, call: Callable[[Subject, Any], Awaitable[None]], striker: Striker) -> None:
        async def work() -> None:
            sys.settrace(striker)
            try:
                await call(self.it, conn)
            finally:
                sys.settrace(None)

        conn = self.fresh()
        self.run(work())

    def strike(self, call: Callable[[Subject, Any], Awaitable[None]], kind: type[BaseException], at: int) -> None:
        striker = Striker(at, kind, opcodes=self.opcodes, inside=call.__code__ if self.it.is_async else None)
        self.figures["strikes"] += 1
        self.struck(call, lambda: self.traced(call, striker), lambda: f"{kind.__name__} at step {at}: {striker.place}")

    def throw(self, call: Callable[[Subject, Any], Awaitable[None]], error: type[BaseException], at: int) -> None:
        self.figures["throws"] += 1
        self.struck(
            call, lambda: self.run(throwing(call(self.it, self.fresh()), at, error(), [0])), lambda: f"{error.__name__} thrown at wait {at}"
        )

    def struck(self, call: Callable[[Subject, Any], Awaitable[None]], do: Callable[[], Any], where: Callable[[], str]) -> None:
        try:
            do()
        except Hang as error:
            self.fault("hang in the call", call.__name__, where(), error)
            self.drop()
            return
        except BaseException:  # the strike, or what the library made of it
            self.figures["raised"] += 1
        self.look(call.__name__, where(), struck=True)

    # -- what is looked at afterwards

    def look(self, call: str, where: str, *, struck: bool) -> None:
        driver, conn = self.it.driver, self.conn
        try:
            if driver.is_quiet(conn):
                self.figures["quiet"] += 1
                self.look_in_step(call, where)
            elif driver.is_streaming(conn):
                self.figures["streaming"] += 1
                self.run(go(driver.drain(conn)))
                self.look_in_step(call, where)
            else:
                self.figures["not quiet"] += 1
                if not struck:
                    self.fault("not quiet without a strike", call, where)
                self.look_refused(call, where)
                self.drop()
        except Hang as error:
            self.fault("hang", call, where, error)
            self.drop()
        except Exception as error:
            self.fault("error on a quiet connection", call, where, error)
            self.drop()

    def look_in_step(self, call: str, where: str) -> None:
        driver, conn = self.it.driver, self.conn
        self.number += 1
        clean = driver.is_clean(conn, self.traits)
        told = driver.is_in_transaction(conn)
        got = self.run(self.it.ask(conn, self.number))
        if got != self.number:
            self.fault(f"wrong answer: {got!r}", call, where)
            self.drop()
            return
        mode = self.run(self.it.execute(conn, "SELECT @@autocommit"))[0][0]
        if clean and (mode != 0 or told is not False):
            self.fault("called clean, but it is not", call, where)
        self.run(go(conn.rollback()))
        if self.run(self.it.ask(conn, -self.number)) != -self.number:
            self.fault("wrong answer, later", call, where)
            self.drop()
        elif not driver.is_clean(conn, self.traits):
            self.drop()

    def look_refused(self, call: str, where: str) -> None:
        """What is out of step must refuse every statement, at once and as a lost connection."""
        driver, conn = self.it.driver, self.conn
        if driver.is_clean(conn, self.traits):
            self.fault("clean, but not quiet", call, where)
        if driver.is_in_transaction(conn) is False:
            self.fault("not quiet, but known to be in no transaction", call, where)
        for name, attempt in (
            ("execute", lambda: self.it.ask(conn, 1)), ("commit", lambda: go(conn.commit())), ("rollback", lambda: go(conn.rollback())),
            ("ping", lambda: go(driver.ping(conn, 2.0))), ("driver.commit", lambda: go(driver.commit(conn))),
            ("driver.rollback", lambda: go(driver.rollback(conn))),
        ):  # fmt: skip
            started = time.monotonic()
            try:
                self.run(attempt())
            except Hang as error:
                self.fault(f"{name} hangs", call, where, error)
                return
            except Exception as error:
                if not driver.classify(error).is_lost:
                    self.fault(f"{name} refused as {type(error).__name__}, no lost connection", call, where, error)
            else:
                self.fault(f"{name} was not refused", call, where)
            if time.monotonic() - started > 3:
                self.fault(f"{name} was refused late", call, where)
            if driver.is_quiet(conn):
                self.fault(f"quiet again after {name}", call, where)

    def drop(self) -> None:
        """Close it; closing must neither wait nor crash."""
        conn, self.conn = self.conn, None
        try:
            with watched() if self.runner is None else nullcontext():
                self.it.driver.close(conn)
                self.it.driver.close(conn)
        except Hang as error:
            self.fault("hang in close()", "", "", error)
        if self.runner is not None:
            self.runner.run(asyncio.sleep(0))

    def fault(self, what: str, call: str, where: str, error: BaseException | None = None) -> None:
        self.faults[what] += 1
        if self.faults[what] <= TOLD:
            lines = [f"{what} ({call}, {where})"]
            if error is not None:
                lines += traceback.format_exception(error, limit=-12)
            self.told.append("\n".join(lines))


@contextmanager
def watched() -> Iterator[None]:
    """Raise Hang in here when it takes too long; a C library that waits for ever ends the program."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(3 * LIMIT, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


async def prepare(it: Subject) -> None:
    conn = await it.connect()
    for sql in (
        "DROP TABLE IF EXISTS strikes", "CREATE TABLE strikes (id INT PRIMARY KEY AUTO_INCREMENT, n INT)",
        "INSERT INTO strikes (n) VALUES (1), (2), (3), (4), (5), (6)", "DROP PROCEDURE IF EXISTS strikes_two",
        "CREATE PROCEDURE strikes_two() BEGIN SELECT 1; SELECT 2; END",
    ):  # fmt: skip
        await it.execute(conn, sql)
    await go(conn.commit())
    it.driver.close(conn)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("where", type=json.loads)
    parser.add_argument("--every", choices=["line", "opcode"], default="line")
    parser.add_argument("--only", default="")
    parser.add_argument("--strikes", default="Struck,StruckHard")
    given = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.disable()
    sys.unraisablehook = lambda _: None
    kinds = [{"Struck": Struck, "StruckHard": StruckHard}[name] for name in given.strikes.split(",")]
    sweep = Sweep(Subject(given.name, given.where), opcodes=given.every == "opcode", kinds=kinds)
    sweep.run(prepare(sweep.it))
    took: dict[str, float] = {}
    for call in CALLS:
        if not given.only or call.__name__ in given.only.split(","):
            started = time.monotonic()
            sweep.sweep(call)
            took[call.__name__] = round(time.monotonic() - started, 2)
    if sweep.conn is not None:
        sweep.drop()
    gc.collect()
    print(json.dumps({"figures": sweep.figures, "faults": sweep.faults, "told": sweep.told, "took": took}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
