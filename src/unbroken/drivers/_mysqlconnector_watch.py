"""mysql-connector's connections of a class that reports everything that it sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

from unbroken.drivers._mysqlconnector import named
from unbroken.drivers._mysqlconnector_exchange import answered, doubt_others, sent, sent_async, tell


@cache
def watched(base: Any) -> Any:
    """Return a subclass of *base* (of :func:`unbroken.drivers._mysqlconnector.exact`) that tells
    the ledger of everything it sends.

    ``unwatched`` is the original class, to restore it.
    """
    if hasattr(base, "unwatched"):
        return base

    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def _seen_sends(self, command: int) -> None:
            doubt_others(self, command)
            super()._seen_sends(command)

        def cmd_query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return sent(self, query, lambda: super(Watched, self).cmd_query(query, *args, **kwargs))

        def cmd_query_iter(self, statements: Any, **kwargs: Any) -> Iterator[Any]:
            pending = tell(self, statements)
            yield from super().cmd_query_iter(statements, **kwargs)
            answered(self, pending, None)

    return named(Watched, base)


@cache
def watched_async(base: Any) -> Any:
    """Do the same as :func:`watched`, for asyncio."""
    if hasattr(base, "unwatched"):
        return base

    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def _seen_sends(self, command: int) -> None:
            doubt_others(self, command)
            super()._seen_sends(command)

        async def cmd_query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return await sent_async(self, query, super().cmd_query(query, *args, **kwargs))

        async def cmd_query_iter(self, statements: Any, **kwargs: Any) -> AsyncIterator[Any]:
            pending = tell(self, statements)
            async for result in super().cmd_query_iter(statements, **kwargs):
                yield result
            answered(self, pending, None)

    return named(Watched, base)
