"""Strike a driver at every step of its Python code, and see that it never gives an answer to the
wrong question.

A strike is an exception raised where the driver does not expect one, as a signal handler, a time
limit or a cancellation raises it. Each kind of call is run once for each step of it, struck at that
step, and then the connection is looked at: either it is not quiet, then it must refuse every
further statement at once; or it is quiet, then the next question must get its own answer. A program
that sweeps runs in an interpreter of its own, so that a crash of a C library is seen by its exit
code. The files striking_….py are such programs: each has a :class:`Subject` and its kinds of calls.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import inspect
import json
import logging
import os
import signal
import sys
import time
import traceback
import types
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: One call to the server may take this long; a longer one hangs.
LIMIT = 6.0
#: How often each fault is told in full.
TOLD = 5


_ASYNCIO = os.path.dirname(asyncio.__file__)
#: Python's selector keeps descriptors in two books, its own and the kernel's. A strike in between
#: has it refuse the next wait for that descriptor, whatever library asks for it. All that a driver
#: can do is to tell the caller that the connection is lost, and never to use it again.
_LOOPS_BOOKS = "/selectors.py:"


class Struck(Exception):  # noqa: N818 - what happened
    """A strike that ``except Exception`` catches."""


class StruckHard(BaseException):
    """A strike that only ``except BaseException`` catches."""


class Hang(BaseException):
    """A call took too long."""


async def go(value: Any) -> Any:
    """The result of a blocking method, or of an awaited one."""
    return await value if inspect.isawaitable(value) else value


class Subject:
    """A driver, and how its library is used.

    All methods are coroutines; a blocking driver's never wait.
    """

    name: str
    is_async: bool
    driver: Any
    #: How the files end that are never struck.
    spared: tuple[str, ...] = ()
    #: Whether nothing of asyncio's own code is struck: what that makes of an exception is not the
    #: driver's.
    spares_loop = False
    #: Whether the library finds its way back by itself, so that a statement on a connection that is
    #: not quiet is answered.
    resumes = False
    #: The calls after which it does, if it does after some only.
    resumes_after: tuple[str, ...] = ()

    async def connect(self) -> Any:
        """A new connection."""
        return await go(self.driver.connect(5.0))

    async def prepare(self) -> None:
        """Make what the calls need."""

    async def ask(self, conn: Any, number: int) -> Any:
        """*number*, by way of the server."""
        raise NotImplementedError

    async def commit(self, conn: Any) -> None:
        """As the application commits."""
        await go(conn.commit())

    async def rollback(self, conn: Any) -> None:
        """As the application rolls back."""
        await go(conn.rollback())

    async def denies(self, conn: Any) -> str | None:
        """What the server says against a connection that the driver calls clean; None: nothing."""
        return None


Call = Callable[[Any, Any], Awaitable[None]]


class Striker:
    """A trace function that raises *kind* at the step number *at* of what runs below *own* files;
    0: it only counts.
    """

    def __init__(
        self,
        at: int,
        kind: type[BaseException],
        *,
        opcodes: bool,
        own: set[str],
        inside: types.CodeType | None,
        it: Subject,
    ) -> None:
        self.at, self.kind, self.opcodes, self.own, self.inside = at, kind, opcodes, own, inside
        self.spared, self.spares_loop = it.spared, it.spares_loop
        self.steps = 0
        self.place = ""

    def __call__(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if name in self.own or name.endswith(self.spared) or not self._is_ours(frame):
            return None
        frame.f_trace_opcodes = self.opcodes
        return self._step(frame, event, arg)

    def _is_ours(self, frame: types.FrameType | None) -> bool:
        """Whether this is the driver's, in a call of the code under test.

        An event loop does other things too.
        """
        if self.inside is None:
            return True
        if self.spares_loop and frame is not None and frame.f_code.co_filename.startswith(_ASYNCIO):
            return False
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
                file = frame.f_code.co_filename.rpartition("site-packages/")[2]
                self.place = f"{event} {file}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self.kind
        return self._step


@types.coroutine
def throwing(coroutine: Any, at: int, error: BaseException, waits: list[int]) -> Any:
    """Await *coroutine*, but raise *error* in it where it waits for the time number *at*."""
    send, value = coroutine.send, None
    while True:
        try:
            future = send(value)
            waits[0] += 1
            if waits[0] == at:
                future = coroutine.throw(error)
        except StopIteration as end:
            return end.value
        try:
            send, value = coroutine.send, (yield future)
        except BaseException as raised:  # what it waited for, or a cancellation
            send, value = coroutine.throw, raised


class Sweep:
    """One driver, all kinds of calls, all steps."""

    def __init__(
        self, it: Subject, *, own: set[str], opcodes: bool, kinds: Sequence[type[BaseException]]
    ) -> None:
        self.it, self.own, self.opcodes, self.kinds = it, {__file__, *own}, opcodes, kinds
        self.runner = asyncio.Runner() if it.is_async else None
        self.figures: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.told: list[str] = []
        self.number = 1000
        self.conn: Any = None
        self.traits: Any = None
        #: The last strikes. One may show its effect in what comes after it.
        self.last: deque[str] = deque(maxlen=TOLD)

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

            not_for_ever()
            return self.runner.get_loop().run_until_complete(bounded())
        with watched():
            try:
                coroutine.send(None)
            except StopIteration as end:
                return end.value
            raise AssertionError("a blocking driver waited")

    def fresh(self) -> Any:
        """A connection in step, with nothing open."""
        if self.conn is None:
            try:
                self.conn = self.run(self.it.connect())
            except BaseException as error:
                self.fault("cannot connect", "", "", error)
                raise SystemExit("\n".join(self.told)) from error
            self.traits = self.it.driver.traits(self.conn)
        return self.conn

    def sweep(self, call: Call) -> None:
        """Strike *call* at every step; where it waits, throw at every wait too."""
        for kind in self.kinds:
            for at in range(1, self.steps_of(call, kind) + 1):
                self.strike(call, kind, at)
        if self.it.is_async:
            waits = self.waits_of(call)
            for error in (asyncio.CancelledError, Struck, StruckHard, TimeoutError):
                for at in range(1, waits + 1):
                    self.throw(call, error, at)

    def steps_of(self, call: Call, kind: type[BaseException]) -> int:
        """How many steps *call* takes."""
        striker = self.striker(call, kind, 0)
        for _ in range(2):  # the first time things are imported and remembered
            striker.steps = 0
            self.traced(call, striker)
            self.look(call.__name__, "unstruck", struck=False)
        return striker.steps

    def waits_of(self, call: Call) -> int:
        """How often *call* waits."""
        waits = [0]
        self.run(throwing(call(self.it, self.fresh()), 0, Struck(), waits))
        self.look(call.__name__, "unstruck", struck=False)
        return waits[0]

    def striker(self, call: Any, kind: type[BaseException], at: int) -> Striker:
        """What strikes *call* at the step number *at*."""
        return Striker(
            at,
            kind,
            opcodes=self.opcodes,
            own=self.own,
            inside=call.__code__ if self.it.is_async else None,
            it=self.it,
        )

    def traced(self, call: Call, striker: Striker) -> None:
        """Run *call* under *striker*."""

        async def work() -> None:
            sys.settrace(striker)
            try:
                await call(self.it, conn)
            finally:
                sys.settrace(None)

        conn = self.fresh()
        self.run(work())

    def strike(self, call: Call, kind: type[BaseException], at: int) -> None:
        """Strike *call* once."""
        striker = self.striker(call, kind, at)
        self.figures["strikes"] += 1
        self.struck(
            call,
            lambda: self.traced(call, striker),
            lambda: f"{kind.__name__} at step {at}: {striker.place}",
        )

    def throw(self, call: Call, error: type[BaseException], at: int) -> None:
        """Throw into *call* once."""
        self.figures["throws"] += 1
        self.struck(
            call,
            lambda: self.run(throwing(call(self.it, self.fresh()), at, error(), [0])),
            lambda: f"{error.__name__} thrown at wait {at}",
        )

    def struck(self, call: Any, do: Callable[[], Any], where: Callable[[], str]) -> None:
        """Do it, and look at the connection afterwards."""
        self.fresh()
        try:
            do()
        except Hang as error:
            self.fault("hang in the call", call.__name__, where(), error)
            self.drop()
            return
        except BaseException:  # the strike, or what the library made of it
            self.figures["raised"] += 1
        self.last.append(where())
        self.look(call.__name__, where(), struck=True)

    # -- what is looked at afterwards

    def look(self, call: str, where: str, *, struck: bool) -> None:
        """The connection after *call*."""
        driver, conn = self.it.driver, self.conn
        streaming = getattr(driver, "is_streaming", lambda _conn: False)
        try:
            if driver.is_quiet(conn):
                self.figures["quiet"] += 1
                self.look_in_step(call, where)
            elif streaming(conn):
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
            if not (_LOOPS_BOOKS in where and driver.classify(error).is_lost):
                self.fault("error on a quiet connection", call, where, error)
            elif driver.is_quiet(conn) or driver.is_clean(conn, self.traits):
                self.fault("lost, but fit for another use", call, where, error)
            else:
                self.figures["lost in the loop"] += 1
            self.drop()

    def look_in_step(self, call: str, where: str) -> None:
        """A quiet connection: each question gets its own answer, and what is called clean is
        clean.
        """
        driver, conn = self.it.driver, self.conn
        if driver.is_clean(conn, self.traits):
            told = driver.is_in_transaction(conn)
            denied = self.run(self.it.denies(conn))
            if denied is not None or told is not False:
                self.fault(f"called clean, but {denied or 'in a transaction'}", call, where)
        self.number += 1
        got = self.run(self.it.ask(conn, self.number))
        if got != self.number:
            self.fault(f"wrong answer: {got!r}", call, where)
            self.drop()
            return
        try:
            self.run(self.it.rollback(conn))
        except (
            driver.errors
        ):  # in step, but its library takes it for one in a block of its own: the pool closes it
            self.figures["unfit"] += 1
            if driver.is_clean(conn, self.traits):
                self.fault("called clean, but cannot be rolled back", call, where)
            self.drop()
            return
        if self.run(self.it.ask(conn, -self.number)) != -self.number:
            self.fault("wrong answer, later", call, where)
            self.drop()
            return
        self.run(self.it.rollback(conn))
        if not driver.is_clean(conn, self.traits):
            self.drop()

    def look_refused(self, call: str, where: str) -> None:
        """What is out of step must refuse every statement, at once and as a lost connection."""
        driver, conn, it = self.it.driver, self.conn, self.it
        resumes = it.resumes or call in it.resumes_after
        if driver.is_clean(conn, self.traits):
            self.fault("clean, but not quiet", call, where)
        if driver.is_in_transaction(conn) is False:
            self.fault("not quiet, but known to be in no transaction", call, where)
        for name, attempt in (
            ("execute", lambda: it.ask(conn, 1)), ("commit", lambda: it.commit(conn)), ("rollback", lambda: it.rollback(conn)),  # noqa: E501
            ("ping", lambda: go(driver.ping(conn, 2.0))), ("driver.commit", lambda: go(driver.commit(conn))),  # noqa: E501
            ("driver.rollback", lambda: go(driver.rollback(conn))),
        ):  # fmt: skip
            started = time.monotonic()
            try:
                got = self.run(attempt())
            except Hang as error:
                self.fault(f"{name} hangs", call, where, error)
                return
            except Exception as error:
                if not driver.classify(error).is_lost and not (resumes and driver.is_quiet(conn)):
                    self.fault(
                        f"{name} refused as {type(error).__name__}, no lost connection",
                        call,
                        where,
                        error,
                    )
            else:
                if not resumes or (name == "execute" and got != 1):
                    self.fault(f"{name} was not refused", call, where)
            if time.monotonic() - started > 3:
                self.fault(f"{name} was refused late", call, where)
            if driver.is_quiet(conn) and not resumes:
                self.fault(f"quiet again after {name}", call, where)

    def drop(self) -> None:
        """Close it; closing must neither wait nor crash."""
        conn, self.conn = self.conn, None
        try:
            self.run(self.closed(conn))
        except Hang as error:
            self.fault("hang in close()", "", "", error)
        if self.runner is not None:
            self.runner.get_loop().run_until_complete(asyncio.sleep(0))

    async def closed(self, conn: Any) -> None:
        """Close *conn*, twice, where its event loop runs."""
        self.it.driver.close(conn)
        self.it.driver.close(conn)

    def fault(self, what: str, call: str, where: str, error: BaseException | None = None) -> None:
        """Note what must not be."""
        self.faults[what] += 1
        if self.faults[what] <= TOLD:
            lines = [f"{what} ({call}, {where})", *(f"earlier: {each}" for each in self.last)]
            if error is not None:
                lines += traceback.format_exception(error, limit=-12)
            self.told.append("\n".join(lines))


@contextmanager
def watched() -> Iterator[None]:
    """Raise Hang in here when it takes too long; a C library that waits for ever ends the
    program.
    """

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    not_for_ever()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


_armed = [0.0]


def not_for_ever() -> None:
    """End the program where a call that begins now never ends.

    To arm the timer takes half a millisecond: once a second will do.
    """
    now = time.monotonic()
    if now - _armed[0] > 1:
        _armed[0] = now
        faulthandler.dump_traceback_later(3 * LIMIT, exit=True)


def main(subject: Callable[[str, dict[str, Any]], Subject], calls: Sequence[Call], own: str) -> int:
    """The program: ``NAME WHERE [--every opcode] [--only CALL,…] [--strikes Struck,StruckHard]``.

    Prints figures as JSON.
    """
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
    kinds = [
        {"Struck": Struck, "StruckHard": StruckHard}[name] for name in given.strikes.split(",")
    ]
    sweep = Sweep(
        subject(given.name, given.where), own={own}, opcodes=given.every == "opcode", kinds=kinds
    )
    sweep.run(sweep.it.prepare())
    took: dict[str, float] = {}
    for call in calls:
        if not given.only or call.__name__ in given.only.split(","):
            started = time.monotonic()
            sweep.sweep(call)
            took[call.__name__] = round(time.monotonic() - started, 2)
    if sweep.conn is not None:
        sweep.drop()
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    print(
        json.dumps(
            {"figures": sweep.figures, "faults": sweep.faults, "told": sweep.told, "took": took}
        )
    )
    return 0
