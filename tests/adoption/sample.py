"""A module of somebody else's, with all kinds of functions."""

from __future__ import annotations

SOURCE = '''
from abc import ABC, abstractmethod
from contextlib import contextmanager
import functools
from unbroken.ledger.scope import current


def inside():
    """Which unit of work this call is in."""
    return current()


def hidden(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)
    return call


class Base:
    def inherited(self):
        return current()

    def overridden(self):
        return ["base", current()]


class Store(Base):
    """Keeps things."""

    limit = 3

    def __init__(self, name="store"):
        self.name = name

    def put(self, key: str, /, value: int = 1, *, twice: bool = False) -> tuple:
        """Puts."""
        return key, value, twice, current()

    def outer(self):
        return current(), self.put("k")[3], self.other()

    @classmethod
    def make(cls, name):
        return cls(name), current()

    @staticmethod
    def other():
        return current()

    async def later(self):
        return current()

    def overridden(self):
        return [*super().overridden(), "store"]

    @property
    def size(self):
        return current()

    @functools.cached_property
    def cached(self):
        return current()

    def many(self):
        yield current()

    async def stream(self):
        yield current()

    @contextmanager
    def opened(self):
        yield current()

    def _private(self):
        return current()

    @hidden
    async def veiled(self):
        return current()

    bound = functools.partialmethod(put, "b")


class Special(Store):
    def put(self, *args, **kwargs):
        return "special", super().put(*args, **kwargs)


class Plan(ABC):
    @abstractmethod
    def go(self): ...

    def stop(self):
        return current()


class Empty(Base):
    pass


class Proud(type):
    def __setattr__(cls, name, value):
        raise TypeError("nothing changes here")


class Stone(metaclass=Proud):
    def put(self):
        return current()
'''

METHODS = ["put", "outer", "make", "other", "later", "overridden"]
