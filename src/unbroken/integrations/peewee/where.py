"""The address of a database, and its login: its hosts, and callables as ``user`` and
``password``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from unbroken.abc import Address, Login, Target
from unbroken.drivers import _diagnosis, _login
from unbroken.drivers._addresses import USUAL, listed, of_framework
from unbroken.drivers._diagnosis import Option
from unbroken.drivers.url import at, parse
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.messages.configuration import BAD_SETTING

#: Parameters that messages show in another way.
_SAID = ("host", "port", "user", "password", "passwd", "unix_socket")
_NAMES = {"user": ("user",), "password": ("password", "passwd")}


def hosts_of(given: Mapping[str, Any], backend: str) -> tuple[Address, ...]:
    """Return the hosts that the arguments *given* name: ``host="db1,db2"`` with one ``port`` for
    all of them or one for each, or with the ports behind the hosts.

    Raises ConfigurationError for a list that cannot be parsed.
    """
    hosts, ports = _texts("host", given.get("host")), _texts("port", given.get("port"))
    return of_framework(hosts, ports, USUAL[backend])


def _texts(name: str, given: Any) -> list[str]:
    found = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
    for each in found:
        if not isinstance(each, (str, int)) or isinstance(each, bool) or not _is_short(each):
            raise ConfigurationError(
                BAD_SETTING(f"{name}={shown(given)} must be a string or a number")
            )
    return [str(each) for each in found] if isinstance(given, (list, tuple)) else [
        text for each in found for text in listed(str(each))
    ]  # fmt: skip


def _is_short(each: str | int) -> bool:
    """Return whether *each* is short. Python refuses to convert a number of thousands of digits to
    text.
    """
    return isinstance(each, str) or abs(each) < 1 << 64


def target_of(name: str, params: Mapping[str, Any], driver: str) -> Target:
    """Return the target of the database *name* with peewee's *params*, as far as they give it."""
    backend = "postgresql" if driver.startswith("psycopg") else "mysql"
    known = {each: params[each] for each in ("host", "port", "unix_socket") if params.get(each)}
    password = next((params[each] for each in _NAMES["password"] if params.get(each)), None)
    target = Target(f"{backend}+{driver}", backend, database=name, password=None)
    if backend == "postgresql" and "://" in name:
        read = parse(name)
        password = password or read.password
        target = replace(read, scheme=target.scheme, options=target.options)
        found = hosts_of(known, backend) or read.hosts
    else:
        found = hosts_of(known, backend)
    if not found:
        found = ((str(known.get("host") or "localhost"), None),)
    if len(found) == 1:
        host, port = found[0]
        found = ((host, port or USUAL[backend]),)
    if isinstance(password, str):
        target = replace(target, password=password)
    return at(target, found, known.get("unix_socket"))


def options_of(params: Mapping[str, Any]) -> tuple[Option, ...]:
    """Return the driver's options among peewee's *params*, for messages."""
    rest = {name: value for name, value in params.items() if name not in _SAID}
    return _diagnosis.options_of(rest, "in the database's arguments")


def callables_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a pool's ``user=`` and ``password=`` that peewee's *params* give as
    callables.
    """
    return {
        what: params[name]
        for what, names in _NAMES.items()
        for name in names
        if callable(params.get(name))
    }


def turned(params: Mapping[str, Any], login: Login | None, backend: str) -> dict[str, Any]:
    """Return peewee's *params*, for one connect as *login*."""
    socket = "unix_socket" if backend == "mysql" else None
    if ":" in str(params.get("host")):  # its port may follow it
        found = hosts_of(params, backend)
        params = _login.turned(params, Login(*found[0]), "password", socket) if found else params
    return _login.turned(params, login, "password", socket)


def without_hosts(url: str) -> tuple[str, dict[str, Any]]:
    """Return *url* without its hosts, and these as peewee's argument, if there are several: the
    standard library reads one.
    """
    parts = urlsplit(url)
    user, sign, where = parts.netloc.rpartition("@")
    named = [value for name, value in parse_qsl(parts.query) if name == "host"]
    if "," in where:
        return urlunsplit(parts._replace(netloc=user + sign)), {"host": where}
    return url, {"host": ",".join(named)} if len(named) > 1 else {}
