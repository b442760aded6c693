"""Refuse processes that no pool can work in."""

from __future__ import annotations

from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import EVENTLET
from unbroken.net.patched import by_eventlet


def refuse_eventlet() -> None:
    """Raise ConfigurationError if eventlet has patched this process: a check of a socket would
    block all of its green threads, or see nothing.
    """
    if by_eventlet():
        raise ConfigurationError(
            EVENTLET(
                "eventlet has patched this process (monkey_patch()), and unbroken does not support"
                " its green threads; use threads, gevent or asyncio"
            )
        )
