"""A database URL, spelled as SQLAlchemy spells it, into a :class:`~unbroken.abc.Target`.

``scheme://user:password@host:port/database?option=value``. User, password, database and options are
percent-encoded (RFC 3986); an IPv6 host stands in brackets; a unix socket is ``?unix_socket=/path``
for MySQL and ``?host=/folder`` for PostgreSQL, as their drivers call it. ``sqlite:///relative``,
``sqlite:////absolute``, ``sqlite://`` is in memory.

Every error is a :class:`~unbroken.errors.ConfigurationError` of one line, and none repeats anything
that might hold the password: of a URL that cannot be read, only the scheme is shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from urllib.parse import quote, unquote, unquote_plus

from unbroken.abc import Target
from unbroken.errors import ConfigurationError

#: First part of a scheme -> backend. ``postgres`` is what several hosting providers write.
BACKENDS = {
    "mysql": "mysql",
    "mariadb": "mariadb",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "sqlite": "sqlite",
}

#: Every scheme that means something, drivers whose files come later included; for "did you mean".
SCHEMES = (
    "mysql", "mysql+pymysql", "mysql+mysqldb", "mysql+mysqlconnector", "mysql+mariadbconnector",
    "mysql+aiomysql", "mysql+asyncmy", "mariadb", "mariadb+pymysql", "mariadb+mysqldb",
    "mariadb+mariadbconnector", "mariadb+mysqlconnector", "mariadb+aiomysql", "mariadb+asyncmy",
    "postgresql", "postgresql+psycopg", "postgresql+psycopg_async", "postgresql+psycopg2",
    "postgresql+pg8000", "postgresql+asyncpg", "postgres", "sqlite", "sqlite+pysqlite",
)  # fmt: skip

EXAMPLE = "mysql+pymysql://user:password@host:3306/database"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_.+-]{0,40})://(.*)", re.DOTALL)
# As SQLAlchemy reads it: a password may hold anything but '@' unescaped …
_USERINFO = re.compile(r"([^:/?@]*)(?::([^@]*))?@")
# … unless it looks like a port and what follows one: then host:3306/db?option=a@b is meant, which
# has no password.
_PORT_FIRST = re.compile(r"\d{1,5}[/?]")
_HOST = re.compile(r"[^\s\x00-\x1f\x7f\[\]/?#@:\\%<>\"']+")
_IPV6 = re.compile(r"(?=[^%]*:)[0-9A-Fa-f:.]+(%[\w.-]+)?", re.ASCII)
_ENCODE = (
    "'@', '/', '?' and ':' in a user, password or database are percent-encoded (%40 %2F %3F %3A)"
)


def parse(url: str) -> Target:
    """The target that *url* names. Raises ConfigurationError, never with a password in it."""
    if not isinstance(url, str):
        raise ConfigurationError(
            f"a database URL must be a text such as {EXAMPLE!r}, not a {type(url).__name__}"
        )
    if not _is_unicode(url):
        raise ConfigurationError(
            "the database URL holds bytes that are not UTF-8 (of an environment variable?);"
            " percent-encode them"
        )
    found = _SCHEME.fullmatch(url.strip())
    if not found:
        raise ConfigurationError(
            f"this is not a database URL (no scheme://); write something like {EXAMPLE!r}"
        )
    scheme, rest = found[1].lower(), found[2]
    backend = BACKENDS.get(scheme.partition("+")[0])
    if backend is None or scheme not in SCHEMES:
        raise ConfigurationError(_unknown_scheme(scheme))
    if backend == "sqlite":
        path, _, query = rest.partition("?")
        return _sqlite(scheme, path, _options(query))
    user, password, rest = _userinfo(rest)
    rest, _, query = rest.partition("?")
    address, _, path = rest.partition("/")
    if "@" in path:
        raise ConfigurationError(f"the URL cannot be read; {_ENCODE}")
    host, port = _address(address)
    database = _decoded(path, "database") or None
    return _server(
        Target(scheme, backend, host, port, None, user, password, database, _options(query))
    )


def _is_unicode(text: str) -> bool:
    """Whether it can be encoded: what Python reads from the environment may stand for bytes that
    are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown_scheme(scheme: str) -> str:
    close = difflib.get_close_matches(scheme, SCHEMES, 1)
    if close:
        return f"unknown scheme {scheme!r}; did you mean {close[0]!r}?"
    return f"unknown scheme in the database URL; known: {', '.join(SCHEMES)}"


def near(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown *name*: "did you mean …?" where something is close, else what is
    known.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def render(target: Target) -> str:
    """*target* as a URL that :func:`parse` reads back, password included: for drivers, never for
    messages.
    """
    if target.backend == "sqlite":
        path = f"/{quote(target.database, safe='/')}" if target.database else ""
        return _with_query(f"{target.scheme}://{path}", dict(target.options))
    user = quote(target.user, safe="") if target.user is not None else ""
    if target.password is not None:
        user += ":" + quote(target.password, safe="")
    host = target.host or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{target.port}" if target.port is not None else ""
    database = quote(target.database or "", safe="")
    url = f"{target.scheme}://{user}{'@' if user else ''}{host}{port}/{database}"
    options = dict(target.options)
    if target.unix_socket:
        options["host" if target.backend == "postgresql" else "unix_socket"] = target.unix_socket
    return _with_query(url, options)


def _with_query(url: str, options: dict[str, str]) -> str:
    return url + (
        "?" + "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in options.items())
        if options
        else ""
    )


def _sqlite(scheme: str, rest: str, options: dict[str, str]) -> Target:
    if rest and not rest.startswith("/"):
        raise ConfigurationError(
            "a SQLite URL has three slashes: 'sqlite:///file.db' (four for an absolute path);"
            " 'sqlite://' is in memory"
        )
    path = _decoded(rest[1:], "file")
    return Target(
        scheme,
        "sqlite",
        database=None if path in ("", ":memory:") else path,
        options=MappingProxyType(options),
    )


def _server(target: Target) -> Target:
    """*target* with what stands in the query, but means the address, taken out of there."""
    options, host, port = dict(target.options), target.host, target.port
    socket: str | None = None
    if target.scheme.endswith("+pg8000") and "unix_sock" in options:
        socket = options.pop("unix_sock") or None
    elif target.backend == "postgresql":
        given = options.get("host")
        if given is not None and (given.startswith("/") or host is None):
            del options["host"]
            socket, host = (given, host) if given.startswith("/") else (None, _host(given))
        if "port" in options and port is None:
            port = _port(options.pop("port"))
    elif "unix_socket" in options:
        socket = options.pop("unix_socket") or None
    return replace(
        target, host=host or None, port=port, unix_socket=socket, options=MappingProxyType(options)
    )


def _userinfo(rest: str) -> tuple[str | None, str | None, str]:
    found = _USERINFO.match(rest)
    if not found or (found[2] is not None and _PORT_FIRST.match(found[2])):
        return None, None, rest
    info, after = found[0][:-1], rest[found.end() :]
    authority = re.split(r"[/?]", after, maxsplit=1)[0]
    if "@" in authority:  # an '@' that stands unescaped in the password: the last one is the border
        more = authority.rpartition("@")[0]
        info, after = f"{info}@{more}", after[len(more) + 1 :]
    user, colon, password = info.partition(":")
    return _decoded(user, "user") or None, _decoded(password, "password") if colon else None, after


def _address(address: str) -> tuple[str | None, int | None]:
    if address.startswith("["):
        inside, bracket, after = address[1:].partition("]")
        if not bracket or (after and not after.startswith(":")) or not _IPV6.fullmatch(inside):
            raise ConfigurationError(
                "the host in [brackets] is not an IPv6 address; write it like [::1]:5432"
            )
        return inside, _port(after[1:]) if len(after) > 1 else None
    host, _, port = address.partition(":")
    if ":" in port:
        raise ConfigurationError(
            f"the host holds more than one ':'; an IPv6 address stands in [brackets], and {_ENCODE}"
        )
    return _host(_decoded(host, "host")) or None, _port(port) if port else None


def _host(name: str) -> str:
    """*name*, decoded, if a host can be called so."""
    if name and not _HOST.fullmatch(name) and not _IPV6.fullmatch(name):
        raise ConfigurationError(f"the host holds a character that no host has; {_ENCODE}")
    return name


def _port(text: str) -> int:
    # The text is not shown: in a URL with an unescaped '@' or '/' it may be a piece of the
    # password.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ConfigurationError(f"the port is not a number from 1 to 65535; {_ENCODE}")
    return int(text)


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in query.split("&"):
        if not part:
            continue
        name, equals, value = part.partition("=")
        name = _decoded(name, "query")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII):
            raise ConfigurationError("the URL's query is not of the form ?name=value&name=value")
        options[name] = _decoded(value, "query", plus=True)
    return options


def _decoded(text: str, what: str, *, plus: bool = False) -> str:
    try:
        return (unquote_plus if plus else unquote)(text, errors="strict")
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"the {what} in the URL is not UTF-8 once its %-escapes are decoded"
        ) from None
