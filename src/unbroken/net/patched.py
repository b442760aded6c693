"""What gevent's monkey patching hides, and whether it is at work.

Asked at call time: patching may come after import.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def original(module: str, name: str) -> Any:
    """The standard library's own *name* of *module*, also where gevent has replaced or removed it.

    gevent's ``poll`` does not see POLLRDHUP, and it removes ``epoll`` and ``kqueue`` altogether.
    Raises AttributeError where this system does not have it.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    # looked up first: the interpreter imports nothing any more while it is finalizing
    return getattr(sys.modules.get(module) or importlib.import_module(module), name)


def has(module: str, name: str) -> bool:
    """Whether this system has *name* in *module* at all."""
    try:
        original(module, name)
    except AttributeError:
        return False
    return True


def by_eventlet() -> bool:
    """Whether eventlet has patched what a pool waits by."""
    patcher = sys.modules.get("eventlet.patcher")
    done = getattr(patcher, "already_patched", None) or {}
    return any(done.get(name) for name in ("select", "socket", "thread"))


def threads_are_greenlets() -> bool:
    """Whether ``threading.Thread`` makes greenlets: then nothing may block without giving way to
    the hub.
    """
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))
