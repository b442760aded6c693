"""Passwords and users that are asked for at each attempt to connect.

A callable's result is used for one attempt. Nothing here keeps it.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from unbroken.abc import Fault, FaultKind, Target
from unbroken.backends.system import one_line
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import BAD_LOGIN, SETTING_HAS_NO_USE
from unbroken.net.ending import NoThreadError
from unbroken.net.forks import Connecting
from unbroken.net.signals import start_thread
from unbroken.pool.callables import is_coroutine_function

#: Maximum number of concurrent calls of blocking functions beside an event loop.
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Secrets:
    """The callables that give a pool's user and password. None: the URL's.

    A callable's ``repr`` may contain a secret (``functools.partial`` shows its arguments).
    """

    user: Callable[[], Any] | None = field(default=None, repr=False)
    password: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def are_asked(self) -> bool:
        """Whether a callable is asked."""
        return self.user is not None or self.password is not None


NO_SECRETS = Secrets()


class LoginError(Exception):
    """A callable gave no secret. *fault*: NOT_READY if another call may succeed, else REJECTED."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def take_secrets(
    target: Target | None, password: Any, user: Any, *, is_async: bool
) -> tuple[Target | None, Secrets]:
    """Split a pool's arguments *password* and *user* into texts, which replace the URL's, and
    callables.

    Raises ConfigurationError for any other type, and if they have no use.
    """
    for name, value in (("user", user), ("password", password)):
        if not (value is None or isinstance(value, str) or callable(value)):
            raise ConfigurationError(
                BAD_LOGIN(f"{name}= is {_a(value)}; give a string, or a callable that returns one")
            )
        if not is_async and is_coroutine_function(value):
            raise ConfigurationError(BAD_LOGIN(_ASYNC.format(name=name)))
    if (user, password) != (None, None) and (target is None or target.backend == "sqlite"):
        where = "a SQLite file has no users" if target else "let connect= read them"
        raise ConfigurationError(
            SETTING_HAS_NO_USE(f"user= and password= cannot be used here: {where}")
        )
    if target is not None and isinstance(user, str):
        target = replace(target, user=user)
    if target is not None and isinstance(password, str):
        target = replace(target, password=password)
    return target, Secrets(
        None if isinstance(user, str) else user,
        None if isinstance(password, str) else password,
    )


_ASYNC = (
    "the callable for the {name} is a coroutine function, which only AsyncPool can await; give Pool"
    " a plain function, such as lambda: asyncio.run(read_secret())"
)


def ask(name: str, function: Callable[[], Any]) -> Any:
    """The result of *function*. Raises LoginError from any exception. *name*: ``password`` or
    ``user``.

    A fork of the process waits for it as for a connect: it may hold the locks of a TLS library.
    Every exception is its own (a time limit of gevent's, for example), because this is no caller's
    thread.
    """
    try:
        with Connecting():
            return function()
    except BaseException as exc:
        raise raised(name, exc) from exc


def raised(name: str, exc: BaseException) -> LoginError:
    """The LoginError for *exc*, which the callable *name* raised. Its text is not repeated, because
    it may quote the secret; it is the error's ``__cause__``.
    """
    text = one_line(f"the callable for the {name} raised {type(exc).__name__} (see the cause)")
    return LoginError(Fault(FaultKind.NOT_READY, None, None, text))


def late(name: str, limit: float) -> LoginError:
    """The LoginError for the callable *name*, which has not returned in time."""
    text = f"the callable for the {name} has not returned within {limit:g} s; give it a time limit"
    return LoginError(Fault(FaultKind.NOT_READY, None, None, text))


def checked(name: str, value: Any) -> str:
    """*value*, the result of the callable *name*, if it can be used. Raises LoginError."""
    if isinstance(value, str) and value:
        return value
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise LoginError(Fault(FaultKind.REJECTED, None, None, _ASYNC.format(name=name)))
    text = f"the callable for the {name} returned {_a(value)}; it must return a non-empty string"
    raise LoginError(Fault(FaultKind.REJECTED, None, None, text))


def _a(value: Any) -> str:
    """*value* by its type, never by its content."""
    if value is None or value == "":
        return "None" if value is None else "an empty string"
    name = type(value).__name__
    if isinstance(value, bytes):
        return name
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class Aside:
    """Runs blocking functions beside an event loop, each on its own thread: at most AT_ONCE.

    Neither the loop nor the interpreter's shutdown waits for one that hangs.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._running = 0

    async def ask(self, name: str, function: Callable[[], Any]) -> Any:
        """Like :func:`ask`. A coroutine function is called on the loop; an awaitable result is
        awaited.
        """
        if is_coroutine_function(function):
            found = function()
        else:
            found = await self._on_thread(name, function)
        try:
            return await found if inspect.isawaitable(found) else found
        except BaseException as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # we cancelled it
            raise raised(name, exc) from exc

    async def _on_thread(self, name: str, function: Callable[[], Any]) -> Any:
        if self._running >= AT_ONCE:
            text = (
                f"{self._running} earlier calls for the {name} have not returned; give them a time"
                " limit"
            )
            raise LoginError(Fault(FaultKind.NOT_READY, None, None, text))
        done = self._loop.create_future()

        def work() -> None:
            outcome: tuple[Any, LoginError | None]
            try:
                outcome = ask(name, function), None
            except LoginError as exc:
                outcome = None, exc
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(over, outcome)

        def over(outcome: tuple[Any, LoginError | None]) -> None:
            self._running -= 1
            if not done.done():
                done.set_result(outcome)

        try:
            start_thread(work, name="unbroken-secret")
        except NoThreadError as why:
            kind = FaultKind.REJECTED if why.is_ending else FaultKind.NOT_READY
            text = f"no thread can be started to call the callable for the {name} ({why})"
            raise LoginError(Fault(kind, None, None, text)) from None
        self._running += 1
        value, error = await done
        if error is not None:
            raise error
        return value
