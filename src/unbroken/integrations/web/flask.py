"""``unbroken.flask.Unbroken``: an extension that runs Flask's requests again after a lost
connection, and returns all connections at their end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import flask
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.integrations import _foreign
from unbroken.integrations.web import flask_mongo as _flask_mongo
from unbroken.integrations.web import health as _health
from unbroken.integrations.web import request_leaks
from unbroken.integrations.web import wsgi as _wsgi
from unbroken.integrations.web.answers import Answer, json_page, page, report
from unbroken.integrations.web.exchange import KEY, log
from unbroken.integrations.web.flask_engines import make_unbroken
from unbroken.integrations.web.settings import HttpSettings
from unbroken.messages.configuration import BAD_SETTING
from unbroken.messages.integrations import FLASK_USAGE, MONGO_SETTINGS, SESSION_NOT_ENDED

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__unbroken_replay__"


def replay(view: F) -> F:
    """Mark a view whose requests can be run again with any method, for example one that inserts a
    row.

    The database rolls back the writes of a lost attempt. The view's other effects (mails, files)
    happen again.
    """
    setattr(view, _MARK, True)
    return view


def no_replay(view: F) -> F:
    """Mark a view whose requests are never run again, not even those with a safe method."""
    setattr(view, _MARK, False)
    return view


class Unbroken:
    """The extension: ``Unbroken(app)``, or ``Unbroken()`` and ``init_app(app)``.

    Flask-SQLAlchemy's engines get ``plugins=["unbroken"]``, unless the configuration chose a pool
    class. MongoEngine's connections are registered according to ``MONGODB_SETTINGS``,
    Flask-PyMongo's clients become unbroken ones, and ``MONGO_URI`` is :attr:`mongo`.

    Each request with a safe method (*methods*), or to a view marked with :func:`replay`, is run
    again from the start, including ``before_request`` and teardown, if a connection was lost and
    nothing was committed. An outage is answered with 503 and Retry-After; an error handler for 503
    can render the page.

    When a request ends, no connection stays checked out, even if the response was streamed or a
    teardown raised. This covers Flask-SQLAlchemy's session and engines (found automatically),
    *sessions* (scoped_session registries) and *databases* (pools, engines).

    *commit*: commit Flask-SQLAlchemy's session and *sessions* after a successful view (status below
    400), before the response is sent. An error of the COMMIT is handled as if the view had raised
    it. Off by default.

    The other settings are those of :class:`unbroken.wsgi.Unbroken`. Raises ConfigurationError for
    settings that cannot work.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        *,
        commit: bool = False,
        sessions: Any = (),
        **settings: Any,
    ) -> None:
        if not isinstance(commit, bool):
            raise ConfigurationError(BAD_SETTING(f"commit={shown(commit)} must be True or False"))
        self.commit = commit
        self.sessions: tuple[Any, ...] = (
            tuple(sessions) if isinstance(sessions, (list, tuple)) else (sessions,)
        )
        for registry in self.sessions:
            if not hasattr(registry, "remove"):
                raise ConfigurationError(
                    BAD_SETTING(
                        f"sessions={shown(registry)} must be scoped_session registries, which have"
                        " remove()"
                    )
                )
        self._settings = settings
        HttpSettings.of(**settings)  # raises for a wrong setting now, not at init_app
        self._app: flask.Flask | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Set up *app*, once, before or after Flask-SQLAlchemy."""
        if "unbroken" in app.extensions:
            raise ConfigurationError(
                FLASK_USAGE(
                    "Unbroken(app) was already called for this app; call it once for each app"
                )
            )
        app.extensions["unbroken"] = self
        self._app = app
        make_unbroken(app)
        _flask_mongo.make_unbroken(app)
        app.wsgi_app = _App(app, self, self._settings)  # type: ignore[method-assign] # Flask's documented way
        _Hooks(app, self).install()

    @property
    def mongo(self) -> _flask_mongo.Mongo:
        """The database of ``MONGO_URI`` for the current app: ``mongo.db`` and its client
        ``mongo.cx``, as in Flask-PyMongo.
        """
        if self._app is None and not flask.has_app_context():
            raise ConfigurationError(
                FLASK_USAGE(
                    "mongo needs an app; use it in a request or an app context, or after"
                    " Unbroken(app)"
                )
            )
        app = flask.current_app._get_current_object() if flask.has_app_context() else self._app  # type: ignore[attr-defined] # a proxy
        found = _flask_mongo.mongo_of(app)
        if found is None:
            raise ConfigurationError(
                MONGO_SETTINGS(
                    'this app has no MONGO_URI; set app.config["MONGO_URI"] before you call'
                    " Unbroken(app)"
                )
            )
        return found

    def blueprint(self, name: str = "unbroken", **options: Any) -> flask.Blueprint:
        """``/healthz`` and ``/readyz`` as a blueprint, for apps that want a url_prefix or
        decorators.
        """
        pages = flask.Blueprint(name, __name__, **options)

        @pages.get("/healthz")
        @no_replay
        def healthz() -> flask.Response:
            return _json({"status": "ok"}, 200)

        @pages.get("/readyz")
        @no_replay
        def readyz() -> flask.Response:
            app = flask.current_app
            middleware = next(m for m in _layers(app.wsgi_app) if isinstance(m, _App))
            well, states = _health.ready(middleware.asked(), middleware.settings.ready_timeout)
            return _json({"status": "ok" if well else "away", **states}, 200 if well else 503)

        return pages


def _layers(app: Any) -> Iterable[Any]:
    """Yield a WSGI callable and the callables inside it, as far as middleware exposes them."""
    while app is not None:
        yield app
        app = (
            None
            if isinstance(app, _App)
            else getattr(app, "app", None) or getattr(app, "wsgi_app", None)
        )


def _json(shown: Mapping[str, Any], status: int) -> flask.Response:
    headers, body = json_page(shown, [("Cache-Control", "no-store")])
    return flask.Response(body, status, headers)


class _App(_wsgi.Unbroken):
    """The app's ``wsgi_app``: it knows Flask's views and Flask-SQLAlchemy's engines."""

    remedy = "mark its view with @unbroken.flask.replay, or name its path in replay="

    def __init__(self, app: flask.Flask, extension: Unbroken, settings: Mapping[str, Any]) -> None:
        super().__init__(app.wsgi_app, **settings)
        self._flask, self._extension = app, extension
        self._marks: dict[str, Any] | None = None
        self._begun = False

    def __call__(
        self, environ: _wsgi.Environ, start_response: _wsgi.StartResponse
    ) -> Iterable[bytes]:
        if not self._begun:
            self._begun = True
            _flask_mongo.warn_of_plain_aliases()
        for engine in self._engines():
            request_leaks.watch(engine)
            _foreign.follow(engine)
        return super().__call__(environ, start_response)

    def may_replay(self, environ: _wsgi.Environ) -> bool:
        """Return whether this request may be run again: the view's mark overrides the settings."""
        marks = self._marks
        if marks is None:
            marks = self._marks = {
                e: view for e, view in self._flask.view_functions.items() if _is_marked(view)
            }
        if marks:
            answer = self._marked(marks, environ)
            if answer is not None:
                return answer
        return super().may_replay(environ)

    def _marked(self, marks: Mapping[str, Any], environ: _wsgi.Environ) -> bool | None:
        method = environ["REQUEST_METHOD"]
        try:
            adapter = self._flask.url_map.bind_to_environ(environ, server_name=None)
            endpoint, _ = adapter.match(method=method)
        except HTTPException:
            return None  # a redirect, or an unknown path: the app answers
        view = marks.get(endpoint)
        if view is None:
            return None
        of_class = getattr(getattr(view, "view_class", None), method.lower(), None)
        mark: bool | None = getattr(of_class, _MARK, None)
        return getattr(view, _MARK, None) if mark is None else mark

    def databases(self) -> Iterable[Any]:
        """The named databases, and Flask-SQLAlchemy's engines."""
        named = tuple(self.settings.databases)
        return (*named, *(engine for engine in self._engines() if engine not in named))

    def asked(self) -> Iterable[Any]:
        """The same databases, and MongoDB's."""
        named = tuple(self.databases())
        clients = [client for each in named if (client := _health.mongo_client(each)) is not None]
        return (
            *named,
            *(
                each
                for each in _flask_mongo.databases(self._flask)
                if _health.mongo_client(each) not in clients
            ),
        )

    def _engines(self) -> Iterable[Any]:
        extension = self._flask.extensions.get("sqlalchemy")
        # .engines needs an app context, and there is none at the end
        engines = getattr(extension, "_app_engines", None)
        return tuple(engines.get(self._flask, {}).values()) if engines is not None else ()

    def clean(self, taken: request_leaks.Taken) -> None:
        """End the sessions first, which return their connections in order, then take back all
        others.
        """
        for registry in self._extension.sessions:
            _remove(registry)
        super().clean(taken)


def _is_marked(view: Any) -> bool:
    methods = getattr(getattr(view, "view_class", None), "methods", None) or ()
    return hasattr(view, _MARK) or any(
        hasattr(getattr(view.view_class, m.lower(), None), _MARK) for m in methods
    )


def _remove(registry: Any) -> None:
    """End a registry's session; one that cannot be ended is forgotten, and its connection found
    among the request_leaks.
    """
    try:
        registry.remove()
    except Exception:
        log.exception(
            "session not closed",
            SESSION_NOT_ENDED("a session could not be closed at the end of its request"),
        )
        inner = getattr(registry, "registry", None)
        if inner is not None:
            inner.clear()


class _Hooks:
    """The methods of the app that are replaced.

    Flask calls these methods through the app, so it allows that.
    """

    def __init__(self, app: flask.Flask, extension: Unbroken) -> None:
        self._app: Any = app  # Flask 3.2 gives these methods one more argument, the context
        self._extension = extension
        self._dispatch: Callable[..., flask.Response] = app.full_dispatch_request
        self._user_exception: Callable[..., Any] = app.handle_user_exception
        self._exception: Callable[..., flask.Response] = app.handle_exception
        self._teardown: Callable[..., None] = app.do_teardown_appcontext

    def install(self) -> None:
        """Put ours in their places."""
        app = self._app
        app.handle_user_exception = self.handle_user_exception
        app.handle_exception = self.handle_exception
        app.do_teardown_appcontext = self.do_teardown_appcontext
        if self._extension.commit:
            app.full_dispatch_request = self.full_dispatch_request

    def handle_user_exception(self, *args: Any) -> Any:
        """Keep an error that another attempt fixes from the app's error handlers."""
        exchange = _exchange()
        if exchange is not None and exchange.would_replay(args[-1]):
            raise args[-1]
        return self._user_exception(*args)

    def handle_exception(self, *args: Any) -> flask.Response:
        """Handle an error that no handler took: run the request again, or answer 503, or Flask's
        500.
        """
        exchange, exc = _exchange(), args[-1]
        if exchange is None:
            return self._exception(*args)
        if exchange.would_replay(exc):
            raise exc
        if not exchange.is_ours(exc):
            return self._exception(*args)
        # otherwise open work might be committed, by an after_request function, say
        self._roll_back()
        answer = exchange.answer(exc)
        if answer is None:
            return self._exception(*args)
        report(answer, flask.request.method, flask.request.path)
        response: flask.Response = self._app.finalize_request(
            *args[:-1], self._page(answer), from_error_handler=True
        )
        return response

    def _roll_back(self) -> None:
        for registry in self._registries():
            try:
                if registry.registry.has():
                    registry.rollback()
            except Exception:
                log.exception(
                    "session not closed",
                    SESSION_NOT_ENDED("a session could not be rolled back"),
                    about="rollback",
                )

    def _page(self, answer: Answer) -> Any:
        """The app's own page for 503 if it has one, otherwise ours."""
        headers, body = page(answer, flask.request.headers.get("Accept", ""))
        if answer.retry_after is not None:
            error = ServiceUnavailable(answer.detail, retry_after=answer.retry_after)
            drawn = self._app.handle_http_exception(error)
            if drawn is not error:
                response = self._app.make_response(drawn)
                response.headers.setdefault("Retry-After", str(answer.retry_after))
                return response
        return self._app.response_class(body, answer.status, headers)

    def do_teardown_appcontext(self, *args: Any, **kwargs: Any) -> None:
        """End the sessions, regardless of the app's own teardown functions."""
        try:
            self._teardown(*args, **kwargs)
        finally:
            for registry in self._registries():
                _remove(registry)

    def _registries(self) -> Iterable[Any]:
        of_app = getattr(self._app.extensions.get("sqlalchemy"), "session", None)
        return (*(() if of_app is None else (of_app,)), *self._extension.sessions)

    def full_dispatch_request(self, *args: Any) -> flask.Response:
        """With ``commit=True``: commit before the client can see a success."""
        response = self._dispatch(*args)
        if response.status_code >= 400:
            return response
        try:
            for registry in self._registries():
                if registry.registry.has():
                    registry.commit()
        except Exception as exc:
            self._roll_back()
            response = self._app.finalize_request(
                *args, self._app.handle_user_exception(*args, exc)
            )
        return response


def _exchange() -> _wsgi.Exchange | None:
    """Return the request's exchange, if it came in through our middleware."""
    exchange: _wsgi.Exchange | None = (
        flask.request.environ.get(KEY) if flask.has_request_context() else None
    )
    return exchange
