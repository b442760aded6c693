"""``unbroken.wsgi.Unbroken``: any WSGI app. Its requests are run again where that is provably safe,
and an outage is answered with 503.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from unbroken.integrations import _foreign
from unbroken.integrations.web import exchange as _http
from unbroken.integrations.web import health as _health
from unbroken.integrations.web import request_leaks
from unbroken.integrations.web.answers import json_page, page, report
from unbroken.integrations.web.exchange import KEY, log
from unbroken.integrations.web.settings import HttpSettings
from unbroken.messages.integrations import RESPONSE_NOT_CLOSED
from unbroken.pool import running

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]


class Unbroken:
    """The WSGI app *app*, with each request a unit of work.

    Requests with safe methods (*methods*: GET, HEAD, OPTIONS) and those that *replay* selects (path
    prefixes, or a callable that gets the environ) are replayable. They are run again from the start
    if a connection was lost, nothing was committed, and the response has not begun. An outage is
    answered with 503 and Retry-After, a COMMIT without an answer with a 500 that says so. The
    format is JSON, or HTML if the client prefers it.

    *databases*: pools and engines whose connections are taken back when a request ends. *readyz* (a
    path, like *healthz*) checks them. *max_body* (bytes, 1 MiB), *max_replays* (10) and *deadline*
    (seconds, None) limit replays.

    Raises ConfigurationError for settings that cannot work.
    """

    #: the remedy: how a request is run again
    remedy = "name its path in replay= of unbroken.wsgi.Unbroken"

    def __init__(self, app: Callable[..., Iterable[bytes]], **settings: Any) -> None:
        self.app = app
        self.settings = HttpSettings.of(**settings)
        for database in self.settings.databases:
            if request_leaks.is_engine(database):
                request_leaks.watch(database)
            _foreign.follow(database)

    def __getattr__(self, name: str) -> Any:
        """Return the app's attribute of that name."""
        if name in ("app", "settings"):
            raise AttributeError(name)
        return getattr(self.app, name)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Handle a request as PEP 3333 requires."""
        path = environ.get("PATH_INFO", "")
        if path and path in (self.settings.healthz, self.settings.readyz):
            return self._health(path, start_response)
        exchange = Exchange(self, environ, start_response)
        if self.settings.priority is not None:
            exchange.rank = self.settings.rank(exchange.path, environ)
        if not self.may_replay(environ):
            return exchange.run(None)
        return exchange.run(self.settings)

    # -- overridden by the Flask extension ---------------------------------------------------------

    def may_replay(self, environ: Environ) -> bool:
        """Return whether this request may be run again, if the ledger allows it."""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return self.settings.may_replay(environ["REQUEST_METHOD"], path, environ)

    def databases(self) -> Iterable[Any]:
        """The databases whose connections a request must return, and which /readyz checks."""
        return self.settings.databases

    def asked(self) -> Iterable[Any]:
        """The databases that /readyz checks."""
        return self.databases()

    def clean(self, taken: request_leaks.Taken) -> None:
        """Clean up after a request, or after an attempt at one."""
        request_leaks.take_back(taken, self.databases())

    def _health(self, path: str, start_response: StartResponse) -> Iterable[bytes]:
        well, shown = True, {"status": "ok"}
        if path == self.settings.readyz:
            well, states = _health.ready(self.asked(), self.settings.ready_timeout)
            shown = {"status": "ok" if well else "away", **states}
        headers, body = json_page(shown, [("Cache-Control", "no-store")])
        start_response("200 OK" if well else "503 Service Unavailable", headers)
        return [body]


class Exchange(_http.Exchange):
    """One request: its attempts, and the response that is held back until its first chunk is
    known.
    """

    def __init__(self, owner: Unbroken, environ: Environ, start_response: StartResponse) -> None:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        super().__init__(environ["REQUEST_METHOD"], path)
        self.owner, self.environ = owner, environ
        self.remedy = owner.remedy
        self._start_response = start_response
        self._before: Environ = {}
        self._keeper: _Keeper | None = None
        self._head: tuple[Any, ...] | None = None  # status, headers and exc_info, held back
        self._late: BaseException | None = None
        self.taken = request_leaks.Taken()

    def run(self, settings: HttpSettings | None) -> Iterable[bytes]:
        """Return the response. With *settings*, run the request again until it succeeds or the
        ledger forbids it.
        """
        self.limits = settings
        whole = self.environ.get(KEY)
        self.environ[KEY] = self
        taking = request_leaks.current.set(self.taken)
        try:
            self.watch(whole)
            if settings is None:
                body = self._attempt()
            else:
                self._prepare(settings)
                body = running.run_unit(
                    self._again, settings.deadline, settings.max_replays, subject=self
                )
            if self._late is not None:
                raise self._late
            return body
        except Exception as exc:
            if self.begun:
                raise
            return self._failed(exc)
        finally:
            self.unwatch()  # no traceback outlives the request
            request_leaks.current.reset(taking)
            self._leave_environ(whole)
            self._before.clear()

    def _leave_environ(self, whole: Any) -> None:
        """Break the reference cycle, so that none outlives the request either."""
        if whole is None:
            self.environ.pop(KEY, None)
        else:
            self.environ[KEY] = whole

    def _prepare(self, settings: HttpSettings) -> None:
        environ = self.environ
        if environ.get("CONTENT_LENGTH") not in (None, "", "0") or environ.get(
            "HTTP_TRANSFER_ENCODING"
        ):
            self._keeper = _Keeper(environ, settings.max_body)
        self._before = dict(environ)

    def _again(self) -> Iterable[bytes]:
        """Make one attempt within a unit of work.

        Errors that must not cause a replay are raised outside the unit.
        """
        if self.attempt():
            self._head = None
            self.environ.clear()
            self.environ.update(self._before)
        if self._keeper is not None:
            self.environ["wsgi.input"] = self._keeper.open()
        try:
            return self._attempt()
        except Exception as exc:
            if self.begun or self.is_cut_off():
                self.too_late(exc)
                self._late = exc
                return ()
            self.tell(exc)
            raise

    def is_cut_off(self) -> bool:
        """Return whether more of the body was read than is kept."""
        return self._keeper is not None and self._keeper.overflowed

    def _attempt(self) -> Iterable[bytes]:
        body: Iterable[bytes] = ()
        try:
            body = self.owner.app(self.environ, self._start)
            whole = isinstance(body, (list, tuple)) or self._is_file(body)
            chunks = body if whole else _Chunks(body)
            if self._head is not None and not self.begun and self._head[0][:1] == "5":
                self.reconsider(int(self._head[0][:3]))
        except BaseException:
            self._close(body)
            self.owner.clean(self.taken)
            raise
        self._begin()
        if whole or self._is_all(chunks):
            # nothing more is computed: do not wait for the client to have it
            self.owner.clean(self.taken)
        return body if whole else _Body(self, body, chunks)

    def _is_all(self, chunks: Any) -> bool:
        """Return whether the first chunk is the whole response, by its headers."""
        assert self._head is not None
        length = next(
            (value for name, value in self._head[1] if name.lower() == "content-length"), None
        )
        return length == str(len(chunks.first or b""))

    def _failed(self, exc: Exception) -> Iterable[bytes]:
        answer = self.answer(exc)
        if answer is None:
            raise exc
        environ = self.environ
        report(answer, self.method, environ.get("PATH_INFO", ""))
        headers, body = page(answer, environ.get("HTTP_ACCEPT", ""))
        self._start_response(answer.status, headers)
        return [b"" if self.method == "HEAD" else body]

    # -- the response ------------------------------------------------------------------------------

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], Any]:
        if self.begun:
            return self._start_response(status, headers, exc_info)  # type: ignore[no-any-return] # it re-raises exc_info
        self._head = (status, headers)
        return self._write

    def _write(self, data: bytes) -> None:
        """Send *data* immediately: the callable that PEP 3333 keeps for old apps."""
        if not self.begun:
            self._begin()
        self._old_write(data)

    def _begin(self) -> None:
        if not self.begun:
            if self._head is None:
                raise AssertionError("the app returned before it called start_response")
            self.go_out()
            self._old_write = self._start_response(*self._head)

    def _is_file(self, body: Any) -> bool:
        wrapper = self.environ.get("wsgi.file_wrapper")
        return isinstance(wrapper, type) and isinstance(body, wrapper)

    def _close(self, body: Any) -> None:
        close = getattr(body, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                log.exception(
                    "response not closed",
                    RESPONSE_NOT_CLOSED("the response of a failed attempt could not be closed"),
                )

    def over(self, body: Any) -> None:
        """End the exchange: the response has been sent, or given up."""
        try:
            close = getattr(body, "close", None)
            if close is not None:
                close()
        finally:
            self.owner.clean(self.taken)


class _Chunks:
    """An app's iterable whose first non-empty chunk is known."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._rest = iter(body)
        self.first: bytes | None = None
        for chunk in self._rest:
            if chunk:
                self.first = chunk
                break

    def __iter__(self) -> Iterator[bytes]:
        if self.first is not None:
            first, self.first = self.first, None
            yield first
        yield from self._rest


class _Body:
    """The body that the server sends. Connections acquired while it streams count as the
    request's.
    """

    def __init__(self, exchange: Exchange, body: Iterable[bytes], chunks: Iterable[bytes]) -> None:
        self._exchange, self._body = exchange, body
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = request_leaks.current.set(self._exchange.taken)
        try:
            return next(self._chunks)
        finally:
            request_leaks.current.reset(token)

    def close(self) -> None:
        """Handle the server's close."""
        token = request_leaks.current.set(self._exchange.taken)
        try:
            self._exchange.over(self._body)
        finally:
            request_leaks.current.reset(token)


class _Keeper:
    """A request's body, kept as it is read so that the next attempt can read it again."""

    def __init__(self, environ: Environ, limit: int) -> None:
        self._source = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH")
        self._left = int(length) if length else None  # None: chunked, the server ends it
        self._limit = limit
        self.kept = bytearray()
        self.overflowed = False  #: more was read than is kept: no further attempt

    def open(self) -> io.BufferedReader:
        """Return the body from its beginning."""
        return io.BufferedReader(_Reader(self))

    def more(self, size: int) -> bytes:
        """Return the client's next bytes."""
        if self._left is not None:
            size = min(size, self._left)
        data: bytes = self._source.read(size) if size else b""
        if self._left is not None:
            self._left -= len(data)
        if len(self.kept) + len(data) > self._limit:
            self.overflowed = True
        if not self.overflowed:
            self.kept += data
        return data


class _Reader(io.RawIOBase):
    def __init__(self, keeper: _Keeper) -> None:
        self._keeper, self._at = keeper, 0

    def readable(self) -> bool:
        """Return True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Return the kept bytes first, then those that the client still sends."""
        data = bytes(self._keeper.kept[self._at : self._at + len(buffer)]) or self._keeper.more(
            len(buffer)
        )
        self._at += len(data)
        buffer[: len(data)] = data
        return len(data)
