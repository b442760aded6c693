"""The same tests for both clients: what the one has to await the other has not."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import unbroken.mongo

CLIENTS = {"threads": unbroken.mongo.MongoClient, "asyncio": unbroken.mongo.AsyncMongoClient}

#: For tests that run once with each client.
both = pytest.mark.parametrize("kind", list(CLIENTS))


async def got(result: Any) -> Any:
    """*result*, awaited where it is to be awaited."""
    return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def opened(kind: str, url: str, **given: Any) -> Any:
    """A client of that *kind*, closed afterwards."""
    client = CLIENTS[kind](url, **given)
    try:
        yield client
    finally:
        await got(client.close())


def run(work: Callable[[Any], Awaitable[Any]], kind: str, url: str, **given: Any) -> Any:
    """What *work* does with a client of that *kind*."""

    async def main() -> Any:
        async with opened(kind, url, **given) as client:
            return await work(client)

    return asyncio.run(main())
