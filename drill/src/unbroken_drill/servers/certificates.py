"""A private certificate authority and a server's certificate, made by the ``openssl`` command."""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path

from unbroken_drill.messages import SERVER_NOT_HERE
from unbroken_drill.servers import folders, processes
from unbroken_drill.servers.errors import ServerUnavailable

_DAYS = "2"  # a server for tests lives for minutes
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", _DAYS]


def require() -> str:
    """Return the path of the ``openssl`` command. Raises ServerUnavailable if there is none."""
    found = shutil.which("openssl")
    if found is None:
        raise ServerUnavailable(
            SERVER_NOT_HERE("tls=True needs the command openssl; install openssl")
        )
    return found


def make(folder: Path, host: str) -> None:
    """Create ``ca.pem``, ``server.pem`` and ``server.key`` in the new *folder*, for *host*,
    localhost and the loopback addresses.
    """
    openssl = require()
    folder.mkdir(mode=0o700)
    folders.own(folder)
    try:
        name = f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        name = f"DNS:{host}"
    names = f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1,{name}"
    signs = (  # Python 3.13 verifies strictly (VERIFY_X509_STRICT): RFC 5280, 4.2.1.3
        "keyUsage=critical,keyCertSign,cRLSign"
    )
    ca = [
        "-x509",
        "-subj",
        "/CN=unbroken test CA",
        "-addext",
        signs,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    ]
    server = [
        "-x509",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-subj",
        "/CN=localhost",
        "-addext",
        names,
    ]
    plain = [
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
    ]
    processes.run([openssl, "req", *_KEY, *ca], folder)
    processes.run([openssl, "req", *_KEY, *server, *plain], folder)
    (folder / "server.key").chmod(0o600)
