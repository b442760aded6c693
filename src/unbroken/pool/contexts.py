"""What a unit of work hands to another thread, task, greenlet or executor stays in the unit.

A unit lives in a context variable. Tasks inherit it, and so does what ``asyncio.to_thread``,
``sync_to_async`` and anyio run on a thread. Threads, executors and greenlets do not. So the first
unit that is entered wraps the places where work is handed over, once per process: the work gets the
unit, and the unit is not run again before that work has ended.

- A thread, a job of an executor or of a thread pool, and a greenlet get the unit of the code that
  started them.
- What is put into a queue is worked on in the unit of the code that put it there, by a thread or
  task that is in none.
- A task with a context of its own gets the unit of the code that created it.
- Code in an empty context (``contextvars.Context().run(...)``) is in the unit that was entered on
  the same thread, greenlet or task.
- Where nobody can tell who started something, no unit that might have is run again.
- Another process cannot report, so starting one inside a unit forbids its replay.

Threads, tasks and greenlets that were started outside of units are in none, whatever else the
process does meanwhile.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from types import FrameType
from typing import Any, TypeAlias

from unbroken.ledger import scope
from unbroken.ledger.scope import Token
from unbroken.ledger.unit import Unit
from unbroken.net.signals import IN_NO_UNIT

#: Threads of these libraries work for everybody. What they are given brings its own unit with it.
_POOLS = (
    "concurrent.futures.",
    "multiprocessing.pool",
    "multiprocessing.queues",
    "anyio.",
    "gevent.",
    "trio.",
    "pymongo.",
)


class Job:
    """Work that is handed over: runs *function* in the unit and attempt of the code that makes the
    job.
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
        self.calls = 0  #: how many are under way
        self._was_run = False

    @property
    def is_done(self) -> bool:
        """Whether a call has ended, or this code is part of one: then it is not left behind."""
        return self._was_run or self.is_around

    @property
    def is_around(self) -> bool:
        """Whether this code is part of a call: by its context, or because the call is on this
        thread's stack.
        """
        on_thread = _running.get(threading.get_ident())
        return self in _within.get() or (on_thread is not None and self in on_thread._chain)

    def fail(self) -> None:
        """It will never be called."""
        self._was_run = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What *function* gives or raises."""
        before, function = (scope.current_token(), scope.attempt()), self._function
        if self._once:
            self._function = (
                _nothing  # a thread refers to its job, and this would refer to the thread
            )
        place, ident = scope.around.place(), threading.get_ident()
        outside, below, chain = _jobs.get(place), _running.get(ident), _within.get()
        self.calls += 1
        try:
            _within.set(self._chain)
            _jobs[place], _running[ident] = self.unit, self
            scope.tell(self.unit, self._attempt)
            return function(*args, **kwargs)
        finally:
            _within.set(chain)
            scope.tell(*before)
            _put_back(_jobs, place, outside)
            _put_back(_running, ident, below)
            self.calls -= 1
            self._was_run = True


#: Whether the unit of this context came with something that was taken out of a queue.
_fed: ContextVar[bool] = ContextVar("unbroken_fed", default=False)

#: Python's own. gevent puts a class that derives from it into its place.
_Thread: Any = next(each for each in threading.Thread.__mro__ if "start" in each.__dict__)

_TASKS_SHOW_CONTEXTS = sys.version_info >= (3, 12)

#: The jobs that this code is part of. What a job starts inherits it.
_within: ContextVar[tuple[Job, ...]] = ContextVar("unbroken_within_jobs", default=())

_jobs: dict[object, Unit] = {}  # the unit of the job that runs at a place


_running: dict[int, Job] = {}  # the innermost job on a thread's stack


def _put_back(table: dict[Any, Any], key: object, value: Any) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def _nothing() -> None:
    pass


# -- handing over ----------------------------------------------------------------------------------


def _start(original: Callable[..., Any]) -> Callable[..., Any]:
    """``threading.Thread.start``."""

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


def _start_new_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_thread.start_new_thread``."""

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


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    """``submit`` of an executor, and ``spawn`` of gevent's thread pool."""

    @functools.wraps(original)
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        unit = scope.current()
        if unit is None:
            return original(self, fn, *args, **kwargs)
        if type(self).__name__ == "InterpreterPoolExecutor":
            # Python 3.14: another interpreter is as far away as a process
            unit.doubt("work was handed to another interpreter")
            return original(self, fn, *args, **kwargs)
        job = Job(unit, fn)
        future = original(self, job, *args, **kwargs)
        unit.helped_by(_ended(job, future))
        return future

    return submit


def _ended(job: Job, future: Any) -> Callable[[], bool]:
    """Whether the only call of *job* has ended, or will never begin.

    A future that waits for its turn is held by its executor.
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


def _apply(original: Callable[..., Any]) -> Callable[..., Any]:
    """``apply_async`` and ``_map_async`` of multiprocessing's pools of threads; those of processes
    are out of sight.
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


def _imap(original: Callable[..., Any]) -> Callable[..., Any]:
    """``imap`` and ``imap_unordered`` of the same."""

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


def _elsewhere(original: Callable[..., Any]) -> Callable[..., Any]:
    """What hands work to another process."""

    @functools.wraps(original)
    def hand_over(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        _leaving_the_process()
        return original(self, *args, **kwargs)

    return hand_over


def _leaving_the_process() -> None:
    unit = scope.current()
    if unit is not None:
        unit.doubt("work was handed to another process")


def _create_task(original: Callable[..., Any]) -> Callable[..., Any]:
    """``create_task`` of an event loop: a context that knows no unit gets the one of this code."""

    @functools.wraps(original)
    def create_task(self: Any, coro: Any, **kwargs: Any) -> Any:
        context = kwargs.get("context")
        if context is not None:
            if not scope.is_told(context):
                _tell(context, scope.current())
        elif scope.current_token() is scope.UNTOLD and (unit := scope.current()) is not None:
            kwargs["context"] = context = copy_context()
            _tell(context, unit)
        task = original(self, coro, **kwargs)
        if not _TASKS_SHOW_CONTEXTS and isinstance(task, sys.modules["asyncio"].Task):
            unit = scope.current() if context is None else scope.told(context)
            task._unbroken_unit = None if unit is None else weakref.ref(unit)
        return task

    return create_task


def _tell(context: Context, unit: Unit | None) -> None:
    try:
        context.run(scope.tell, unit, None if unit is None else (unit, unit.attempts))
    except RuntimeError:  # code runs in it just now: that code can tell
        pass


class _Tags:
    """Which unit put each item of one queue there, by the item's ``id``, oldest first; kept from
    the first unit's item on.
    """

    __slots__ = ("_by_item", "_lock", "handed")

    def __init__(self) -> None:
        self.handed: dict[int, int] = {}  #: to which thread ``_get`` has just given which item
        self._by_item: dict[int, deque[_Tag | None]] = {}
        self._lock = threading.RLock()  # a finalizer may use the queue, too

    def add(self, item: object, tag: _Tag | None) -> None:
        with self._lock:
            self._by_item.setdefault(id(item), deque()).append(tag)

    def take(self, item: object, *, last: bool = False) -> _Tag | None:
        with self._lock:
            tags = self._by_item.get(id(item))
            if not tags:
                return None
            tag = tags.pop() if last else tags.popleft()
            if not tags:
                del self._by_item[id(item)]
            return tag


_Tag: TypeAlias = "tuple[weakref.ref[Unit], int]"


def _put(original: Callable[..., Any]) -> Callable[..., Any]:
    """``put`` of a queue: the item will be worked on in the unit that put it there."""

    @functools.wraps(original)
    def put(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        unit = scope.current() if scope.current_token() is not None else None
        is_of_unit = unit is not None and not unit.observing
        tags = self.__dict__.get(_TAGS)
        if tags is None:
            if not is_of_unit:
                return original(self, item, *args, **kwargs)
            tags = self.__dict__.setdefault(_TAGS, _Tags())
        tags.add(
            item, (weakref.ref(unit), unit.attempts) if unit is not None and is_of_unit else None
        )
        try:
            return original(self, item, *args, **kwargs)
        except BaseException:
            tags.take(item, last=True)
            raise

    return put


_TAGS = "_unbroken_tags"


def _get(original: Callable[..., Any]) -> Callable[..., Any]:
    """``get`` of a queue: code that is in no unit by itself is in the one that put the item there,
    until it gets another.
    """

    @functools.wraps(original)
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        item = original(self, *args, **kwargs)
        tags = self.__dict__.get(_TAGS)
        if tags is not None and tags.handed.pop(threading.get_ident(), None) == id(item):
            return item
        if tags is not None or _fed.get():
            _feed(None if tags is None else tags.take(item))
        return item

    return get


def _take_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_get`` of a queue, which ``get`` calls: also the one in which a thread waited when the
    first unit began.
    """

    @functools.wraps(original)
    def _get(self: Any) -> Any:
        item = original(self)
        tags = self.__dict__.get(_TAGS)
        if tags is not None:
            tags.handed[threading.get_ident()] = id(item)
            _feed(tags.take(item))
        return item

    return _get


def _feed(tag: _Tag | None) -> None:
    if not _fed.get() and scope.current() is not None:
        return  # it is in a unit of its own
    unit = None if tag is None else tag[0]()
    if unit is None or tag is None or unit.is_over:
        scope.tell(None)
        _fed.set(False)
    else:
        scope.tell(unit, (unit, tag[1]))
        _fed.set(True)


def _spawned(greenlet: Any) -> None:
    """gevent starts *greenlet*, on the spawning greenlet's stack."""
    run = getattr(greenlet, "_run", None)
    owner = getattr(run, "__self__", None)
    module = getattr(run, "__module__", None) or ""
    unit = None if isinstance(owner, _Thread) or module.startswith("gevent.") else scope.current()
    if unit is None:
        setattr(greenlet, IN_NO_UNIT, True)
        return
    context = greenlet.gr_context
    if context is None:
        greenlet.gr_context = context = Context()
    if not scope.is_told(context):
        _tell(context, unit)
    ref = weakref.ref(greenlet)
    unit.helped_by(lambda: (there := ref()) is None or there.dead)


# -- wrapping --------------------------------------------------------------------------------------


def _wrap(
    owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Put *wrapper* around ``owner.name``, once. What cannot be set is left as it is."""
    original = getattr(owner, name, None)
    if original is None or getattr(original, _WRAPPED, False):
        return
    wrapped = wrapper(original)
    setattr(wrapped, _WRAPPED, True)
    try:
        setattr(owner, name, wrapped)
    except TypeError:  # a class in C
        pass


_WRAPPED = "_unbroken_hands_over"


def _wrap_threads(_module: Any) -> None:
    if not getattr(_Thread.start, _WRAPPED, False):
        for thread in threading.enumerate():
            thread.__dict__[IN_NO_UNIT] = True  # it is older than the first unit
    _wrap(_Thread, "start", _start)


def _wrap_pools(module: Any) -> None:
    for name in ("apply_async", "_map_async"):
        _wrap(module.Pool, name, _apply)
    for name in ("imap", "imap_unordered"):
        _wrap(module.Pool, name, _imap)


def _wrap_queue(owner: Any, put: str, get: str) -> None:
    _wrap(owner, put, _put)
    _wrap(owner, get, _get)


def _wrap_queues(module: Any) -> None:
    _wrap_queue(module.Queue, "put", "get")
    for kind in (module.Queue, module.LifoQueue, module.PriorityQueue):
        if "_get" in kind.__dict__:
            _wrap(kind, "_get", _take_out)


def _wrap_loops(owner: Any) -> None:
    if not getattr(owner.create_task, _WRAPPED, False) and not scope.entered():
        _leave_out_older_tasks()
    _wrap(owner, "create_task", _create_task)


def _leave_out_older_tasks() -> None:
    """Tasks that are older than the first unit are in none, whatever they use later."""
    kind: Any = sys.modules["asyncio"].Task
    here = _running_task()
    for each in gc.get_objects():
        if not issubclass(type(each), kind) or each is here or each.done():
            continue
        if not _TASKS_SHOW_CONTEXTS:
            each._unbroken_unit = None
        elif not scope.is_told(context := each.get_context()):
            _tell(context, None)


def _wrap_greenlets(module: Any) -> None:
    for each in gc.get_objects():
        if isinstance(each, module.Greenlet):
            setattr(each, IN_NO_UNIT, True)  # it is older than the first unit
    module.Greenlet.add_spawn_callback(_spawned)


#: What is wrapped as soon as its module is there.
_PLACES: dict[str, Callable[[Any], None]] = {
    "threading": _wrap_threads,
    "_thread": lambda module: _wrap(module, "start_new_thread", _start_new_thread),
    "os": lambda module: (
        module.register_at_fork(before=_leaving_the_process)
        if hasattr(module, "register_at_fork")
        else None
    ),
    "queue": _wrap_queues,
    "asyncio.queues": lambda module: _wrap_queue(module.Queue, "put_nowait", "get_nowait"),
    "concurrent.futures.thread": lambda module: _wrap(module.ThreadPoolExecutor, "submit", _submit),
    "concurrent.futures.process": lambda module: _wrap(
        module.ProcessPoolExecutor, "submit", _elsewhere
    ),
    "multiprocessing.pool": _wrap_pools,
    "multiprocessing.process": lambda module: _wrap(module.BaseProcess, "start", _elsewhere),
    "asyncio.base_events": lambda module: _wrap_loops(module.BaseEventLoop),
    "uvloop": lambda module: _wrap_loops(module.Loop),
    "gevent.greenlet": _wrap_greenlets,
    "gevent.threadpool": lambda module: _wrap(module.ThreadPool, "spawn", _submit),
}


class _Surroundings:
    """Threads, tasks and greenlets, for the core."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = dict(_PLACES)

    def renew(self) -> None:
        """In a forked child: the lock may be another thread's, which is not there any more."""
        self._lock = threading.Lock()

    def entering(self) -> None:
        """Wrap what is not wrapped yet and is there by now."""
        modules = sys.modules
        for name in self._left:
            if name in modules:
                break
        else:
            return
        with self._lock:
            import concurrent.futures.thread  # noqa: F401 - the application may import it at any time

            for name in [name for name in self._left if name in modules]:
                self._left[name](modules[name])
                self._left = {each: wrap for each, wrap in self._left.items() if each != name}

    def place(self) -> object:
        """The task, else the greenlet, else the thread that runs this."""
        task = _running_task()
        if task is not None:
            return threading.get_ident(), "task", id(task)
        return threading.get_ident(), "greenlet", id(_greenlet())

    def is_running(self, frame: int) -> bool:
        """Whether the frame with this ``id`` is among the callers of this code, those of its
        greenlet's parents included.
        """
        caller: FrameType | None = sys._getframe(1)
        greenlet = _greenlet()
        while caller is not None:
            if id(caller) == frame:
                return True
            caller = caller.f_back
            while caller is None and greenlet is not None:
                greenlet = greenlet.parent
                caller = None if greenlet is None else greenlet.gr_frame
        return False

    def find_out(self) -> Unit | None:
        """The unit of a context that was never told one.

        Units that might be meant, where nobody can say which, are never run again.
        """
        tokens = scope.entered()
        place: Any = self.place() if tokens else None
        here = [token.unit for token in tokens if token.place == place]
        job = _jobs.get(place)
        if here or (job is not None and not job.is_over):
            return here[-1] if here else job
        unit, suspects = _creator(place, tokens) if tokens else (None, [])
        for token in suspects:
            token.unit.doubt(
                "a connection was used by code, and nobody can say whether this unit started it"
            )
        if unit is None:
            scope.tell(None)
        return unit


def _creator(place: Any, tokens: list[Token]) -> tuple[Unit | None, list[Token]]:
    """The unit that started the code at *place*, or those of which one may have."""
    task = _running_task()
    if task is not None:
        is_known, unit = _unit_of(task)
        if is_known:
            return unit, []
    same_thread = [token for token in tokens if token.place[0] == place[0]]  # type: ignore[index]
    if task is None:
        thread = threading._active.get(place[0])  # type: ignore[attr-defined] # current_thread() would make one up
        is_free = IN_NO_UNIT in getattr(thread, "__dict__", ()) and (
            not same_thread or _is_callback()
        )
        if is_free or getattr(_greenlet(), IN_NO_UNIT, False):
            return None, []
    return None, same_thread if task is not None or same_thread else tokens


def _unit_of(task: Any) -> tuple[bool, Unit | None]:
    """Whether it is known in which unit *task* is, and in which."""
    if _TASKS_SHOW_CONTEXTS:
        context = task.get_context()
        return scope.is_told(context), scope.told(context)
    ref: Any = getattr(task, "_unbroken_unit", False)
    unit = ref() if ref else None
    return ref is not False, None if unit is None or unit.is_over else unit


def _is_callback() -> bool:
    """Whether an event loop runs this, and no task: the loop's own callbacks, as for a new
    client.
    """
    asyncio: Any = sys.modules.get("asyncio")
    return (
        asyncio is not None
        and asyncio._get_running_loop() is not None
        and asyncio.current_task() is None
    )


def _running_task() -> Any:
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return None
    return asyncio.current_task()


def _greenlet() -> Any:
    greenlet: Any = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


_surroundings = scope.around = _Surroundings()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_surroundings.renew)
