"""``unbroken.asgi.Unbroken``: any ASGI app. Its requests are run again where that is provably safe,
and an outage is answered with 503.

``session``: a FastAPI dependency that returns its connection in every case.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from time import monotonic
from typing import Any, TypeAlias

from unbroken.integrations import _foreign
from unbroken.integrations.web import exchange as _http
from unbroken.integrations.web import health as _health
from unbroken.integrations.web.answers import Swallowed, json_page, page, report
from unbroken.integrations.web.exchange import KEY, log
from unbroken.integrations.web.settings import HttpSettings
from unbroken.messages.integrations import SESSION_LEFT, SESSION_NOT_ENDED
from unbroken.pool import running_async
from unbroken.pool.holder import thread_frames

Message: TypeAlias = dict[str, Any]
Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: A page of an error is held back until its app is done, if it is not longer than this: it may
#: become another page.
HELD = 1 << 16

#: For how many turns of the event loop the end of a stream waits to see whether the app raises.
TURNS = 100


class Unbroken:
    """The ASGI app *app*, with each HTTP request a unit of work. Other messages pass through.

    Requests with safe methods (*methods*: GET, HEAD, OPTIONS) and those that *replay* selects (path
    prefixes, or a callable that gets the scope) are replayable. They are run again from the start
    if a connection was lost, nothing was committed, and the response has not begun. An outage is
    answered with 503 and Retry-After, a COMMIT without an answer with a 500 that says so. The
    format is JSON, or HTML if the client prefers it.

    *databases*: pools and engines, sync or async, that *readyz* (a path, like *healthz*) checks.
    *max_body* (bytes, 1 MiB), *max_replays* (10) and *deadline* (seconds, None) limit replays.

    Raises ConfigurationError for settings that cannot work.
    """

    def __init__(self, app: App, **settings: Any) -> None:
        self.app = app
        self.settings = HttpSettings.of(**settings)
        for database in self.settings.databases:
            _foreign.follow(database)

    def __getattr__(self, name: str) -> Any:
        """Return the app's attribute of that name."""
        if name in ("app", "settings"):
            raise AttributeError(name)
        return getattr(self.app, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection as the ASGI specification requires."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope.get("path", "")
        settings = self.settings
        if path and path in (settings.healthz, settings.readyz):
            await self._health(path, send)
            return
        exchange = _Exchange(self.app, scope, receive, send)
        if settings.priority is not None:
            exchange.rank = settings.rank(path, scope)
        await exchange.run(settings if settings.may_replay(scope["method"], path, scope) else None)

    async def _health(self, path: str, send: Send) -> None:
        well, shown = True, {"status": "ok"}
        if path == self.settings.readyz:
            well, states = await _health.ready_async(
                self.settings.databases, self.settings.ready_timeout
            )
            shown = {"status": "ok" if well else "away", **states}
        headers, body = json_page(shown, [("Cache-Control", "no-store")])
        await _respond(send, 200 if well else 503, headers, body)


class _Exchange(_http.Exchange):
    """One request: its attempts, and the response that is held back until its first chunk is
    known.
    """

    remedy = "name its path in replay= of unbroken.asgi.Unbroken"

    def __init__(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope["method"], scope.get("path", ""))
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._before: Scope = {}
        self._state: dict[str, Any] | None = None
        self._kept: list[Message] = []  # the client's messages
        self._size = self._at = 0
        self._overflowed = False
        self._held: list[Message] = []  # the app's messages that the client has not seen
        self._late: BaseException | None = None
        self._status = 0
        self._is_open_ended = self._is_empty = (
            False  # the response: without a length; without a byte so far
        )
        self._waiting: asyncio.Task[None] | None = (
            None  # sends the last message, if the app goes on for long
        )
        self._is_sending = False

    async def run(self, settings: HttpSettings | None) -> None:
        """Answer the request; with *settings*, run it again until it succeeds or the ledger forbids
        it.
        """
        self.limits = settings
        whole = self._scope.get(KEY)
        self._scope[KEY] = self
        try:
            self.watch(whole)
            if settings is None:
                await self._attempt(self._receive)
            else:
                self._before, state = dict(self._scope), self._scope.get("state")
                self._state = dict(state) if isinstance(state, dict) else None
                await running_async.run_unit_async(
                    self._again, settings.deadline, settings.max_replays, subject=self
                )
            if self._late is not None:
                raise self._late
        except Exception as exc:
            if self.begun:
                raise
            await self._failed(exc)
        finally:
            if self._waiting is not None:
                self._waiting.cancel()
            self.unwatch()
            if whole is None:
                self._scope.pop(KEY, None)
            else:
                self._scope[KEY] = whole

    async def _again(self) -> None:
        """Make one attempt within a unit of work.

        Errors that must not cause a replay are raised outside the unit.
        """
        self._at = 0
        if self.attempt():
            self._held.clear()
            self._status = 0
            self._scope.clear()
            self._scope.update(self._before)
            if self._state is not None:
                self._scope["state"] = dict(self._state)
        number = self.attempts

        async def receive() -> Message:
            if number != self.attempts:  # a task that an attempt left behind
                return {"type": "http.disconnect"}
            return await self._receive_again()

        try:
            await self._attempt(receive)
        except Exception as exc:
            if self.begun or self._overflowed:
                self.too_late(exc)
                self._late = exc
                return
            self.tell(exc)
            raise

    def is_cut_off(self) -> bool:
        """Return whether more of the body was read than is kept."""
        return self._overflowed

    async def _attempt(self, receive: Receive) -> None:
        number = self.attempts

        async def send(message: Message) -> None:
            if number == self.attempts:
                # a task that an attempt left behind must not answer for the next one
                await self._on_send(message)

        await self._app(self._scope, receive, send)
        await self._no_longer_wait()
        if self._held and not self.begun:
            self.reconsider(self._status)
            if self._is_open_ended and self._is_empty and (cause := self.curable()) is not None:
                raise Swallowed("answered with an empty stream") from cause
        if self._held:
            await self._release()

    async def _receive_again(self) -> Message:
        """Return the client's messages, from the beginning in each attempt."""
        if self._at < len(self._kept):
            message = self._kept[self._at]
            self._at += 1
            return dict(message)
        message = await self._receive()
        assert self.limits is not None
        self._size += len(message.get("body", b""))
        if self._size > self.limits.max_body:
            self._overflowed = True
            self._kept.clear()
        if not self._overflowed:
            self._kept.append(message)
            self._at += 1
        return message

    async def _on_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._is_empty = message["status"], True
            self._is_open_ended = _has_no_length(message)
        elif message.get("body"):
            self._is_empty = False
        if self.begun and not self._is_an_end_to_doubt(message):
            await self._send(message)
            return
        self._held.append(message)
        kind = message["type"]
        if kind not in ("http.response.start", "http.response.debug") and not self._is_held_back(
            message
        ):
            await self._release()

    def _is_held_back(self, message: Message) -> bool:
        """Return whether the response still waits: for its first chunk, or, if it is an error page,
        for the app to finish.
        """
        if message["type"] == "http.response.body":
            more = message.get("more_body", False)
            if not message.get("body") and more:
                return True
            if not self.begun and self._status >= 500:
                return sum(len(m.get("body", b"")) for m in self._held) <= HELD
            if self._is_an_end_to_doubt(message):
                self._wait_for_the_app()
                return True
        return False

    def _is_an_end_to_doubt(self, message: Message) -> bool:
        """Return whether the app may have ended a stream because of an error. Starlette's
        BaseHTTPMiddleware ends such a stream in order, and raises afterwards. With a length the
        client sees that data is missing.
        """
        if (
            message["type"] != "http.response.body"
            or message.get("body")
            or message.get("more_body")
        ):
            return False
        return self._is_open_ended and (self._is_empty or self.is_troubled)

    def _wait_for_the_app(self) -> None:
        """Send the held response when the app is done, or when it continues by itself (a background
        task).
        """
        if self._waiting is None and asyncio._get_running_loop() is not None:
            self._waiting = asyncio.get_running_loop().create_task(self._send_soon())

    async def _send_soon(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._is_sending = True
        await self._release()

    async def _no_longer_wait(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        if self._is_sending:
            await waiting
        else:
            waiting.cancel()

    async def _release(self) -> None:
        """Send the held response."""
        if not self.begun:
            self.go_out()
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    async def _failed(self, exc: Exception) -> None:
        answer = self.answer(exc)
        if answer is None:
            if self._status >= 500 and self._held:  # the app's page for it
                await self._release()
            raise exc
        scope = self._scope
        report(answer, self.method, scope.get("path", ""))
        accept = next(
            (
                value.decode("latin-1")
                for name, value in scope["headers"]
                if name.lower() == b"accept"
            ),
            "",
        )
        headers, body = page(answer, accept)
        await _respond(
            self._send, int(answer.status[:3]), headers, b"" if self.method == "HEAD" else body
        )


def _has_no_length(start: Message) -> bool:
    """Return whether only its end shows how long a response is."""
    status: int = start["status"]
    if status < 200 or status in (204, 304):
        return False
    return all(name.lower() != b"content-length" for name, _ in start.get("headers", ()))


async def _respond(
    send: Send, status: int, headers: Iterable[tuple[str, str]], body: bytes
) -> None:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


# -- sessions --------------------------------------------------------------------------------------

#: Seconds that a session's end may take. After that its connection is closed instead of returned.
PATIENCE = 5.0
#: … and seconds that a blocking endpoint may go on with it after its request was cancelled.
LONG = 60.0

_ends: set[asyncio.Task[None]] = set()


def session(factory: Callable[[], Any]) -> Callable[[], AsyncIterator[Any]]:
    """A FastAPI dependency: ``Depends(session(factory))`` is a session for one request.

    *factory* is a sessionmaker or an async_sessionmaker. The session is closed in every case: after
    an exception, a client that disconnects, or a cancellation at any point. Uncommitted work is
    rolled back. The connection goes back to the pool, or is closed if a statement may be in
    progress.

    Commit in the endpoint, before it returns. FastAPI runs the end of a dependency when the
    response has been sent, which is too late to report a failure.
    """

    async def dependency() -> AsyncIterator[Any]:
        made = factory()
        struck = True  # by a cancellation, unless it ends otherwise
        try:
            yield made
            struck = False
        except Exception:
            struck = False
            raise
        finally:
            await _in_any_case(_end(made, struck))

    return dependency


async def _in_any_case(end: Coroutine[Any, Any, None]) -> None:
    """Wait for *end*, which continues if this task is cancelled."""
    task = asyncio.get_running_loop().create_task(end)
    _ends.add(task)  # a loop holds its tasks weakly only
    task.add_done_callback(_ends.discard)
    await asyncio.shield(task)


async def _end(made: Any, struck: bool) -> None:
    if struck and not inspect.iscoroutinefunction(made.close) and not await _let_go(made):
        log.warning(
            "session not closed",
            SESSION_LEFT(
                "a session of a cancelled request may still be in use on a thread, after a wait of"
                f" up to {LONG:.0f} s; it stays open for that thread"
            ),
        )
        return
    try:
        if not struck:
            async with asyncio.timeout(PATIENCE):
                await _call(made.close)
            return
    except Exception:
        log.exception(
            "session not closed",
            SESSION_NOT_ENDED(
                "a session could not be closed at the end of its request; its connection is closed"
            ),
        )
    try:
        await _call(made.invalidate)
    except Exception:
        log.exception(
            "session not closed",
            SESSION_NOT_ENDED("a session's connection could not be closed"),
            about="connection",
        )


async def _let_go(made: Any) -> bool:
    """Wait until no thread uses the session *made*. A thread that runs an endpoint continues when
    its task is cancelled, and a session, or its connection, must not be closed meanwhile.
    """
    if thread_frames() is None:
        return False  # it cannot be determined
    until = monotonic() + LONG
    while _is_in_hand(made):
        if monotonic() > until:
            return False
        await asyncio.sleep(0.02)
    return True


def _is_in_hand(made: Any) -> bool:
    me = threading.get_ident()
    for thread, top in (thread_frames() or {}).items():
        frame: Any = top if thread != me else None
        while frame is not None:
            if any(value is made for value in frame.f_locals.values()):
                return True
            frame = frame.f_back
    return False


async def _call(function: Callable[[], Any]) -> None:
    """Call a function that may be a coroutine function; run a blocking one on a thread."""
    if inspect.iscoroutinefunction(function):
        await function()
    else:
        await asyncio.to_thread(function)
