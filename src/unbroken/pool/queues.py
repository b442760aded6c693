"""Process the queue items of a unit of work in that unit."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from unbroken.ledger import scope
from unbroken.ledger.unit import Unit
from unbroken.pool.jobs import fed, suspects


class _Tags:
    """The unit that put each item of one queue there, by the item's ``id``, oldest first. Recorded
    from the first unit's item on.
    """

    __slots__ = ("_by_item", "_lock", "handed")

    def __init__(self) -> None:
        self.handed: dict[int, int] = {}  #: the item that ``_get`` has just given to each thread
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


class _Suspects(tuple["weakref.ref[Unit]", ...]):
    """The units that may have put an item there, if it is uncertain which one did."""

    __slots__ = ()


_Tag: TypeAlias = "tuple[weakref.ref[Unit], int] | _Suspects"


def put_into(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``put`` of a queue: the item is processed in the unit that put it there."""

    @functools.wraps(original)
    def put(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        tag = _tag()
        tags = self.__dict__.get(_TAGS)
        if tags is None:
            if tag is None:
                return original(self, item, *args, **kwargs)
            tags = self.__dict__.setdefault(_TAGS, _Tags())
        tags.add(item, tag)
        try:
            return original(self, item, *args, **kwargs)
        except BaseException:
            tags.take(item, last=True)
            raise

    return put


_TAGS = "_unbroken_tags"


def _tag() -> _Tag | None:
    """The tag of an item that this code puts into a queue. Putting it there does not use a
    connection. So if the unit of this code is uncertain, the item is tagged with the possible
    units.
    """
    token = scope.current_token()
    if token is scope.UNTOLD:
        unit, maybe = scope.around.look()
        if unit is None and maybe:
            return _Suspects(weakref.ref(each) for each in maybe)
    else:
        unit = None if token is None else scope.current()
    return None if unit is None or unit.observing else (weakref.ref(unit), unit.attempts)


def get_from(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``get`` of a queue: code without a unit of its own joins the unit that put the item
    there, until it gets another.
    """

    @functools.wraps(original)
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        item = original(self, *args, **kwargs)
        tags = self.__dict__.get(_TAGS)
        if tags is not None and tags.handed.pop(threading.get_ident(), None) == id(item):
            return item
        if tags is not None or fed.get():
            _feed(None if tags is None else tags.take(item))
        return item

    return get


def take_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``_get`` of a queue, which ``get`` calls. It also covers a thread that was waiting in
    ``get`` when the first unit began.
    """

    @functools.wraps(original)
    def get_from(self: Any) -> Any:
        item = original(self)
        tags = self.__dict__.get(_TAGS)
        if tags is not None:
            tags.handed[threading.get_ident()] = id(item)
            _feed(tags.take(item))
        return item

    return get_from


def _feed(tag: _Tag | None) -> None:
    if not fed.get() and scope.current() is not None:
        return  # it is in its own unit
    suspects.set(tag if isinstance(tag, _Suspects) else None)
    if isinstance(tag, _Suspects):
        scope.tell(scope.UNTOLD)
        fed.set(True)
        return
    unit = None if tag is None else tag[0]()
    if unit is None or tag is None or unit.is_over:
        scope.tell(None)
        fed.set(False)
    else:
        scope.tell(unit, (unit, tag[1]))
        fed.set(True)
