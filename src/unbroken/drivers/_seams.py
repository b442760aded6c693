"""Seams: the private parts of a library that a driver relies on, and the proof that they still
work.

A driver follows what its library sends by overriding methods that the library never promised to
keep. A release that renames one of them would go unnoticed: nothing would be reported, and a unit
of work that wrote would look like one that only read. So a driver trusts no seam until it is
proven, once per process:

1. **Version.** The installed version is within the tested range (``TESTED`` in the driver's file).
2. **Shape.** Each :class:`Seam` exists, with the parameters and the callers that the driver knows.
3. **Behaviour.** On the first connection the driver sends a few harmless statements as an
   application would send them. Each must be reported with its text, and the driver's answers about
   the connection must follow (:class:`Trial`).

A driver that fails one of these is *blind* (``driver.blindness`` holds the reason). The ledger of
each unit of work notes a doubt, so no unit is replayed. If shape or behaviour failed, the driver
also stops answering from its own bookkeeping. One warning is logged. Everything else works as
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from inspect import Parameter, isbuiltin, ismethoddescriptor, signature
from types import CodeType, EllipsisType, TracebackType
from typing import Any

from unbroken.abc import Connection
from unbroken.ledger import scope, unit
from unbroken.logs import Part
from unbroken.messages.drivers import DRIVER_UNKNOWN

log = Part("driver")


@dataclass(frozen=True, slots=True)
class Seam:
    """One private part of a library.

    *owner* is ``module:Class`` or ``module``. *parameters* are the names of all parameters of
    *name*; a final ``...`` allows for more. None: the parameters are not checked, as for attributes
    and methods written in C. *calls* are names that the function's own code must mention: the seams
    that it uses.
    """

    owner: str
    name: str
    parameters: tuple[str | EllipsisType, ...] | None = None
    calls: tuple[str, ...] = ()

    def flaw(self) -> str | None:
        """Return how the installed library's seam differs from the known one; None: it does not.

        Imports the library.
        """
        place = f"{self.owner.replace(':', '.')}.{self.name}"
        try:
            found = getattr(_resolve(self.owner), self.name)
        except (ImportError, AttributeError):
            return f"it has no {place}"
        if self.parameters is not None and not _takes(found, self.parameters):
            return f"{place} has unexpected parameters"
        code = _code_of(found)
        missing = [name for name in self.calls if code is None or name not in _names(code)]
        return f"{place} does not use {missing[0]}" if missing else None


def _resolve(owner: str) -> Any:
    module, _, path = owner.partition(":")
    found: Any = import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


def _takes(function: Any, wanted: tuple[str | EllipsisType, ...]) -> bool:
    try:
        found = [
            each
            for each in signature(function).parameters.values()
            if each.kind is not Parameter.VAR_KEYWORD
        ]
    except (TypeError, ValueError):
        # written in C, without a signature: only its behaviour can be tested
        return isbuiltin(function) or ismethoddescriptor(function)
    names: list[str | EllipsisType] = [each.name for each in found]
    return (
        names[: len(wanted) - 1] == list(wanted[:-1])
        if wanted[-1:] == (...,)
        else names == list(wanted)
    )


def _code_of(function: Any) -> CodeType | None:
    function = getattr(function, "__func__", function)
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _names(code: CodeType) -> set[str]:
    """Return every name that *code* mentions, functions inside it included."""
    names = set(code.co_names)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            names |= _names(each)
    return names


@cache
def flaw(seams: Sequence[Seam]) -> str | None:
    """Return the first flaw among *seams*; None: all exist. Each process checks once."""
    return next((found for seam in seams if (found := seam.flaw()) is not None), None)


# -- versions --------------------------------------------------------------------------------------


def installed_version(module: str, distribution: str | None) -> str | None:
    """Return the version of the library *module*, which *distribution* installs; None if it cannot
    be determined.

    PyMySQL's own ``__version__`` is mysqlclient's, which it replaces. So the installed distribution
    is asked first.
    """
    for name in ((distribution or module).partition("[")[0], module):  # psycopg2-binary, psycopg2
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    version = getattr(import_module(module), "__version__", None)
    return version.split()[0] if isinstance(version, str) and version else None


def is_within(version: str, tested: str) -> bool:
    """Return whether *version* lies within *tested*, such as ``>=1.1,<1.3``.

    A pre-release of the upper limit itself lies outside.
    """
    found = _numbers(version)
    for bound in tested.split(","):
        limit = _numbers(bound.strip("<>= "))
        if bound.startswith(">=") and found < limit:
            return False
        if bound.startswith("<") and not found[: len(limit)] < limit:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:  # "0rc1"
            break
    return tuple(numbers)


@cache
def untested(module: str, distribution: str | None, tested: str) -> str | None:
    """Return the reason why the installed version of *module* is not among the *tested* ones; None:
    it is.
    """
    if not tested:
        return None
    version = installed_version(module, distribution)
    if version is None:
        return "its version is unknown"
    return None if is_within(version, tested) else f"version {version} was not tested"


# -- behaviour -------------------------------------------------------------------------------------


class Trial(unit.Unit):
    """A ledger for a driver's own statements on *conn*. It shows whether the driver reports
    everything sent.

    As a context manager it watches *conn* and replaces any unit of work of the caller's. It records
    each report: ``("SELECT 1", False)`` for a statement and whether it commits itself,
    ``"committing"``, ``"committed"``, ``"commit failed"``, ``"rolled back"``,
    ``("doubt", reason)``. A BEGIN is recorded without its options.
    """

    __slots__ = ("_aside", "_conn", "_driver", "log")

    def __init__(self, driver: Any, conn: Connection) -> None:
        super().__init__()
        self.log: list[Any] = []
        self._driver, self._conn = driver, conn

    def __enter__(self) -> Trial:
        self._aside = scope.aside(self)
        self._aside.__enter__()
        self.join(id(self._conn))
        self._driver.watch(self._conn)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._driver.unwatch(self._conn)
        finally:
            self._conn = None  # a context may keep the trial, which must not keep the connection
            self.close()
            self._aside.__exit__(kind, error, trace)

    def flaw(self, expected: Sequence[Any]) -> str | None:
        """Return the flaw in the reports so far, which must be *expected*, in that order; None:
        there is none.
        """
        if self.log == list(expected):
            return None
        missing = next((each for each in expected if each not in self.log), None)
        what = "unexpected reports" if missing is None else f"no report of {missing!r}"
        return f"a test of how it sends statements found {what}"

    def statement(
        self, sql: str | bytes | None, autocommit: bool | None, *, conn_id: int | None = None
    ) -> None:
        """Record a statement."""
        if sql is None:
            self._note((None, autocommit), conn_id)
            return
        text = (
            bytes(sql).decode("utf-8", "replace")
            if isinstance(sql, bytes | bytearray | memoryview)
            else sql
        )
        self._note(("BEGIN" if text[:5].upper() == "BEGIN" else text, autocommit), conn_id)

    def committing(self, *, conn_id: int | None = None) -> None:
        """Record that a COMMIT is about to be sent."""
        self._note("committing", conn_id)

    def committed(self, *, conn_id: int | None = None) -> None:
        """Record that a COMMIT succeeded."""
        self._note("committed", conn_id)

    def commit_failed(self, *, conn_id: int | None = None) -> None:
        """Record that a COMMIT failed."""
        self._note("commit failed", conn_id)

    def commit_doubted(self, *, conn_id: int | None = None) -> None:
        """Record that the result of a COMMIT is unknown."""
        self._note("commit doubted", conn_id)

    def rolled_back(self, *, conn_id: int | None = None) -> None:
        """Record a rollback."""
        self._note("rolled back", conn_id)

    def doubt(self, reason: str, *, conn_id: int | None = None) -> None:
        """Record a doubt."""
        self._note(("doubt", reason), conn_id)

    def _note(self, what: Any, conn_id: int | None) -> None:
        self.log.append(what if conn_id == id(self._conn) else ("another connection", what))


# -- the verdict -----------------------------------------------------------------------------------

#: The statement that a trial sends. No other code sends this text, and it needs no table.
PROBE = "SELECT 'unbroken'"


def flaw_of_status(opened: bool | None, closed: bool | None) -> str | None:
    """Return the flaw in a driver's answers to whether a transaction is open: within one, and after
    it.
    """
    return (
        None
        if opened is True and closed is False
        else "its connection does not report whether a transaction is open"
    )


_proven: dict[tuple[str, str, type[Any]], str | None] = {}


def key(driver: Any, conn: Connection) -> tuple[str, str, type[Any]]:
    """Return the scope of a proof by *conn*: this driver and all connections of the same class."""
    return driver.name, type(driver).__qualname__, getattr(type(conn), "unwatched", type(conn))


def verdict(driver: Any, conn: Connection) -> tuple[bool, str | None]:
    """Return whether connections like *conn* were tried before, and the flaw that was found."""
    found = key(driver, conn)
    return found in _proven, _proven.get(found)


def remember(driver: Any, conn: Connection, flawed: str | None) -> None:
    """Keep the result of a trial on *conn* for this process and its children."""
    _proven[key(driver, conn)] = flawed


def warn(driver: Any, module: Any, reason: str) -> None:
    """Log, once per process and driver, that units of work are not replayed with *driver*, and the
    remedy.
    """
    which = (driver.name, type(driver).__qualname__)
    once = ", each for one use only" if _INSTEAD in driver.__dict__ else ""
    version = installed_version(module.MODULE, module.DISTRIBUTION) or "of unknown version"
    log.warning(
        "driver not proven",
        DRIVER_UNKNOWN(
            f"driver {driver.name} {version}: {reason}. Its connections work{once}, but lost work"
            f" is not run again. Tested versions: {module.TESTED}. Install one of these, or a newer"
            " unbroken."
        ),
        about=which,
        once=True,
    )


def distrust(driver: Any, instead: Mapping[str, Callable[..., Any]]) -> None:
    """Make *driver* answer nothing from its own bookkeeping, because its knowledge of its library's
    internals is wrong.

    *instead* are methods that need none of it.
    """
    if _INSTEAD in driver.__dict__:
        return
    answers: dict[str, Callable[..., Any]] = {
        "is_in_transaction": lambda _conn: None,
        "had_autocommit": lambda _conn: None,
        "is_quiet": lambda _conn: False,
        "is_clean": lambda _conn, _traits: False,
        "is_streaming": lambda _conn: False,
        "was_closed": lambda _conn: False,
        "fileno": _guarded(driver.fileno),
        "session_id": _guarded(driver.session_id),
        "traits": _guarded(driver.traits),
        "close": _guarded(driver.close),
        "wants": lambda _conn: None,
        "owes_answer": lambda _conn: False,
        "watch": lambda _conn: None,
        "unwatch": lambda _conn: None,
        **instead,
    }
    driver.__dict__.update(answers)
    driver.__dict__[_INSTEAD] = tuple(answers)


def trust(driver: Any) -> bool:
    """Undo :func:`distrust`. False: there was nothing to undo."""
    names = driver.__dict__.pop(_INSTEAD, ())
    for name in names:
        driver.__dict__.pop(name, None)
    return bool(names)


_INSTEAD = "_instead_of_own"


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any) -> Any:
        try:
            return method(*args)
        except Exception:  # it reads internals that have changed
            return None

    return guarded
