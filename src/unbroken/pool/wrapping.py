"""The places where work is handed over, wrapped once per process.

:mod:`unbroken.pool.contexts` explains why.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

from unbroken.ledger import scope
from unbroken.net.signals import IN_NO_UNIT
from unbroken.pool.jobs import (
    TASKS_SHOW_CONTEXTS,
    THREAD,
    apply_jobs,
    begin_task,
    greenlet_spawned,
    imap_jobs,
    leaving_the_process,
    running_task,
    start_elsewhere,
    start_raw_thread,
    start_thread,
    submit_job,
    tell_context,
)
from unbroken.pool.queues import get_from, put_into, take_out


def _wrap(
    owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Put *wrapper* around ``owner.name``, once. An attribute that cannot be set is left as
    it is.
    """
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
    if not getattr(THREAD.start, _WRAPPED, False):
        for thread in threading.enumerate():
            thread.__dict__[IN_NO_UNIT] = True  # it is older than the first unit
    _wrap(THREAD, "start", start_thread)


def _wrap_pools(module: Any) -> None:
    for name in ("apply_async", "_map_async"):
        _wrap(module.Pool, name, apply_jobs)
    for name in ("imap", "imap_unordered"):
        _wrap(module.Pool, name, imap_jobs)


def _wrap_queue(owner: Any, put: str, get: str) -> None:
    _wrap(owner, put, put_into)
    _wrap(owner, get, get_from)


def _wrap_queues(module: Any) -> None:
    _wrap_queue(module.Queue, "put", "get")
    for kind in (module.Queue, module.LifoQueue, module.PriorityQueue):
        if "_get" in kind.__dict__:
            _wrap(kind, "_get", take_out)


def _wrap_loops(owner: Any) -> None:
    if not getattr(owner.create_task, _WRAPPED, False) and not scope.entered():
        _leave_out_older_tasks()
    _wrap(owner, "create_task", begin_task)


def _leave_out_older_tasks() -> None:
    """Mark tasks that are older than the first unit as part of no unit, even for their later
    work.
    """
    kind: Any = sys.modules["asyncio"].Task
    here = running_task()
    for each in gc.get_objects():
        if not issubclass(type(each), kind) or each is here or each.done():
            continue
        if not TASKS_SHOW_CONTEXTS:
            each._unbroken_unit = None
        elif not scope.is_told(context := each.get_context()):
            tell_context(context, None)


def _wrap_greenlets(module: Any) -> None:
    for each in gc.get_objects():
        # By its type: isinstance() asks a weak proxy for its object, which may be gone.
        if issubclass(type(each), module.Greenlet):
            setattr(each, IN_NO_UNIT, True)  # it is older than the first unit
    module.Greenlet.add_spawn_callback(greenlet_spawned)


#: The wrappers, each applied as soon as its module is imported.
PLACES: dict[str, Callable[[Any], None]] = {
    "threading": _wrap_threads,
    "_thread": lambda module: _wrap(module, "start_new_thread", start_raw_thread),
    "os": lambda module: (
        module.register_at_fork(before=leaving_the_process)
        if hasattr(module, "register_at_fork")
        else None
    ),
    "queue": _wrap_queues,
    "asyncio.queues": lambda module: _wrap_queue(module.Queue, "put_nowait", "get_nowait"),
    "concurrent.futures.thread": lambda module: _wrap(
        module.ThreadPoolExecutor, "submit", submit_job
    ),
    "concurrent.futures.process": lambda module: _wrap(
        module.ProcessPoolExecutor, "submit", start_elsewhere
    ),
    "multiprocessing.pool": _wrap_pools,
    "multiprocessing.process": lambda module: _wrap(module.BaseProcess, "start", start_elsewhere),
    "asyncio.base_events": lambda module: _wrap_loops(module.BaseEventLoop),
    "uvloop": lambda module: _wrap_loops(module.Loop),
    "gevent.greenlet": _wrap_greenlets,
    "gevent.threadpool": lambda module: _wrap(module.ThreadPool, "spawn", submit_job),
}
