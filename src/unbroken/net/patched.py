"""Access the functions that gevent's monkey patching hides, and detect the patching.

Both are checked at call time, because patching may come after import.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def original(module: str, name: str) -> Any:
    """The standard library's own *name* of *module*, even if gevent has replaced or removed it.

    gevent's ``poll`` does not see POLLRDHUP, and gevent removes ``epoll`` and ``kqueue``. Raises
    AttributeError if this system does not have it.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    # Look in sys.modules first: a finalizing interpreter imports nothing any more.
    return getattr(sys.modules.get(module) or importlib.import_module(module), name)


def has(module: str, name: str) -> bool:
    """Whether this system has *name* in *module*."""
    try:
        original(module, name)
    except AttributeError:
        return False
    return True


def by_eventlet() -> bool:
    """Whether eventlet has patched a module that a pool waits with."""
    patcher = sys.modules.get("eventlet.patcher")
    done = getattr(patcher, "already_patched", None) or {}
    return any(done.get(name) for name in ("select", "socket", "thread"))


def threads_are_greenlets() -> bool:
    """Whether ``threading.Thread`` makes greenlets. If it does, code must not block without
    yielding to the hub.
    """
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))
