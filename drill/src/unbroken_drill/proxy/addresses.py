"""The addresses of a proxy and of the server behind it, and database URLs that lead through it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import quote

from unbroken.abc import Target
from unbroken.drivers.url import BACKENDS, SCHEMES, parse, render
from unbroken.errors import ConfigurationError
from unbroken_drill.messages import PROXY_ADDRESS, PROXY_HOST
from unbroken_drill.proxy.errors import ProxyError

#: ``(host, port)``, ``"host:port"``, ``"[::1]:port"``, or a unix socket's path. A proxy's upstream
#: can be a URL too.
Given: TypeAlias = tuple[str, int] | Sequence[Any] | str | os.PathLike[str]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*://)([^/?#]*)(.*)", re.DOTALL)
_PG_SOCKET = re.compile(r"\.s\.PGSQL\.(\d+)")
_PORTS = {"mysql": 3306, "mariadb": 3306, "postgresql": 5432, "mongodb": 27017}
_SOCKET_OPTIONS = ("unix_socket", "unix_sock", "host", "port")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address or a unix socket's path."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def plain(self) -> tuple[str, int] | str:
        """``(host, port)``, or the path."""
        return self.path if self.path is not None else (self.host, self.port)

    def resolve(self) -> list[tuple[int, Any]]:
        """Return (family, address) of each way to get there, best first. Raises ProxyError if the
        name is not known.
        """
        if self.path is not None:
            return [(socket.AF_UNIX, self.path)]
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # DNS cannot spell every name
            raise ProxyError(
                PROXY_HOST(
                    f"cannot resolve {self.host!r}: {error}; give an address, or a name that this"
                    " machine can resolve"
                )
            ) from None
        return [(family, address) for family, _, _, _, address in found]


def address(given: Given, what: str, *, least_port: int = 1) -> Address:
    """Return *given* as an address. A ConfigurationError shows the spelling of *what*."""
    wrong = ConfigurationError(
        PROXY_ADDRESS(
            f"{what}={given!r} is not an address; write (host, port), 'host:port', '[::1]:port' or"
            " the path of a unix socket"
        )
    )
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
        given = given if not isinstance(given, str) or "/" in given else f"./{given}"
    if isinstance(given, str) and "\0" in given:
        raise wrong
    if isinstance(given, str):
        if "/" in given and "://" not in given:
            return Address(path=given)
        host, colon, port = given.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()):
            raise wrong
        if len(port) > 5 or not least_port <= int(port) < 65536:
            raise ConfigurationError(
                PROXY_ADDRESS(
                    f"{what}: the port {port[:20]} is not a number from {least_port} to 65535"
                )
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise wrong
        given = (host, int(port))
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise wrong
    name, number = given
    good = (
        isinstance(name, str)
        and name
        and "\0" not in name
        and isinstance(number, int)
        and not isinstance(number, bool)
    )
    if not good or not least_port <= number < 65536:
        raise wrong
    return Address(name, number)


def of_url(url: str) -> tuple[Address, str | None]:
    """Return the server's address in *url*, and the protocol there, ``mysql`` or ``postgresql``, if
    it is one of these.

    Raises ConfigurationError, never with a password in it, if the URL names no server.
    """
    scheme = url.partition("://")[0].lower()
    if scheme.partition("+")[0] in BACKENDS:
        target = parse(url)
        if target.backend not in _PORTS:
            raise ConfigurationError(
                PROXY_ADDRESS(
                    f"a {target.backend} URL names no server that a proxy can stand in front of"
                )
            )
        if target.others:
            raise ConfigurationError(
                PROXY_ADDRESS("a proxy stands in front of one server, but the URL names several")
            )
        protocol = "postgresql" if target.backend == "postgresql" else "mysql"
        if target.unix_socket is not None:
            return (
                Address(
                    path=(
                        _postgresql_path(target) if protocol == "postgresql" else target.unix_socket
                    )
                ),
                protocol,
            )
        return Address(target.host or "localhost", target.port or _PORTS[target.backend]), protocol
    found = _URL.fullmatch(url)
    authority = found[2].rpartition("@")[2] if found is not None else ""
    port = _PORTS.get(scheme)
    has_port = re.search(r":\d+$", authority) is not None
    try:
        return (
            address(authority if has_port or port is None else f"{authority}:{port}", "upstream"),
            None,
        )
    except ConfigurationError:
        raise ConfigurationError(
            PROXY_ADDRESS(
                "the URL names no host and port of a server; write something like"
                " mysql://app:secret@127.0.0.1:3306/shop"
            )
        ) from None


def _postgresql_path(target: Target) -> str:
    folder = target.unix_socket or ""
    return (
        folder
        if _PG_SOCKET.fullmatch(os.path.basename(folder))
        else os.path.join(folder, f".s.PGSQL.{target.port or 5432}")
    )


def through(url: str, here: Address) -> str:
    """Return *url* with its host and port (or unix socket) replaced by *here*. User, password,
    database and options stay.
    """
    if not isinstance(url, str):
        raise ConfigurationError(PROXY_ADDRESS(f"url must be a text, not a {type(url).__name__}"))
    host = "127.0.0.1" if here.host in ("", "0.0.0.0", "::") else here.host  # noqa: S104 - a name for it, not bound to
    scheme = url.partition("://")[0].lower()
    if scheme in SCHEMES and BACKENDS.get(scheme.partition("+")[0]) != "sqlite":
        target = parse(url)
        if here.path is None:
            options = {
                k: v for k, v in target.options.items() if k not in ("unix_socket", "unix_sock")
            }
            return render(
                replace(
                    target,
                    host=host,
                    port=here.port,
                    unix_socket=None,
                    options=MappingProxyType(options),
                )
            )
        if target.backend == "postgresql":
            return _postgresql_socket(url, here.path)
        return render(replace(target, host=None, port=None, unix_socket=here.path))
    found = _URL.fullmatch(url)
    if found is None or scheme.startswith("sqlite") or "+srv" in scheme:
        raise ConfigurationError(
            PROXY_ADDRESS(
                "the text is not the URL of a server; write something like"
                " mysql+pymysql://user:password@host:3306/database"
            )
        )
    if here.path is not None:
        raise ConfigurationError(
            PROXY_ADDRESS(
                f"a {scheme} URL cannot name a unix socket here; let the proxy listen on TCP"
            )
        )
    user, at, _ = found[2].rpartition("@")
    return f"{found[1]}{user}{at}{f'[{host}]' if ':' in host else host}:{here.port}{found[3]}"


def _postgresql_socket(url: str, path: str) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    found = _PG_SOCKET.fullmatch(name)
    if found is None:
        raise ConfigurationError(
            PROXY_ADDRESS(
                "PostgreSQL's clients need a socket with the name .s.PGSQL.5432; listen on"
                f" such a path, not {path}"
            )
        )
    target = parse(url)
    options = {k: v for k, v in target.options.items() if k not in _SOCKET_OPTIONS}
    if target.scheme.endswith("+pg8000"):
        options["unix_sock"] = os.path.abspath(path)
    else:
        options |= {"host": folder, "port": found[1]}
    bare = render(
        replace(target, host=None, port=None, unix_socket=None, options=MappingProxyType({}))
    )
    return (
        bare
        + "?"
        + "&".join(f"{quote(k, safe='')}={quote(v, safe='/')}" for k, v in options.items())
    )
