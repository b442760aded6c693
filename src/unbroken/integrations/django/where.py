"""The address of an alias, and its login: the hosts of ``HOST`` and ``PORT``, and callables as
``USER`` and ``PASSWORD``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from unbroken.abc import Address, Login, Target
from unbroken.drivers._addresses import USUAL, listed, of_framework
from unbroken.drivers._login import aimed
from unbroken.drivers.url import at
from unbroken.pool.secrets import LoginError, ask, checked

#: Names that ``OPTIONS`` may use for Django's own settings.
_IN_OPTIONS = {
    "HOST": ("host", "hostaddr", "unix_socket"),
    "PORT": ("port",),
    "USER": ("user",),
    "PASSWORD": ("password", "passwd"),
}
#: Django's own modules and ours.
OWN = ("django.db.", "unbroken.")


def said(given: dict[str, Any], name: str) -> Any:
    """Return the value of *name* in the settings *given*; None: there is none. ``OPTIONS`` win for
    the user and the password, as in both of Django's backends; a driver refuses two hosts.
    """
    options = given["OPTIONS"]
    own = next((options[each] for each in _IN_OPTIONS[name] if options.get(each)), None)
    return own if name in ("USER", "PASSWORD") and callable(own) else given[name] or own


def hosts_of(given: dict[str, Any], backend: str) -> tuple[Address, ...]:
    """Return the hosts that the settings *given* name: ``HOST = "db1,db2"``, with ``PORT`` for all
    of them or one for each, or with the ports behind the hosts.

    Raises ConfigurationError for a list that cannot be parsed.
    """
    hosts, ports = str(said(given, "HOST") or ""), str(said(given, "PORT") or "")
    return of_framework(
        listed(hosts) if hosts else (), listed(ports) if ports else (), USUAL.get(backend)
    )


def target_of(given: dict[str, Any], backend: str) -> Target:
    """Return the target of the settings *given*, for messages and for state that the pools of one
    server share.
    """
    user, password = said(given, "USER"), said(given, "PASSWORD")
    target = Target(
        scheme=backend,
        backend=backend,
        user=user if isinstance(user, str) else None,
        password=password if isinstance(password, str) else None,
        database=str(given["NAME"]) if given["NAME"] else None,
    )
    found = hosts_of(given, backend)
    if found:
        return at(target, found)
    host, socket = said(given, "HOST"), given["OPTIONS"].get("unix_socket")
    return replace(target, host=None if host == socket else host, unix_socket=socket)


def callable_of(given: dict[str, Any], name: str) -> Callable[[], Any] | None:
    """Return the callable that gives the user or the password; None: there is none."""
    found = said(given, name)
    return found if callable(found) else None


def turned(given: dict[str, Any], login: Login | None) -> dict[str, Any]:
    """Return the settings *given*, for one connect as *login*."""
    if login is None:
        return given
    out = {**given, "OPTIONS": dict(given["OPTIONS"])}
    new = {"HOST": login.host, "USER": login.user, "PASSWORD": login.password}
    if login.host is not None:
        new["PORT"] = str(login.port or "")
    for name, value in new.items():
        if value is not None:
            out[name] = value
            for each in _IN_OPTIONS[name]:
                out["OPTIONS"].pop(each, None)
    return out


def names_one_host(given: dict[str, Any], backend: str) -> bool:
    """Return whether Django understands ``HOST`` and ``PORT`` of the settings *given* by itself."""
    text = str(said(given, "HOST") or "")
    if "," in text:
        return False
    found = hosts_of(given, backend) if ":" in text else ()
    return not found or found[0][0] == text


def is_simple(given: dict[str, Any], backend: str) -> bool:
    """Return whether Django understands the settings *given* by itself."""
    asked = callable_of(given, "USER") or callable_of(given, "PASSWORD")
    return asked is None and names_one_host(given, backend)


def asks_anew(cls: Any) -> bool:
    """Return whether a backend *cls* of the application's own gives the login at each connect."""
    names = ("get_connection_params", "get_new_connection")
    return any(not getattr(cls, name).__module__.startswith(OWN) for name in names)


# ---- connections for creating databases, which no pool opens -------------------------------------


def with_secrets(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings *given*, with a fresh user and password."""
    return turned(given, Login(None, None, _text(given, "USER"), _text(given, "PASSWORD")))


def at_first(given: dict[str, Any], backend: str) -> dict[str, Any]:
    """Return the settings *given*, at the first of their hosts: Django reads one."""
    if names_one_host(given, backend):
        return given
    return turned(given, Login(*next(iter(hosts_of(given, backend)), (None, None))))


def _text(given: dict[str, Any], name: str) -> str | None:
    function = callable_of(given, name)
    if function is None:
        return None
    try:
        return checked(name.lower(), ask(name.lower(), function))
    except LoginError as exc:
        raise exc.__cause__ or exc from None


def first_that_opens(
    given: dict[str, Any], backend: str, params: dict[str, Any], make: Callable[[Any], Any]
) -> Any:
    """Return the result of *make*, called with *params* for one host of the settings *given* after
    the other.
    """
    socket = None if backend == "postgresql" else "unix_socket"
    *others, last = hosts_of(given, backend) or ((None, None),)
    for each in others:
        with suppress(Exception):  # the last one raises the reason
            return make(aimed(params, Login(*each), "password", socket))
    return make(aimed(params, Login(*last), "password", socket))
