"""Databases of a site whose ENGINE is not ours. Only the texts of their statements are followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connections

from unbroken.integrations import _foreign
from unbroken.integrations.django.wrapper import Pooled


def follow_others() -> None:
    """Follow, from now on, the statements that this thread sends on connections of other
    engines.
    """
    for connection in connections.all(initialized_only=True):
        follow(connection=connection)


def follow(*, connection: Any, **_more: Any) -> None:
    """Follow *connection* in the same way: a receiver of ``connection_created``."""
    if not isinstance(connection, Pooled) and _seen not in connection.execute_wrappers:
        connection.execute_wrappers.append(_seen)


def _seen(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
    _foreign.statement(sql, "a database whose ENGINE is not unbroken's")
    return execute(sql, params, many, context)
