"""The hosts of a cluster, in every spelling that URLs and frameworks have for them.

``h1:p1,h2:p2`` before the path, SQLAlchemy's ``?host=h1:p1&host=h2:p2``, and libpq's
``?host=h1,h2&port=p1,p2``, where one port can serve all. IPv6 addresses are in brackets. A host
that begins with ``/`` is a unix socket.

An error names the wrong host by its number, because its text may be a part of the password.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence

from unbroken.abc import Address, is_path
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import URL_HOSTS

_HOST = re.compile(r"[^\s\x00-\x1f\x7f\[\]/?#@:\\%<>\"',;]+")
_IPV6 = re.compile(r"(?=[^%]*:[^%]*:)[0-9A-Fa-f:.]+(%[\w.-]+)?", re.ASCII)
_PATH = re.compile(r"(/[^:]+):(\d+)")  # the path of a unix socket that libpq names by its port
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
ENCODE = (
    "percent-encode '@', '/', '?' and ':' in a user name, password or database name (%40 %2F %3F"
    " %3A), as urllib.parse.quote(text, safe='') does"
)
#: The default ports, which a URL may leave out.
USUAL = {"mysql": 3306, "mariadb": 3306, "postgresql": 5432}


def listed(text: str) -> list[str]:
    """Return the hosts, or ports, of *text*, which commas separate."""
    return [each.strip() for each in text.split(",")]


def bracketed(host: str) -> str:
    """Return *host*, in brackets if it is a bare IPv6 address. Outside of a URL's authority, an
    IPv6 address without a port is written that way.
    """
    return f"[{host}]" if _IPV6.fullmatch(host) and _is_ipv6(host) else host


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except OSError:
        return False
    return True


def cluster(
    hosts: Sequence[str],
    ports: Sequence[str] = (),
    usual: int | None = None,
    *,
    apart: bool = False,
) -> tuple[Address, ...]:
    """Return the addresses that *hosts*, each with or without its port, and *ports* name: one port
    for all hosts, or one for each.

    *usual* is the port of a host that gives none. *apart*: the password is stored elsewhere, so a
    message may show a number.

    Raises ConfigurationError if they do not match or a host occurs twice.
    """
    several = len(hosts) > 1
    found = [_address(each, number, several, apart) for number, each in enumerate(hosts, 1)]
    if any(port is not None for _, port in found):
        if any(ports):
            raise ConfigurationError(
                URL_HOSTS(
                    "the ports are given twice, after the hosts and as ?port=; give them in one"
                    " place"
                )
            )
    elif ports:
        found = _with_ports(found, ports, apart)
    _check_twins(found, usual)
    return tuple(found)


def of_framework(
    hosts: Sequence[str], ports: Sequence[str], usual: int | None
) -> tuple[Address, ...]:
    """Do the same as :func:`cluster` for a framework's settings, where an IPv6 address may have no
    brackets. A single host that cannot be parsed is left to the driver, and gives no address.

    Raises ConfigurationError for an invalid port, for a list that cannot be parsed, and for a host
    that contains a part of the password. No message shows that part.
    """
    if any("@" in each and not is_path(each) for each in hosts):
        raise ConfigurationError(
            URL_HOSTS(f"the host contains an '@', which is not allowed; {ENCODE}")
        )
    try:
        found = [bracketed(each) for each in hosts]
        return cluster(found, ports, usual, apart=True) if hosts else ()
    except ConfigurationError:
        if len(hosts) > 1 or (hosts and hosts[0].count(":") == 1 and not is_path(hosts[0])):
            raise
        return ()
    finally:
        for each in ports:
            if each:
                port_of(each, apart=True)


def _with_ports(found: Sequence[Address], ports: Sequence[str], apart: bool) -> list[Address]:
    if len(ports) not in (1, len(found)):
        raise ConfigurationError(
            URL_HOSTS(
                f"{len(ports)} ports for {len(found)} host{'s' if len(found) > 1 else ''}; give one"
                " port for all hosts, or one for each"
            )
        )
    numbers = [port_of(each, apart=apart) if each else None for each in ports]
    numbers *= len(found) if len(numbers) == 1 else 1
    return [(host, number) for (host, _), number in zip(found, numbers, strict=True)]


def _check_twins(found: Iterable[Address], usual: int | None) -> None:
    seen: dict[tuple[str, int | None], int] = {}
    for number, (host, port) in enumerate(found, 1):
        name = host if is_path(host) else host.lower().rstrip(".")
        first = seen.setdefault((name, port or usual), number)
        if first != number:
            raise ConfigurationError(
                URL_HOSTS(
                    f"hosts {first} and {number} of the database URL are the same; write each host"
                    " once"
                )
            )


def _address(text: str, number: int, several: bool, apart: bool) -> Address:
    which = f"host {number} of the database URL" if several else "the host"
    encode = "" if apart else f"; {ENCODE}"
    if not text:
        raise ConfigurationError(
            URL_HOSTS(f"{which} is empty; write the hosts like db1:5432,db2:5432")
        )
    if is_path(text):
        path = _PATH.fullmatch(text)
        return (text, None) if path is None else (path[1], port_of(path[2], apart=apart))
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is not None or text.startswith("["):
        if bracketed is None or not _IPV6.fullmatch(bracketed[1]):
            raise ConfigurationError(
                URL_HOSTS(
                    f"{which} in [brackets] is not an IPv6 address; write one like [::1]:5432"
                )
            )
        port = bracketed[2]
        return bracketed[1], None if port is None else _port_behind(port, which, apart)
    name, colon, port = text.partition(":")
    if ":" in port:
        raise ConfigurationError(
            URL_HOSTS(
                f"{which} contains more than one ':'; write an IPv6 address in [brackets], as in"
                f" [2001:db8::1]:5432{encode}"
            )
        )
    if not _HOST.fullmatch(name):
        comma = "; separate several hosts by commas" if apart and ";" in name else ""
        found = f" ({_HOST.sub('', name)[:1]!r})" if apart else ""
        raise ConfigurationError(
            URL_HOSTS(f"{which} contains an invalid character{found}{comma}{encode}")
        )
    return name, _port_behind(port, which, apart) if colon else None


def _port_behind(text: str, which: str, apart: bool) -> int:
    if not text:
        encode = "write the port's number, or remove the ':'" if apart else ENCODE
        raise ConfigurationError(URL_HOSTS(f"{which} has a ':' without a port; {encode}"))
    return port_of(text, apart=apart)


def port_of(text: str, *, apart: bool = False) -> int:
    """Return the port that *text* names. Raises ConfigurationError, which shows *text* only if the
    password is stored *apart*.
    """
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536:
        return int(text)
    shown = f"the port {text[:20]}" if apart and re.fullmatch(r"-?\d+", text) else "the port"
    encode = "" if apart else f"; {ENCODE}"
    raise ConfigurationError(URL_HOSTS(f"{shown} is not a number from 1 to 65535{encode}"))
