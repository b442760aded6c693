"""A connected socket for pg8000, with TLS if that is wanted."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from unbroken.abc import Target
from unbroken.drivers import _tls
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import BAD_OPTION

_TLS_FILES = ("sslrootcert", "sslcert", "sslkey")
TLS = ("sslmode", *_TLS_FILES)  #: options of a URL


_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


_SSL_REQUEST = struct.pack("!II", 8, 80877103)  # PostgreSQL manual, "SSLRequest"


def connected(
    target: Target, options: Mapping[str, Any], timeout: float, error: type[BaseException]
) -> Any:
    """Return a connected socket, with TLS if it is wanted. *error* is raised if TLS is not
    available.

    pg8000's own way loads the CA store each time, 19 of 20 ms.
    """
    path, mode = target.unix_socket, mode_of(options)
    if path is not None:
        if not os.path.basename(path).startswith(".s.PGSQL."):  # libpq's form: the folder
            path = os.path.join(path, f".s.PGSQL.{target.port or 5432}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    host = target.host or "localhost"
    if path is None:
        sock = socket.create_connection((host, target.port or 5432), timeout)
    try:
        sock.settimeout(timeout)
        send_at_once(sock)
        if path is not None:
            sock.connect(path)
        elif options.get("tcp_keepalive", True):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        is_plain = path is not None or mode in ("disable", "allow")
        return sock if is_plain else _with_tls(sock, host, mode, options, error)
    except BaseException:
        sock.close()
        raise


def send_at_once(sock: Any) -> None:
    """Make data written to *sock* leave before the data written earlier is acknowledged.

    pg8000 keeps the system's default, with which a statement behind a ROLLBACK would wait.
    """
    with suppress(OSError, AttributeError):  # a unix socket, or an object of the application's own
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _with_tls(
    sock: socket.socket,
    host: str,
    mode: str,
    options: Mapping[str, Any],
    error: type[BaseException],
) -> Any:
    sock.sendall(_SSL_REQUEST)
    answer = sock.recv(1)
    if answer == b"S":
        files = [options.get(name) for name in _TLS_FILES]
        context = _tls.shared(("pg8000", mode, *files), files, lambda: _context(mode, options))
        return context.wrap_socket(sock, server_hostname=host)
    if answer != b"N":
        raise error("network error: the server closed the connection during the handshake")
    if mode != "prefer":
        raise error(f"server does not support SSL, but sslmode={mode} requires it")
    return sock


def mode_of(options: Mapping[str, Any]) -> str:
    """Return the URL's ``sslmode``. Raises ConfigurationError for an unknown one."""
    mode: str = options.get("sslmode", "prefer")
    if mode not in _MODES:
        raise ConfigurationError(
            BAD_OPTION(f"option sslmode={mode!r} in the URL is not one of {', '.join(_MODES)}")
        )
    return mode


def _context(mode: str, options: Mapping[str, Any]) -> Any:
    """Return libpq's *mode* as an SSL context."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    root = options.get("sslrootcert")
    if mode.startswith("verify") or root is not None:
        (
            context.load_default_certs()
            if root in (None, "system")
            else context.load_verify_locations(root)
        )
    else:
        context.verify_mode = ssl.CERT_NONE
    if "sslcert" in options:
        context.load_cert_chain(options["sslcert"], options.get("sslkey"))
    return context
