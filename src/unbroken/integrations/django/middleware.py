"""``unbroken.django.middleware.UnbrokenMiddleware`` runs requests again if that is provably safe,
and answers outages with 503.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

from unbroken.errors import ConfigurationError
from unbroken.integrations.django.others import follow, follow_others
from unbroken.integrations.django.request_body import Body
from unbroken.integrations.django.units import attempt, attempt_async, give_back, give_back_async
from unbroken.integrations.web import exchange as _http
from unbroken.integrations.web.answers import Swallowed, page, report
from unbroken.integrations.web.exchange import Exchange
from unbroken.integrations.web.settings import HttpSettings
from unbroken.pool import running, running_async

#: The key under which a request holds its :class:`_Exchange`.
KEY = "_unbroken_exchange"
_OURS = ("methods", "replay", "priority", "max_body", "max_replays", "deadline")


class UnbrokenMiddleware:
    """The middleware, sync and async. Put it first in MIDDLEWARE.

    Requests with safe methods (GET, HEAD, OPTIONS) and those whose view is
    ``@unbroken.django.replayable`` are run again from here on, if a connection was lost and nothing
    was committed. An outage is answered with 503 and Retry-After.

    The setting UNBROKEN, a dictionary, changes the defaults: ``methods``, ``replay`` (path
    prefixes, or a callable that gets ``request.META``), ``priority`` (the same), ``max_body``
    (bytes), ``max_replays``, ``deadline`` (seconds). Raises ImproperlyConfigured.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.settings = _settings()
        self.is_async = iscoroutinefunction(get_response)
        connection_created.connect(follow, dispatch_uid="unbroken")
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Return the response; under ASGI, an awaitable of it."""
        exchange = _Exchange(self.settings, request)
        return self._run_async(exchange) if self.is_async else self._run(exchange)

    def _run(self, exchange: _Exchange) -> Any:
        try:
            exchange.watch(exchange.whole())
            if not exchange.prepare():
                return exchange.finish(self.get_response(exchange.request))

            def once() -> Any:
                exchange.begin()
                return exchange.consider(self.get_response(exchange.request))

            limits = self.settings
            done = running.run_unit(
                lambda: attempt(once), limits.deadline, limits.max_replays, subject=exchange
            )
            return exchange.finish(done)
        except Exception as exc:
            give_back()
            return exchange.failed(exc)
        finally:
            exchange.unwatch()

    async def _run_async(self, exchange: _Exchange) -> Any:
        try:
            exchange.watch(exchange.whole())
            if not exchange.prepare():
                return await exchange.finish_async(await self.get_response(exchange.request))

            async def once() -> Any:
                exchange.begin()
                return exchange.consider(await self.get_response(exchange.request))

            limits = self.settings
            done = await running_async.run_unit_async(
                lambda: attempt_async(once),
                limits.deadline,
                limits.max_replays,
                subject=exchange,
            )
            return await exchange.finish_async(done)
        except Exception as exc:
            await give_back_async()
            return exchange.failed(exc)
        finally:
            exchange.unwatch()

    def process_exception(self, request: HttpRequest, exception: Exception) -> Any:
        """Handle an exception of a view, before Django makes a page of it and reports it: check
        whether another attempt follows.
        """
        exchange = request.__dict__.get(KEY)
        return None if exchange is None else exchange.raised(exception)


def _settings() -> HttpSettings:
    given = getattr(settings, "UNBROKEN", {})
    for name in given:
        if name not in _OURS and name in {field.name for field in fields(HttpSettings)}:
            raise ImproperlyConfigured(
                f"UNBROKEN[{name!r}] is not a setting of the Django middleware; known:"
                f" {', '.join(_OURS)}"
            )
    try:
        return HttpSettings.of(**given)
    except ConfigurationError as exc:
        raise ImproperlyConfigured(f"UNBROKEN: {exc}") from exc


class _Exchange(Exchange):
    """One request, its attempts and its response."""

    remedy = (
        "mark its view with @unbroken.django.replayable, or name its path in UNBROKEN['replay']"
    )

    def __init__(self, settings: HttpSettings, request: HttpRequest) -> None:
        super().__init__(request.method or "", request.path)
        self.settings, self.request = settings, request
        if settings.priority is not None:
            self.rank = settings.rank(request.path, request.META)
        self._before: dict[str, Any] = {}
        self._meta: dict[str, Any] = {}
        self._body: Body | None = None  # None: it cannot be read again

    def whole(self) -> Exchange | None:
        """Return the exchange of a middleware of ours around all of Django, for the same
        request.
        """
        scope = getattr(self.request, "scope", None)
        whole: Exchange | None = (self.request.META if scope is None else scope).get(_http.KEY)
        return whole

    # -- attempts ----------------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Return whether this request may be run again. If so, everything that another attempt
        needs is kept.
        """
        request = self.request
        request.__dict__[KEY] = self
        follow_others()
        if self._may_replay():
            self._body = Body.of(request, self.settings.max_body)
            if self._body is None:
                self.hindrance = (
                    f"its body is longer than max_body={self.settings.max_body} bytes, or was"
                    " already read"
                )
        if self._body is None:
            return False
        self.limits = self.settings
        self._before, self._meta = dict(request.__dict__), dict(request.META)
        return True

    def _may_replay(self) -> bool:
        request = self.request
        if self.settings.may_replay(request.method, request.path, request.META):
            return True
        if self.settings.replay is not None and callable(self.settings.replay):
            return False
        try:
            view = resolve(request.path_info, getattr(request, "urlconf", None)).func
        except Resolver404:
            return False
        return getattr(view, "unbroken_replayable", False) is True

    def begin(self) -> None:
        """Begin an attempt. From the second on, the request is restored."""
        request = self.request
        if self.attempt():
            request.__dict__.clear()
            request.__dict__.update(self._before)
            request.META.clear()
            request.META.update(self._meta)
        if self._body is not None:
            self._body.rewind()

    def raised(self, exc: Exception) -> Any:
        """Handle *exc*, which a view raised. Returns a placeholder response for the final answer,
        or None: Django then continues.

        The answer is decided when all middleware is done, because until then data may be stored.
        """
        if self.limits is not None:
            give_back()
        if not self.would_replay(exc) and not self.is_ours(exc):
            return None
        stands_for = HttpResponse(status=503)
        stands_for.unbroken_cause = exc
        return stands_for

    def consider(self, response: Any) -> Any:
        """Return the response of an attempt. Raises if another attempt should follow."""
        cause = getattr(response, "unbroken_cause", None)
        if cause is not None and self.would_replay(cause):
            raise cause
        cause = self.curable() if response.status_code >= 500 else None
        if cause is not None:
            raise Swallowed(f"answered with {response.status_code}") from cause
        return response

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, response: Any) -> Any:
        """Return the response to send. It replaces a page that Django made of an outage by ours.

        The connection is returned now: some servers (Tornado's WSGIContainer) end a response on a
        thread other than the one that made it.
        """
        if not response.streaming:
            give_back()
        return self._finished(response)

    async def finish_async(self, response: Any) -> Any:
        """Do the same as :meth:`finish`."""
        if response.status_code >= 500:
            await give_back_async()
        return self._finished(response)

    def _finished(self, response: Any) -> Any:
        cause = response.__dict__.pop("unbroken_cause", None)
        if cause is None:
            try:
                self.reconsider(response.status_code)
                return response
            except Swallowed as exc:
                response, cause = HttpResponse(), exc
        return self._filled(response, cause)

    def failed(self, exc: Exception) -> Any:
        """Handle the failure of all attempts. Raises the exception that Django should make a page
        of.
        """
        return self._filled(HttpResponse(), exc)

    def _filled(self, response: Any, exc: BaseException) -> Any:
        """Return *response* filled with the answer to *exc*, and with the headers that middleware
        has added. Raises the app's error if it is not a database's.
        """
        answer = self.answer(exc)
        if answer is None:
            raise exc.__cause__ if isinstance(exc, Swallowed) and exc.__cause__ is not None else exc
        report(answer, self.method, self.request.path)
        headers, body = page(answer, self.request.META.get("HTTP_ACCEPT", ""))
        for name in ("Content-Encoding", "ETag"):  # of the page that it replaced
            response.headers.pop(name, None)
        response.status_code, response.content = int(answer.status[:3]), body
        for name, value in headers:
            response.headers[name] = value
        return response
