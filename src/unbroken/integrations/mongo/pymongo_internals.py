"""The internals of PyMongo's client that are overridden. None of these names is public; all exist
from PyMongo 4.9 to 4.20, and are checked at import.

The gate needs none of them: it reads heartbeats and topology descriptions, which are public.
"""

from __future__ import annotations

import inspect
from typing import Any

import pymongo

from unbroken.errors import ConfigurationError
from unbroken.messages.integrations import PYMONGO_UNKNOWN

#: Methods that are overridden, and the purpose of each override.
SEAMS = {
    "_init_background": "creates topology and threads, not before the first use in a process",
    "_get_topology": "begins to connect, in the process that calls",
    "_select_server": "is each operation's first step, where the gate checks it",
    "_cleanup_cursor_no_lock": "ends a cursor, in the process that opened it and not in its child",
    "_cleanup_cursor_lock": "the same",
    "_close_cursor_soon": "the same",
    "_close_cursor_now": "the same",
    "_retryable_write": "reports the server's answer to a write to its caller and unit of work",
    "_retry_internal": "the same for a COMMIT; in an outage, restarts work that only read",
    "_conn_for_writes": "the same for other commands that store something",
    "_server_property": "asks for a property of the server, bounded like any operation",
    "_after_fork": "PyMongo's own fork hook",
}


def check(*kinds: type[Any]) -> None:
    """Raise ConfigurationError if this PyMongo's client differs from the known ones."""
    for kind in kinds:
        missing = [name for name in SEAMS if not hasattr(kind, name)]
        if missing:
            raise ConfigurationError(
                PYMONGO_UNKNOWN(
                    f"PyMongo {pymongo.version} has no {kind.__name__}.{missing[0]}, which"
                    " unbroken.mongo needs; install PyMongo 4.9 to 4.20, or a newer unbroken"
                )
            )


#: Methods of PyMongo's pools, and attributes that each pool has from its beginning. They allow an
#: error for a caller when the queue is too long. The events of a pool are public. But
#: a listener cannot turn a caller away, and each event makes every operation slower.
QUEUE_METHODS = ("_get_conn", "_raise_if_not_ready", "_raise_wait_queue_timeout", "closed")
QUEUE_NUMBERS = ("requests", "max_pool_size", "_pending", "active_sockets", "_max_connecting_cond")


def has_known_queue(pool: Any) -> bool:
    """Whether the class *pool* has a queue for connections as we know it. Where it has not, callers
    wait as they do with PyMongo's own client.
    """
    if not isinstance(pool, type) or not all(hasattr(pool, name) for name in QUEUE_METHODS):
        return False
    taken = list(inspect.signature(pool._get_conn).parameters)  # type: ignore[attr-defined] # is there
    made: set[str] = set()
    for kind in pool.__mro__:
        code = getattr(vars(kind).get("__init__"), "__code__", None)
        made.update(code.co_names if code is not None else ())
    return taken == ["self", "checkout_started_time", "handler"] and made.issuperset(QUEUE_NUMBERS)


def waiting_on(condition: Any) -> int:
    """How many callers wait on a *condition* of a pool, in the ways of PyMongo 4.9 to 4.20."""
    line = getattr(condition, "_condition", condition)
    return len(getattr(line, "_waiters", ()))


def opening(pool: Any) -> int:
    """How many callers have a place in *pool* and no connection yet."""
    return int(pool._pending) + waiting_on(pool._max_connecting_cond)
