"""MongoDB's part: how its clients run a unit of work, and what its database holds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import unbroken

from .checker import Stored
from .clients import MAX_SIZE, PATIENCE, Work
from .workload import ACCOUNTS, COUNTERS, START, ChangedMindError, Statement

if TYPE_CHECKING:  # loaded by those who use it only
    from pymongo.errors import PyMongoError

#: Time enough for every fault. The default would refuse in a long outage, which is right for a web
#: app, and shows less here.
PATIENT: dict[str, Any] = {
    "outage_wait": PATIENCE["outage_wait"], "maxPoolSize": MAX_SIZE,
    "waitQueueTimeoutMS": int(PATIENCE["acquire_timeout"] * 1000),
}  # fmt: skip


class MongoDBClient:
    """``unbroken.mongo.MongoClient``: what is one write is sent by itself, all else is a
    transaction.
    """

    def __init__(self, url: str, **more: Any) -> None:
        import unbroken.mongo

        self.client: Any = unbroken.mongo.MongoClient(url, **PATIENT, **more)
        self.stats, self.close = lambda: unbroken.mongo.stats(self.client), self.client.close

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        with _within(deadline):
            if _is_one_write(work):
                return _told(lambda: self._do(work, None))
            with self.client.start_session() as session:
                if again:
                    return _told(
                        lambda: session.with_transaction(lambda _: self._do(work, session)),
                    )
                return _told(lambda: self._once(work, session))

    def _once(self, work: Work, session: Any) -> None:
        with session.start_transaction():
            self._do(work, session)

    def _do(self, work: Work, session: Any) -> None:
        for step in work():
            if isinstance(step, float):
                time.sleep(step)
            else:
                method, arguments = _meant(self.client, step)
                method(*arguments, session=session)


class CarelessMongoDBClient(MongoDBClient):
    """What an application does that tries again whatever was lost, without PyMongo's own retries,
    which the server knows. To be caught.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, retryWrites=False)

    def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        while True:
            try:
                return super().unit(work, again=False, deadline=deadline)
            except unbroken.CommitUnknownError:
                if not again:
                    raise


class AsyncMongoDBClient:
    """``unbroken.mongo.AsyncMongoClient``, likewise."""

    def __init__(self, url: str) -> None:
        import unbroken.mongo

        self.client: Any = unbroken.mongo.AsyncMongoClient(url, **PATIENT)
        self.stats, self.close = lambda: unbroken.mongo.stats(self.client), self.client.close

    async def unit(self, work: Work, *, again: bool, deadline: float | None) -> None:
        with _within(deadline):
            if _is_one_write(work):
                return await _atold(lambda: self._do(work, None))
            async with self.client.start_session() as session:
                if again:
                    return await _atold(
                        lambda: session.with_transaction(lambda _: self._do(work, session)),
                    )
                return await _atold(lambda: self._once(work, session))

    async def _once(self, work: Work, session: Any) -> None:
        async with await session.start_transaction():
            await self._do(work, session)

    async def _do(self, work: Work, session: Any) -> None:
        for step in work():
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                method, arguments = _meant(self.client, step)
                await method(*arguments, session=session)


def _within(deadline: float | None) -> AbstractContextManager[Any]:
    import pymongo

    return nullcontext() if deadline is None else pymongo.timeout(deadline)


def _is_one_write(work: Work) -> bool:
    """Whether it changes its mind never, and one document once: then it needs no transaction."""
    try:
        said = [step for step in work() if isinstance(step, Statement)]
    except ChangedMindError:
        return False
    writes = [step for step in said if step.means[1] != "find_one"]
    return len(writes) == 1 and (writes[0].means[1] == "update_one" or len(writes[0].means[2]) == 1)


def _meant(client: Any, step: Statement) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    collection, method, arguments = step.means
    where = client.shop[collection]
    if method == "insert":  # PyMongo gives each document that it is given an _id
        copies = [dict(document) for document in arguments]
        return (
            (where.insert_one, (copies[0],)) if len(copies) == 1 else (where.insert_many, (copies,))
        )
    return getattr(where, method), arguments


def _told(work: Callable[[], Any]) -> None:
    from pymongo.errors import PyMongoError

    try:
        work()
    except PyMongoError as error:
        raise _meaning(error) from error


async def _atold(work: Callable[[], Any]) -> None:
    from pymongo.errors import PyMongoError

    try:
        await work()
    except PyMongoError as error:
        raise _meaning(error) from error


def _meaning(error: PyMongoError) -> Exception:
    """What an application knows of a write that failed: by its type, and nothing else."""
    if isinstance(error, unbroken.WriteUnknownError):
        return unbroken.CommitUnknownError(f"{type(error).__name__}: {error}")
    return error


# ---- what is stored


def prepare(server: Any) -> None:
    """Empty collections, at their beginnings.

    ``numbers`` gets an _id of its own for each document: what is stored twice is there twice.
    """
    import pymongo

    with pymongo.MongoClient(server.url()) as client:
        client.drop_database("shop")
        client.shop.create_collection("numbers")
        client.shop.accounts.insert_many([{"_id": n, "balance": START} for n in range(ACCOUNTS)])
        client.shop.counters.insert_many([{"_id": n, "value": 0} for n in range(COUNTERS)])


def stored(server: Any) -> Stored:
    """What the database holds, when those who are still in a transaction have been sent away."""
    import pymongo

    with pymongo.MongoClient(server.url()) as client:
        client.admin.command("killAllSessions", [])
        found: Any = client.shop
        return Stored(
            Counter((each["n"], each["part"]) for each in found.numbers.find()),
            {each["_id"]: each["balance"] for each in found.accounts.find()},
            {each["_id"]: each["value"] for each in found.counters.find()},
        )
