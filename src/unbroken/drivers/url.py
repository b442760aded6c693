"""Translates a database URL, in SQLAlchemy's form, into a :class:`~unbroken.abc.Target`.

``scheme://user:password@host:port/database?option=value``. User, password, database and options are
percent-encoded (RFC 3986). An IPv6 host is in brackets. A unix socket is ``?unix_socket=/path`` for
MySQL and ``?host=/folder`` for PostgreSQL, the names that their drivers use. The hosts of a cluster
follow each other: ``host1:port1,host2:port2``; _addresses.py handles all spellings of them.
``sqlite:///relative`` and ``sqlite:////absolute`` name files; ``sqlite://`` is in memory.

Every error is a :class:`~unbroken.errors.ConfigurationError` of one line. None repeats anything
that might hold the password: of a URL that cannot be parsed, only the scheme is shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import quote, unquote, unquote_plus

from unbroken.abc import Address, Target, is_path
from unbroken.drivers._addresses import ENCODE, USUAL, bracketed, cluster, listed, port_of
from unbroken.drivers._wrong_urls import no_text, no_url, unknown_scheme
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import (
    NOT_A_URL,
    UNKNOWN_SCHEME,
    URL_HOSTS,
    URL_QUERY,
    URL_UNREADABLE,
)

#: First part of a scheme -> backend. Several hosting providers write ``postgres``.
BACKENDS = {
    "mysql": "mysql",
    "mariadb": "mariadb",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "sqlite": "sqlite",
}

#: Every valid scheme, drivers whose files come later included; for "did you mean".
SCHEMES = (
    "mysql", "mysql+pymysql", "mysql+mysqldb", "mysql+mysqlconnector", "mysql+mariadbconnector",
    "mysql+aiomysql", "mysql+asyncmy", "mariadb", "mariadb+pymysql", "mariadb+mysqldb",
    "mariadb+mariadbconnector", "mariadb+mysqlconnector", "mariadb+aiomysql", "mariadb+asyncmy",
    "postgresql", "postgresql+psycopg", "postgresql+psycopg_async", "postgresql+psycopg2",
    "postgresql+pg8000", "postgresql+asyncpg", "postgres", "sqlite", "sqlite+pysqlite",
)  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_.+-]{0,40})://(.*)", re.DOTALL)
# As SQLAlchemy reads it: a password may hold any unescaped character except '@' …
_USERINFO = re.compile(r"([^:/?@]*)(?::([^@]*))?@")
# … unless it looks like a port and the text behind one: then host:3306/db?option=a@b is meant,
# which has no password.
_PORT_FIRST = re.compile(r"\d{1,5}(?:,[\w.:\[\]-]*)?[/?]")
_IPV6_FIRST = re.compile(r"\[[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[^\]@/?]*\]")


def parse(url: str) -> Target:
    """Return the target that *url* names. Raises ConfigurationError, never with a password in
    it.
    """
    if not isinstance(url, str):
        raise ConfigurationError(NOT_A_URL(no_text(url)))
    if not _is_unicode(url):
        raise ConfigurationError(
            URL_UNREADABLE(
                "the database URL contains bytes that are not UTF-8 (from an environment"
                " variable?); percent-encode them"
            )
        )
    found = _SCHEME.fullmatch(url.strip())
    if not found:
        raise ConfigurationError(NOT_A_URL(no_url(url.strip())))
    if _CONTROL.search(found[0]):
        raise ConfigurationError(
            URL_UNREADABLE(
                "the database URL contains a line break, a tab or another control character (from"
                " an env file?); remove it, or percent-encode it"
            )
        )
    scheme, rest = found[1].lower(), found[2]
    backend = BACKENDS.get(scheme.partition("+")[0])
    if backend is None or scheme not in SCHEMES:
        raise ConfigurationError(UNKNOWN_SCHEME(unknown_scheme(scheme, SCHEMES, BACKENDS)))
    if backend == "sqlite":
        path, _, query = rest.partition("?")
        return _sqlite(scheme, path, _options(query).rest)
    user, password, rest = _userinfo(rest)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path:
        raise ConfigurationError(URL_UNREADABLE(f"the URL cannot be parsed; {ENCODE}"))
    hosts, ports = _listed(authority), None
    if len(hosts) == 1 and hosts[0].startswith(":"):  # a port, and no host
        hosts, ports = [], hosts[0][1:]
    options = _options(query, ports)
    target = Target(scheme, backend, None, None, None, user, password, None, options.rest)
    target = _placed(target, hosts, options)
    return replace(target, database=_decoded(path, "database") or None)


def _is_unicode(text: str) -> bool:
    """Return whether it can be encoded. Text that Python reads from the environment may stand for
    bytes that are not text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def near(name: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown *name*: "did you mean …?" if a known name is similar,
    otherwise the known names.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def render(target: Target) -> str:
    """Return *target* as a URL that :func:`parse` reads back, password included: for drivers, never
    for messages.
    """
    if target.backend == "sqlite":
        path = f"/{quote(target.database, safe='/')}" if target.database else ""
        return _with_query(f"{target.scheme}://{path}", dict(target.options))
    user = quote(target.user, safe="") if target.user is not None else ""
    if target.password is not None:
        user += ":" + quote(target.password, safe="", errors="surrogateescape")
    hosts = target.hosts
    if len(hosts) == 1 or not hosts:
        hosts = ((target.host or "", target.port),)
    where = ",".join(_written(*each) for each in hosts)
    database = quote(target.database or "", safe="")
    url = f"{target.scheme}://{user}{'@' if user else ''}{where}/{database}"
    options = dict(target.options)
    if target.unix_socket and len(hosts) == 1:
        options["host" if target.backend == "postgresql" else "unix_socket"] = target.unix_socket
    return _with_query(url, options)


def _written(host: str, port: int | None) -> str:
    name = quote(host, safe="") if is_path(host) else f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port is not None else name


def _with_query(url: str, options: dict[str, str]) -> str:
    return url + (
        "?" + "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in options.items())
        if options
        else ""
    )


def _sqlite(scheme: str, rest: str, options: dict[str, str]) -> Target:
    if rest and not rest.startswith("/"):
        raise ConfigurationError(
            NOT_A_URL(
                "a SQLite URL has three slashes: 'sqlite:///file.db' (four for an absolute path);"
                " 'sqlite://' is an in-memory database"
            )
        )
    path = _decoded(rest[1:], "file")
    return Target(
        scheme,
        "sqlite",
        database=None if path in ("", ":memory:") else path,
        options=MappingProxyType(options),
    )


def _placed(target: Target, hosts: list[str], query: _Query) -> Target:
    """Return *target* at *hosts*, or at those of *query*."""
    options = dict(target.options)
    usual = USUAL[target.backend]
    name = "unix_sock" if target.scheme.endswith("+pg8000") else "unix_socket"
    socket = options.pop(name, None) or None if _takes(target, name) else None
    there = query.hosts if any(query.hosts) or len(query.hosts) > 1 else []
    if hosts and len(there) == 1 and is_path(there[0]):
        socket = there[0]
    elif hosts and there and cluster(hosts, (), usual) != cluster(there, (), usual):
        raise ConfigurationError(
            URL_HOSTS(
                "the hosts are given twice, before the path and as ?host=; give them in one place"
            )
        )
    # no part of a password is left behind an '@'
    apart = target.user is not None or target.password is not None
    found = cluster(hosts or there, query.ports, usual, apart=apart) if hosts or there else ()
    if len(found) > 1 and (socket or "hostaddr" in options):
        raise ConfigurationError(
            URL_HOSTS(
                f"{name if socket else 'hostaddr'} cannot be combined with several hosts; in a list"
                " of hosts, a unix socket is a path that begins with '/'"
            )
        )
    target = replace(target, options=MappingProxyType(options))
    if found:
        return at(target, found, socket)
    ports = [port_of(each, apart=apart) for each in query.ports if each]
    return replace(target, port=ports[0] if ports else None, unix_socket=socket)


def _takes(target: Target, name: str) -> bool:
    """Return whether *name* is the option for a unix socket with the driver of *target*."""
    return target.backend != "postgresql" or name == "unix_sock"


def at(target: Target, hosts: Sequence[Address], socket: str | None = None) -> Target:
    """Return *target* at *hosts*, of which there is at least one. *socket* is the path of a unix
    socket that is used instead.
    """
    (host, port), *others = hosts
    path = socket or (host if is_path(host) else None)
    name = None if is_path(host) else host
    return replace(target, host=name, port=port, unix_socket=path, others=tuple(others))


def _userinfo(rest: str) -> tuple[str | None, str | None, str]:
    found = None if _IPV6_FIRST.match(rest) else _USERINFO.match(rest)
    if not found or (found[2] is not None and _PORT_FIRST.match(found[2])):
        return None, None, rest
    info, after = found[0][:-1], rest[found.end() :]
    authority = re.split(r"[/?]", after, maxsplit=1)[0]
    if "@" in authority:  # the password contains an unescaped '@': the last '@' ends it
        more = authority.rpartition("@")[0]
        info, after = f"{info}@{more}", after[len(more) + 1 :]
    user, colon, password = info.partition(":")
    return _decoded(user, "user") or None, _decoded(password, "password") if colon else None, after


@dataclass(frozen=True, slots=True)
class _Query:
    """A URL's query."""

    hosts: list[str]
    ports: list[str]
    rest: dict[str, str]


def _listed(text: str) -> list[str]:
    """Return the hosts of *text*, decoded."""
    return [_decoded(each, "host") for each in listed(text)] if text else []


def _options(query: str, port: str | None = None) -> _Query:
    """Return the parts of *query*. *port* is given elsewhere in the URL."""
    found = _Query([], [] if port is None else [port], {})
    for part in query.split("&"):
        if not part:
            continue
        name, equals, value = part.partition("=")
        name = _decoded(name, "query")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
            raise ConfigurationError(
                URL_QUERY("the URL's query must have the form ?name=value&name=value")
            )
        if name in ("host", "port"):
            several = listed(_decoded(value, "query", plus=True))
            if name == "host":
                found.hosts.extend(bracketed(each) for each in several)
            else:
                found.ports.extend(several)
        elif name in found.rest:
            raise ConfigurationError(
                URL_QUERY("an option appears twice in the URL's query; keep only one")
            )
        else:
            found.rest[name] = _decoded(value, "query", plus=True)
    return found


def _decoded(text: str, what: str, *, plus: bool = False) -> str:
    # a password may be any bytes: some drivers can send them
    errors = "surrogateescape" if what == "password" else "strict"
    try:
        found = (unquote_plus if plus else unquote)(text, errors=errors)
    except UnicodeDecodeError:
        raise ConfigurationError(
            URL_UNREADABLE(f"the {what} in the URL is not UTF-8 after its %-escapes are decoded")
        ) from None
    if "\0" in found:
        raise ConfigurationError(
            URL_UNREADABLE(f"the {what} in the URL contains a NUL character (%00)")
        )
    return found
