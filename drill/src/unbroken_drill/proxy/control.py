"""A fault proxy's HTTP port: each verb by POST, for applications and tests in other languages.

GET /            the proxy's address, the server's address, and every verb with its arguments.
GET /connections every connection.
GET /events      ?after=SERIAL&wait=SECONDS (at most 30).
POST /rst        {"on": 2} … any verb, its arguments as a JSON object (an empty body: none).

Answers are JSON. An error is {"error": "one line"} with status 400 (wrong arguments), 404 or 409
(impossible now).
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import CONTROL_REQUEST, PROXY_ADDRESS, PROXY_CANNOT_LISTEN
from unbroken_drill.proxy.addresses import Address, Given, address
from unbroken_drill.proxy.errors import ProxyError
from unbroken_drill.proxy.faultproxy import FaultProxy

#: The operations that POST accepts; the arguments are those of FaultProxy's method of that name.
VERBS = (
    "fin", "rst", "half_close", "cut_after", "blackhole", "stall", "idle_limit", "latency",
    "throttle", "slice", "quiet_after", "refuse", "hang_connect", "fail_next", "cut_at", "heal",
)  # fmt: skip
_MOST = 64 * 1024  #: bytes of a request's body
_LONGEST = 30.0  #: seconds that GET /events waits


def arguments(verb: str, given: Any) -> dict[str, Any]:
    """Check *given* against the method that *verb* names, and return it. Raises ConfigurationError
    that names the problem.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            CONTROL_REQUEST(f"{verb} takes a JSON object of arguments, such as {{}}")
        )
    parameters = inspect.signature(getattr(FaultProxy, verb)).parameters
    known = {name: each for name, each in parameters.items() if name != "self"}
    if verb == "cut_at":
        known["pattern"] = inspect.Parameter(
            "pattern", inspect.Parameter.KEYWORD_ONLY, default=None
        )
        if "pattern" in given:
            return _with_pattern(known, given)
    for name in given:
        if name not in known:
            raise ConfigurationError(
                CONTROL_REQUEST(
                    f"{verb} has no argument {name!r}; it takes {', '.join(known) or 'none'}"
                )
            )
    for name, each in known.items():
        if each.default is inspect.Parameter.empty and name not in given:
            raise ConfigurationError(CONTROL_REQUEST(f"{verb} needs {name}"))
    return dict(given)


def _with_pattern(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in given.items() if name != "pattern"}
    if "statement" in rest or not isinstance(given["pattern"], str):
        raise ConfigurationError(
            CONTROL_REQUEST(
                "cut_at takes either a statement or a pattern, as text; its arguments are"
                f" {', '.join(known)}"
            )
        )
    try:
        return {
            **arguments("cut_at", {**rest, "statement": ""}),
            "statement": re.compile(given["pattern"]),
        }
    except re.error as error:
        raise ConfigurationError(
            CONTROL_REQUEST(f"pattern={given['pattern']!r} is not a regular expression: {error}")
        ) from None


def body(data: bytes) -> Any:
    """Parse a request's body: JSON, or nothing for no arguments."""
    if not data.strip():
        return {}
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ConfigurationError(CONTROL_REQUEST("the body is not JSON")) from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def query(text: str) -> tuple[int, float]:
    """Return ``after`` and ``wait`` of a query."""
    found = parse_qs(text[:1000])
    try:
        after, wait = int(found.get("after", ["0"])[-1]), float(found.get("wait", ["0"])[-1])
    except ValueError:
        raise ConfigurationError(
            CONTROL_REQUEST(
                "after must be a whole number, and wait a number of seconds:"
                " /events?after=12&wait=5"
            )
        ) from None
    if math.isnan(wait):
        raise ConfigurationError(CONTROL_REQUEST("wait=nan must be a number of seconds"))
    return after, min(max(wait, 0.0), _LONGEST)


class Control:
    """The HTTP port of a started *proxy*; a context manager. *listen*: its address, by default a
    free port on the loopback.

    There is no password: any process that reaches the port can break the connections. Raises
    ConfigurationError for an address that is not the loopback, unless *anywhere*, and ProxyError if
    the port is taken.
    """

    def __init__(
        self, proxy: FaultProxy, listen: Given = ("127.0.0.1", 0), *, anywhere: bool = False
    ) -> None:
        wanted = address(listen, "control", least_port=0)
        if wanted.path is not None:
            raise ConfigurationError(
                PROXY_ADDRESS(
                    f"control={wanted.path!r} must be a TCP address such as 127.0.0.1:8475"
                )
            )
        if not anywhere and not _is_loopback(wanted.host):
            raise ConfigurationError(
                PROXY_ADDRESS(
                    f"control={wanted} is not a loopback address such as 127.0.0.1; every client"
                    " that reaches this port can break the connections"
                )
            )
        family, name = wanted.resolve()[0]
        server = type("Server", (_Server,), {"address_family": family})
        try:
            self._server: _Server = server(name[:2], _Handler)
        except OSError as error:
            why = error.strerror or str(error)
            raise ProxyError(
                PROXY_CANNOT_LISTEN(
                    f"cannot listen for control on {wanted}: {why}; choose another address, or port"
                    " 0 for a free one"
                )
            ) from None
        self._server.proxy = proxy
        self.address = Address(wanted.host, self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="proxy control",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: FaultProxy

    def server_bind(self) -> None:
        """Bind like the base class, but do not ask the name service for our own name, which can
        take seconds.
        """
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that closed its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "unbroken", ""
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work: Any) -> None:
        try:
            self._refuse_strangers()
            status, found = work()
        except ConfigurationError as error:
            status, found = 400, {"error": str(error)}
        except ProxyError as error:
            status, found = 409, {"error": str(error)}
        data = json.dumps(found).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status != 200:
            self.send_header("Connection", "close")  # the rest of the request is not read
        self.end_headers()
        self.wfile.write(data)

    def _refuse_strangers(self) -> None:
        """Refuse a web page in a browser on this machine: it must not control the proxy, neither by
        a name of its own, nor across origins.
        """
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.headers.get("Origin") is not None or not (_is_loopback(host) or _is_address(host)):
            raise ConfigurationError(
                CONTROL_REQUEST(
                    "web pages cannot use this port: send no Origin, and an address or localhost"
                    " as the Host"
                )
            )

    def _get(self) -> tuple[int, Any]:
        where, proxy = urlsplit(self.path), self.server.proxy
        if where.path == "/":
            return 200, {**described(proxy), "verbs": {verb: _signature(verb) for verb in VERBS}}
        if where.path == "/connections":
            return 200, [asdict(info) for info in proxy.connections]
        if where.path == "/events":
            after, wait = query(where.query)
            return 200, [asdict(event) for event in proxy.events_after(after, wait)]
        return 404, {"error": "known: GET /, GET /connections, GET /events, and POST for each verb"}

    def _post(self) -> tuple[int, Any]:
        verb = urlsplit(self.path).path.strip("/")
        if verb not in VERBS:
            return 404, {"error": f"unknown verb; known: {', '.join(VERBS)}"}
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit() and int(length[:10]) <= _MOST):
            raise ConfigurationError(
                CONTROL_REQUEST(f"a body needs a Content-Length of at most {_MOST} bytes")
            )
        getattr(self.server.proxy, verb)(**arguments(verb, body(self.rfile.read(int(length)))))
        return 200, {"done": verb}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Log nothing: the proxy's own log records the operations."""


def described(proxy: FaultProxy) -> dict[str, Any]:
    """Return the addresses of *proxy* and of its server."""
    where = proxy.address
    listen = where if isinstance(where, str) else str(Address(*where))
    return {
        "listen": listen,
        "upstream": proxy.upstream,
        "protocol": proxy.protocol,
        "seed": proxy.seed,
    }


def _signature(verb: str) -> dict[str, Any]:
    found = {}
    for name, each in inspect.signature(getattr(FaultProxy, verb)).parameters.items():
        if name != "self":
            found[name] = "needed" if each.default is inspect.Parameter.empty else each.default
    return found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
