"""Who holds a connection, for people: a thread, or a greenlet, and where it is now."""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from types import FrameType
from typing import Any


def describe(ident: int) -> str:
    """The thread or greenlet with *ident* (``get_ident()`` of whichever ``threading`` knows), and its stack."""
    frame, name = _thread(ident)
    if frame is None:
        frame, name = _greenlet(ident)
    if frame is None:
        return f"{name}, which has ended"
    stack = "".join(traceback.format_stack(frame, limit=8)).rstrip()
    return f"{name}, which is now at:\n{stack}"


def _thread(ident: int) -> tuple[FrameType | None, str]:
    names = [t.name for t in threading.enumerate() if t.ident == ident]
    return sys._current_frames().get(ident), f"thread {names[0] if names else ident}"


def _greenlet(ident: int) -> tuple[FrameType | None, str]:
    """Under gevent a thread's ident is its greenlet's id. Looking for it takes milliseconds: only for a report of a leak."""
    module: Any = sys.modules.get("greenlet")
    if module is not None:
        for found in gc.get_objects():
            if id(found) == ident and isinstance(found, module.greenlet):
                frame = found.gr_frame or (sys._getframe() if found is module.getcurrent() else None)
                return frame, f"greenlet {getattr(found, 'name', ident)}"
    return None, _thread(ident)[1]
