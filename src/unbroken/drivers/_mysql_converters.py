"""A table of converters of a PyMySQL, aiomysql or asyncmy connection that reports each change."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any


class Converters(dict[Any, Any]):
    """A copy of *table* that belongs to *conn*. It calls *changed* with *conn* when a converter is
    set or removed.
    """

    __slots__ = ("changed", "conn")
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, table: Mapping[Any, Any], conn: Any, changed: Callable[[Any], None]) -> None:
        super().__init__(table)
        self.conn, self.changed = weakref.ref(conn), changed


def _telling(name: str) -> Callable[..., Any]:
    plain = getattr(dict, name)

    def method(self: Converters, *args: Any, **kwargs: Any) -> Any:
        conn = self.conn()
        if conn is not None:
            self.changed(conn)
        return plain(self, *args, **kwargs)

    return method


for _name in (
    "__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update",
):  # fmt: skip
    setattr(Converters, _name, _telling(_name))
