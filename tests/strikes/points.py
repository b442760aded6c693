"""Raises an exception at one chosen point of a piece of work: the start of a line, a call, a
return, or the end of a call.

A signal handler, a debugger's time limit and ``PyThreadState_SetAsyncExc`` raise between two
bytecodes. CPython delivers them where a function starts, after a call, and where a loop goes back.
:class:`Striker` raises at each of these places, and at each line and each return as well, one place
per run of the work.

Two places are left out, because no interpreter delivers an exception there. One is the line event
with which a ``with`` block ends normally: a lock that is held by a ``with`` block relies on that.
The other is the return of a generator or coroutine that is only suspended: it would never be
resumed, and none of its ``finally`` would run.
"""

from __future__ import annotations

import dis
import os
import socket
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import unbroken


class Strike(Exception):  # noqa: N818 - it is no error: it comes from outside
    """What a time limit raises (Celery's soft limit, for one)."""


class HardStrike(BaseException):
    """The same from a library that derives it from BaseException."""


#: What is raised, by the name of the kind. A handler that raises TimeoutError is easily taken for
#: one of the socket's.
KINDS: dict[str, type[BaseException]] = {
    "exception": Strike, "base": HardStrike, "timeout": TimeoutError,
    "interrupt": KeyboardInterrupt, "kept": Strike,
}  # fmt: skip
#: Kinds whose exception is kept while the next jobs run, as one is by its handler: its traceback
#: holds what its frames held.
KEPT = ("kept",)

#: The Python modules of each driver, by the name that the tests give it.
MODULES: dict[str, tuple[str, ...]] = {
    "pymysql": ("pymysql",), "mysqldb": ("MySQLdb",), "mariadbconnector": ("mariadb",),
    "mysqlconnector": ("mysql.connector",),
    "psycopg": ("psycopg",), "psycopg2": ("psycopg2",), "pg8000": ("pg8000",), "sqlite": (),
    "aiomysql": ("aiomysql", "pymysql"), "asyncmy": ("asyncmy",), "asyncpg": ("asyncpg",),
    "mysqlconnector_async": ("mysql.connector",), "psycopg_async": ("psycopg",),
}  # fmt: skip

_OURS = os.path.dirname(unbroken.__file__)
_STDLIB = sysconfig.get_paths()["stdlib"]


class Where:
    """Which code is struck: ours, the driver's, and the standard library's ``socket``, which
    drivers read through.
    """

    def __init__(self, driver: str, more: Iterable[str] = ()) -> None:
        folders = [os.path.dirname(_origin(name)) for name in (*MODULES[driver], *more)]
        self._folders = tuple(folder + os.sep for folder in folders)
        self.includes: Callable[[CodeType], bool] = cache(self._includes)

    def _includes(self, code: CodeType) -> bool:
        name = code.co_filename
        if name == socket.__file__:
            return True
        return name.startswith((_OURS + os.sep, *self._folders))


def _origin(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


@dataclass(frozen=True, slots=True)
class Point:
    """A place where an exception may be raised: the *nth* time that work comes by there in its part
    number *part*.
    """

    part: int
    label: str  #: what the part is about
    code: CodeType
    lasti: int
    event: str
    nth: int

    def __str__(self) -> str:
        line = next(
            (n for first, last, n in self.code.co_lines() if first <= self.lasti < last), None
        )
        where = f"{short(self.code.co_filename)}:{line} {self.event} in {self.code.co_name}"
        return f"{self.label} {where}" + ("" if self.nth == 1 else f", time {self.nth}")

    @property
    def is_like(self) -> tuple[Any, ...]:
        """Equal for the same place in parts that are about the same."""
        return (self.label, self.code, self.lasti, self.event)


class Striker:
    """Surveys the points of a piece of work, and raises at one of them.

    The work says with :meth:`begin` what its next part is about: only the part that is struck is
    slowed down.
    """

    def __init__(self, where: Where) -> None:
        self._includes = where.includes
        self._part, self._label = -1, "start"
        self._found: list[tuple[int, str, CodeType, int, str]] | None = None
        self._target: Point | None = None
        self._kind: type[BaseException] | None = None
        self._left = 0
        self.struck = False

    def begin(self, label: str) -> None:
        """The next part of the work begins."""
        self._part += 1
        self._label = label
        if self._found is None and self._target is not None:
            is_it = self._part == self._target.part and not self.struck
            sys.settrace(self._enter if is_it else None)
            if is_it:
                self._follow(sys._getframe(1))

    def survey(self, work: Callable[[], Any]) -> list[Point]:
        """Run *work* unharmed: all its points, in order."""
        self.look()
        try:
            self.step(work)
        finally:
            found = self.points()
        return found

    def look(self) -> None:
        """What follows in :meth:`step` is surveyed."""
        self._part, self._label, self._found, self._target = -1, "start", [], None

    def points(self) -> list[Point]:
        """The end of a survey."""
        times: Counter[tuple[int, CodeType, int, str]] = Counter()
        points = []
        for part, label, code, lasti, event in self._found or ():
            times[part, code, lasti, event] += 1
            points.append(Point(part, label, code, lasti, event, times[part, code, lasti, event]))
        self._found = None
        return points

    def run(self, work: Callable[[], Any], point: Point, kind: type[BaseException]) -> Any:
        """Run *work* and raise a *kind* at *point*; gives what *work* gave, or raises what it
        raised.

        The exception is made there and kept nowhere: once it was caught, what its traceback holds
        is free.
        """
        self.arm(point, kind)
        return self.step(work)

    def arm(self, point: Point, kind: type[BaseException]) -> None:
        """What follows in :meth:`step` is struck at *point*."""
        self._part, self._label, self._found = -1, "start", None
        self._target, self._kind, self._left, self.struck = point, kind, point.nth, False

    def step(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """A part of the work: points are counted through all parts."""
        if self._found is not None or (
            self._target is not None and self._part == self._target.part and not self.struck
        ):
            sys.settrace(self._enter)
        try:
            return work(*arguments)
        finally:
            sys.settrace(None)

    def _follow(self, frame: FrameType | None) -> None:
        """Trace what has begun already."""
        while frame is not None:
            if self._includes(frame.f_code):
                self._trace(frame)
            frame = frame.f_back

    def _trace(self, frame: FrameType) -> Any:
        target = self._target
        if target is not None and frame.f_code is not target.code:
            return None
        frame.f_trace_opcodes = target is None or target.event == "after"
        frame.f_trace = self._within
        return self._within

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not self._includes(frame.f_code):
            return None
        self._point(frame, "call")
        return self._trace(frame)

    def _within(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            if frame.f_lasti in _after_calls(frame.f_code):
                self._point(frame, "after")
        elif event == "line":
            if frame.f_lasti not in _ends_of_with(frame.f_code):
                self._point(frame, "line")
        elif event == "return" and frame.f_lasti not in _yields(frame.f_code):
            self._point(frame, "return")
        return self._within

    def _point(self, frame: FrameType, event: str) -> None:
        if self._found is not None:
            self._found.append((self._part, self._label, frame.f_code, frame.f_lasti, event))
            return
        target = self._target
        if (
            target is None
            or frame.f_lasti != target.lasti
            or event != target.event
            or frame.f_code is not target.code
        ):
            return
        self._left -= 1
        if self._left == 0 and self._part == target.part and self._kind is not None:
            kind, self._kind, self.struck = self._kind, None, True
            raise kind("struck")


def chosen(points: Iterable[Point], known: set[Any]) -> list[Point]:
    """Of the points of a piece of work the first and the last of each kind, without those in
    *known*, which learns them.
    """
    ends: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        ends.setdefault(point.is_like, []).append(point)
    out = []
    for like, every in ends.items():
        for which, point in (("first", every[0]), ("last", every[-1])):
            if (like, which) not in known and (which == "first" or len(every) > 1):
                out.append(point)
            known.add((like, which))
    return sorted(out, key=lambda point: point.part)


@cache
def short(path: str) -> str:
    """A file's name below the folder of packages that it is in."""
    for folder in (_OURS, _STDLIB):
        if path.startswith(folder + os.sep):
            inner = path[len(folder) + 1 :]
            return inner.partition("site-packages" + os.sep)[2] or inner
    return str(Path(path).name)


@cache
def _after_calls(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions that follow a call: the interpreter looks for signals just before
    them.
    """
    found, previous = set(), ""
    for instruction in dis.get_instructions(code):
        if previous in ("CALL", "CALL_FUNCTION_EX", "CALL_KW"):
            found.add(instruction.offset)
        previous = instruction.opname
    return frozenset(found)


@cache
def _yields(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions that suspend a generator or a coroutine."""
    return frozenset(
        each.offset for each in dis.get_instructions(code) if each.opname == "YIELD_VALUE"
    )


@cache
def _ends_of_with(code: CodeType) -> frozenset[int]:
    """Offsets at which a ``with`` block that was not left by an exception begins to call
    ``__exit__``.
    """
    found = set()
    every = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    for i in range(len(every) - 3):
        three = every[i : i + 3]
        are_none = all(each.opname == "LOAD_CONST" and each.argval is None for each in three)
        if are_none and every[i + 3].opname in ("PRECALL", "CALL"):
            found.add(three[0].offset)
    return frozenset(found)
