"""The internals of PyMongo's client that are overridden. None of these names is public; all exist
from PyMongo 4.9 to 4.20, and are checked at import.

The gate needs none of them: it reads heartbeats and topology descriptions, which are public.
"""

from __future__ import annotations

from typing import Any

import pymongo

from unbroken.errors import ConfigurationError
from unbroken.messages.integrations import PYMONGO_UNKNOWN

#: Methods that are overridden, and the purpose of each override.
SEAMS = {
    "_init_background": "makes topology and threads: not before the first use in a process",
    "_get_topology": "begins to connect: in the process that asks",
    "_select_server": "each operation's first step: the gate stands here",
    "_cleanup_cursor_no_lock": "a cursor is ended by the process that opened it, not by its child",
    "_cleanup_cursor_lock": "likewise",
    "_close_cursor_soon": "likewise",
    "_close_cursor_now": "likewise",
    "_retryable_write": "what the server said of a write is told to its caller and unit of work",
    "_retry_internal": "likewise of a COMMIT; what only read is begun again in an outage",
    "_conn_for_writes": "likewise of other commands that store something",
    "_server_property": "a question after the server is bounded like any operation",
    "_after_fork": "PyMongo's own fork hook",
}


def check(*kinds: type[Any]) -> None:
    """Raise ConfigurationError if this PyMongo's client differs from the known ones."""
    for kind in kinds:
        missing = [name for name in SEAMS if not hasattr(kind, name)]
        if missing:
            raise ConfigurationError(
                PYMONGO_UNKNOWN(
                    f"PyMongo {pymongo.version} has no {kind.__name__}.{missing[0]}; unbroken.mongo"
                    " knows PyMongo 4.9 to 4.20: install one of these, or a newer unbroken"
                )
            )
