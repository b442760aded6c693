"""HTTP requests as users send them: each at its own moment, regardless of the earlier ones.

The traffic is *open-loop*: a schedule defines when each request is due, and its latency counts from
then. So an app that stands still is charged with every request that it kept waiting, not only with
the few that were in progress (that mistake is called coordinated omission). Each request uses a
connection of its own. A keep-alive connection that the app closes just as a request is sent would
look like an error of the app.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, Self, TypeVar

import aiohttp

from unbroken_drill.drill.apps.replies import HUNG_TEXT, Reply, Target

_T = TypeVar("_T")
_LINE: Final = 160  #: characters of a body's first line that are kept
_HEAD: Final = 8192  #: bytes of a body in which the first line is searched
_TITLE: Final = re.compile(r"<(title|h1)[^>]*>(.*?)</\1", re.IGNORECASE | re.DOTALL)


class Traffic:
    """Sends requests to *targets* in turn, *rate* a second, from a thread of its own. A context
    manager.

    At most *concurrency* are in progress at a time (the others wait, and their wait counts). A
    request without an answer *patience* seconds after it was due counts as hung. *seed* decides the
    moment of each within its share of the second.
    """

    def __init__(
        self, targets: Sequence[Target], rate: float, concurrency: int, patience: float, seed: int
    ) -> None:
        self.targets, self.rate, self.patience = list(targets), rate, patience
        self.replies: list[Reply] = []
        self._concurrency = concurrency
        self._random = random.Random(seed)
        self._number = 0
        self._schedule: Future[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="drill traffic", daemon=True
        )
        self._session: aiohttp.ClientSession | None = None
        self._gate: asyncio.Semaphore | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Begin to send."""
        if self._schedule is None:
            self._schedule = asyncio.run_coroutine_threadsafe(self._send_on_schedule(), self._loop)

    def pause(self) -> None:
        """Send no more requests; those in progress continue."""
        schedule, self._schedule = self._schedule, None
        if schedule is not None:
            schedule.cancel()

    @property
    def is_busy(self) -> bool:
        """Whether requests are in progress: at most for the patience after :meth:`pause`."""
        return bool(self._under_way)

    def ask(self, count: int = 1, patience: float | None = None) -> list[Reply]:
        """Send *count* requests to each target, one after another, and return their replies, which
        are not in :attr:`replies`.
        """
        return self._do(self._ask(count, patience or self.patience))

    def _do(self, what: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _open(self) -> None:
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            middlewares=(_once,),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )
        self._gate = asyncio.Semaphore(self._concurrency)

    async def _shut(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _send_on_schedule(self) -> None:
        begin = time.monotonic()
        sent = 0
        while True:
            due = begin + (sent + self._random.random()) / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(
                self._send(due, sent % len(self.targets), self.patience, self.replies)
            )
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            sent += 1

    async def _ask(self, count: int, patience: float) -> list[Reply]:
        replies: list[Reply] = []
        for target in range(len(self.targets)):
            for _ in range(count):
                await self._send(time.monotonic(), target, patience, replies)
        return replies

    async def _send(self, due: float, target: int, patience: float, replies: list[Reply]) -> None:
        self._number += 1
        number, sent = self._number, due
        try:
            async with asyncio.timeout_at(due + patience):
                assert self._gate is not None
                async with self._gate:
                    sent = time.monotonic()
                    status, line = await self._exchange(self.targets[target], number)
        except TimeoutError:
            status, line = 0, f"{HUNG_TEXT} {patience:g} s"
        except (_Broken, aiohttp.ClientError, OSError, ValueError) as error:
            status, line = 0, _why(error.__cause__ if isinstance(error, _Broken) else error)
        replies.append(Reply(due, sent, time.monotonic(), status, line, target))

    async def _exchange(self, target: Target, number: int) -> tuple[int, str]:
        assert self._session is not None
        own = str(number)
        body = None if target.body is None else target.body.replace("{n}", own).encode()
        url = target.url.replace("{n}", own)
        async with self._session.request(
            target.method, url, data=body, headers=target.headers, allow_redirects=False
        ) as response:
            head = b""
            async for chunk in response.content.iter_chunked(65536):
                if len(head) < _HEAD:
                    head += chunk
            return response.status, first_line(head[:_HEAD].decode(errors="replace"))


def first_line(text: str) -> str:
    """Return a body's first line that is not empty, or an HTML page's title."""
    if text.lstrip().startswith("<"):
        found = _TITLE.search(text)
        if found:
            text = found.group(2)
    return next((" ".join(line.split())[:_LINE] for line in text.splitlines() if line.strip()), "")


class _Broken(Exception):  # noqa: N818 - never seen outside
    """The connection of a request broke; the cause has the reason."""


async def _once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send it once. By itself aiohttp repeats a GET whose connection broke, which would hide the
    error.
    """
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken from error


def _why(error: BaseException | None) -> str:
    """Return the reason for a missing HTTP response, without the addresses that would make each
    message different.
    """
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without a response"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.strerror and cause.errno:
        return (
            f"no response: {cause.strerror.split(' [')[0]}"
            if "Connect call" not in cause.strerror
            else "no response: connection refused"
        )
    return f"no response: {type(error).__name__}: {' '.join(str(error).split())}"[:_LINE]
