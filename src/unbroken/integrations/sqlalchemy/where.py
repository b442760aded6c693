"""The address and the login of an engine's connects: the hosts of its URL, and callables among its
``connect_args``.

SQLAlchemy makes the driver's arguments once. Each attempt of ours may go to another host, or as
another user. A ``do_connect`` event, before those of the application, changes the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Engine

from unbroken.abc import NO_OPTIONS, Address, Login, Target, is_path
from unbroken.drivers._addresses import ENCODE, USUAL, listed, of_framework
from unbroken.drivers.url import BACKENDS, at
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import URL_HOSTS
from unbroken.pool.secrets import NO_SECRETS, Secrets, take_secrets

#: The DBAPIs' names for a user and a password.
_NAMES = {"user": ("user", "username"), "password": ("password", "passwd")}


def hosts_of(url: URL) -> tuple[Address, ...]:
    """Return the hosts that *url* names, in each spelling that SQLAlchemy accepts.

    Raises ConfigurationError if several hosts cannot be parsed. A single one that cannot be parsed
    is left to the driver, and gives no address. Raises also if a part of the password is in the
    place of the database. No message shows it.
    """
    if url.host and url.password and "@" in (url.database or ""):
        raise ConfigurationError(URL_HOSTS(f"the database name contains an '@'; {ENCODE}"))
    backend = BACKENDS.get(url.get_backend_name(), "")
    hosts = [*_texts(url.host), *(each for text in _query(url, "host") for each in _texts(text))]
    ports = [str(url.port)] if url.port else []
    ports += [each for text in _query(url, "port") for each in listed(text)]
    return of_framework(hosts, ports, USUAL.get(backend))


def _texts(text: str | None) -> list[str]:
    return listed(text) if text else []


def _query(url: URL, name: str) -> Sequence[str]:
    given = url.query.get(name, ())
    return (given,) if isinstance(given, str) else given


def target_of(url: URL, hosts: Sequence[Address]) -> Target:
    """Return the target of *url*, for messages and as the key of the server's record. *hosts*: from
    :func:`hosts_of`.
    """
    backend = BACKENDS.get(url.get_backend_name(), url.get_backend_name())
    usual = USUAL.get(backend)
    name, user, password = url.drivername, url.username, url.password
    target = Target(
        name, backend, "localhost", usual, None, user, password, url.database, NO_OPTIONS
    )
    if len(hosts) > 1:
        return at(target, hosts)
    host, port = hosts[0] if hosts else (url.host, url.port)
    socket = _socket(url)
    if host and is_path(host):
        host, socket = None, socket or host
    return replace(target, host=host or "localhost", port=port or usual, unix_socket=socket)


def _socket(url: URL) -> str | None:
    given = (*_query(url, "unix_socket"), *_query(url, "unix_sock"))
    return ",".join(given) or None


def with_one_host(url: URL, hosts: Sequence[Address]) -> URL:
    """Return *url* with only the first of *hosts*, in a form that every dialect reads."""
    host, port = hosts[0]
    url = url.difference_update_query(["host", "port"])
    if not is_path(host):
        return url.set(host=host)._replace(port=port)
    name = "host" if BACKENDS.get(url.get_backend_name()) == "postgresql" else "unix_socket"
    return url._replace(host=None, port=port).update_query_dict({name: host})


def needs_one_host(url: URL, hosts: Sequence[Address]) -> bool:
    """Return whether SQLAlchemy or the driver would misread *url*: there are several *hosts*, or
    MySQL's only one is in the query, with its port.
    """
    is_misread = url.get_backend_name() != "postgresql" and "host" in url.query
    return len(hosts) > 1 or (bool(hosts) and is_misread)


def take_callables(target: Target, kwargs: dict[str, Any], *, is_async: bool) -> Secrets:
    """Remove the callables from the ``connect_args`` of *kwargs*, and return them.

    Raises ConfigurationError for a coroutine function that cannot be awaited.
    """
    args = dict(kwargs.get("connect_args") or {})
    found: dict[str, Callable[[], Any]] = {}
    for what, names in _NAMES.items():
        for name in names:
            if callable(args.get(name)):
                found[what] = args.pop(name)
    if not found:
        return NO_SECRETS
    kwargs["connect_args"] = args
    password, user = found.get("password"), found.get("user")
    return take_secrets(target, password, user, is_async=is_async)[1]


def aim(engine: Engine, driver: Any) -> None:
    """Direct each connect of *engine* from now on to the target of its attempt. *driver* is
    unbroken's.
    """

    def turn(_dialect: Any, record: Any, _cargs: Any, cparams: dict[str, Any]) -> None:
        login: Login | None = getattr(record, "login", None)
        if login is not None:
            turned = driver.turned(cparams, login)
            cparams.clear()
            cparams.update(turned)

    event.listen(engine, "do_connect", turn, insert=True)
