"""Work that a unit of work hands to threads, executors and tasks.

Each piece of work runs in the unit that started it.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

from unbroken.ledger import scope
from unbroken.ledger.unit import Unit
from unbroken.net.signals import IN_NO_UNIT

#: Threads of these libraries serve all code. The work that they get brings its own unit.
_POOLS = (
    "concurrent.futures.",
    "multiprocessing.pool",
    "multiprocessing.queues",
    "anyio.",
    "gevent.",
    "trio.",
    "pymongo.",
)


#: Units that the code of this context may be part of. None of them is run again if it uses a
#: connection.
suspects: ContextVar[tuple[weakref.ref[Unit], ...] | None] = ContextVar(
    "unbroken_suspects", default=None
)


class Job:
    """Work that is handed over: runs *function* in the unit and attempt of the code that creates
    the job.
    """

    __slots__ = ("_attempt", "_chain", "_function", "_once", "_was_run", "calls", "unit")

    def __init__(self, unit: Unit, function: Callable[..., Any], *, once: bool = False) -> None:
        self.unit, self._attempt, self._function, self._once = (
            unit,
            (unit, unit.attempts),
            function,
            once,
        )
        self._chain = (*_within.get(), self)
        self.calls = 0  #: how many are in progress
        self._was_run = False

    @property
    def is_done(self) -> bool:
        """Whether a call has ended, or this code is part of one: then the job is not left
        behind.
        """
        return self._was_run or self.is_around

    @property
    def is_around(self) -> bool:
        """Whether this code is part of a call: by its context, or because the call is on this
        thread's stack.
        """
        on_thread = _running.get(threading.get_ident())
        return self in _within.get() or (on_thread is not None and self in on_thread._chain)

    def fail(self) -> None:
        """The job will never be called."""
        self._was_run = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of *function*, or raise its exception."""
        before, function = (scope.current_token(), scope.attempt()), self._function
        if self._once:
            self._function = (
                _nothing  # a thread refers to its job, and this would refer to the thread
            )
        place, ident = scope.around.place(), threading.get_ident()
        outside, below, chain = unit_of_job.get(place), _running.get(ident), _within.get()
        self.calls += 1
        try:
            _within.set(self._chain)
            unit_of_job[place], _running[ident] = self.unit, self
            scope.tell(self.unit, self._attempt)
            return function(*args, **kwargs)
        finally:
            _within.set(chain)
            scope.tell(*before)
            _put_back(unit_of_job, place, outside)
            _put_back(_running, ident, below)
            self.calls -= 1
            self._was_run = True


#: Whether the unit of this context came with a queue item.
fed: ContextVar[bool] = ContextVar("unbroken_fed", default=False)
#: Python's own class. gevent replaces it by a derived one.
THREAD: Any = next(each for each in threading.Thread.__mro__ if "start" in each.__dict__)
TASKS_SHOW_CONTEXTS = sys.version_info >= (3, 12)
#: The jobs that this code is part of. Work that a job starts inherits them.
_within: ContextVar[tuple[Job, ...]] = ContextVar("unbroken_within_jobs", default=())
unit_of_job: dict[object, Unit] = {}  # the unit of the job that runs at a place
_running: dict[int, Job] = {}  # the innermost job on a thread's stack


def _put_back(table: dict[Any, Any], key: object, value: Any) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _nothing() -> None:
    pass


def start_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``threading.Thread.start``."""

    @functools.wraps(original)
    def start(self: threading.Thread) -> None:
        unit = None if IN_NO_UNIT in self.__dict__ else scope.current()
        if unit is None or _is_of_a_pool(self):
            self.__dict__[IN_NO_UNIT] = True
            original(self)
            return
        job = Job(unit, self.run, once=True)
        self.run = job  # type: ignore[method-assign]
        unit.helped_by(lambda: job.is_done)
        try:
            original(self)
        except BaseException:
            job.fail()
            raise

    return start


def _is_of_a_pool(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    works_for = type(thread).__module__ if target is None else getattr(target, "__module__", None)
    return f"{works_for}.".startswith(_POOLS)


def start_raw_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``_thread.start_new_thread``."""

    @functools.wraps(original)
    def start_new_thread(function: Callable[..., Any], *args: Any) -> Any:
        unit = scope.current()
        if unit is None:
            return original(functools.partial(_freely, function), *args)
        job = Job(unit, function)
        unit.helped_by(lambda: job.is_done)
        return original(job, *args)

    return start_new_thread


def _freely(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    scope.tell(None)
    return function(*args, **kwargs)


def submit_job(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``submit`` of an executor, and ``spawn`` of gevent's thread pool."""

    @functools.wraps(original)
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        unit = scope.current()
        if unit is None:
            return original(self, fn, *args, **kwargs)
        if type(self).__name__ == "InterpreterPoolExecutor":
            # Python 3.14: another interpreter is as separate as a process
            unit.doubt("work was handed to another interpreter")
            return original(self, fn, *args, **kwargs)
        job = Job(unit, fn)
        future = original(self, job, *args, **kwargs)
        unit.helped_by(_ended(job, future))
        return future

    return submit


def _ended(job: Job, future: Any) -> Callable[[], bool]:
    """A function that reports whether the only call of *job* has ended, or will never begin.

    A pending future is kept alive by its executor.
    """
    ref = weakref.ref(future)

    def is_done() -> bool:
        if job.is_done:
            return True
        waiting = ref()
        return waiting is None or (
            hasattr(waiting, "cancelled") and waiting.cancelled() and not job.calls
        )

    return is_done


def apply_jobs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``apply_async`` and ``_map_async`` of multiprocessing's thread pools. Process pools
    cannot be observed.
    """

    @functools.wraps(original)
    def apply(self: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        unit = scope.current()
        if unit is None or not _has_threads(self, unit):
            return original(self, func, *args, **kwargs)
        job = Job(unit, func)
        result = original(self, job, *args, **kwargs)
        unit.helped_by(lambda: job.is_around or result.ready())
        return result

    return apply


def imap_jobs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``imap`` and ``imap_unordered`` of the same pools."""

    @functools.wraps(original)
    def imap(self: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        unit = scope.current()
        if unit is None or not _has_threads(self, unit):
            return original(self, func, *args, **kwargs)
        job = Job(unit, func)
        results = original(self, job, *args, **kwargs)
        unit.helped_by(lambda: job.is_around or (not job.calls and _is_exhausted(results)))
        return results

    return imap


def _has_threads(pool: Any, unit: Unit) -> bool:
    if isinstance(pool, sys.modules["multiprocessing.pool"].ThreadPool):
        return True
    unit.doubt("work was handed to another process")
    return False


def _is_exhausted(results: Any) -> bool:
    """Whether all results of an ``imap`` were taken."""
    if hasattr(results, "gi_frame"):
        return results.gi_frame is None
    length = getattr(results, "_length", None)
    return length is not None and getattr(results, "_index", None) == length


def start_elsewhere(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that hands work to another process."""

    @functools.wraps(original)
    def hand_over(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        leaving_the_process()
        return original(self, *args, **kwargs)

    return hand_over


def leaving_the_process() -> None:
    """Work is about to be handed to another process, which cannot report."""
    unit = scope.current()
    if unit is not None:
        unit.doubt("work was handed to another process")


def begin_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``create_task`` of an event loop: a context without a known unit gets this code's
    unit.
    """

    @functools.wraps(original)
    def create_task(self: Any, coro: Any, **kwargs: Any) -> Any:
        context = kwargs.get("context")
        if context is not None:
            if not scope.is_told(context):
                tell_context(context, scope.current())
        elif (
            scope.current_token() is scope.UNTOLD
            and suspects.get() is None  # the task inherits them
            and (unit := scope.current()) is not None
        ):
            kwargs["context"] = context = copy_context()
            tell_context(context, unit)
        task = original(self, coro, **kwargs)
        if not TASKS_SHOW_CONTEXTS and isinstance(task, sys.modules["asyncio"].Task):
            if context is not None:
                unit = scope.told(context)
            else:
                unit = scope.current() if suspects.get() is None else None
            task._unbroken_unit = None if unit is None else weakref.ref(unit)
        return task

    return create_task


def tell_context(context: Context, unit: Unit | None) -> None:
    """From now on *context* is in *unit*, or in none."""
    try:
        context.run(scope.tell, unit, None if unit is None else (unit, unit.attempts))
    except RuntimeError:  # code runs in it just now, and can determine it
        pass


def greenlet_spawned(greenlet: Any) -> None:
    """gevent starts *greenlet*, on the spawning greenlet's stack."""
    run = getattr(greenlet, "_run", None)
    owner = getattr(run, "__self__", None)
    module = getattr(run, "__module__", None) or ""
    unit = None if isinstance(owner, THREAD) or module.startswith("gevent.") else scope.current()
    if unit is None:
        setattr(greenlet, IN_NO_UNIT, True)
        return
    context = greenlet.gr_context
    if context is None:
        greenlet.gr_context = context = Context()
    if not scope.is_told(context):
        tell_context(context, unit)
    ref = weakref.ref(greenlet)
    unit.helped_by(lambda: (there := ref()) is None or there.dead)


def running_task() -> Any:
    """The asyncio task that runs this code. None outside of one."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    return asyncio.current_task()
