"""The fault proxy's HTTP port and its command: what other languages and people at a terminal
use.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigurationError
from unbroken_drill import FaultProxy, ProxyError
from unbroken_drill.proxy import control
from unbroken_drill.proxy.control import VERBS, Control

from .conftest import CLOSED, Line, until


class Remote:
    """A program that knows HTTP only."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        conn.request(method, path, data, headers)
        answer = conn.getresponse()
        found = json.loads(answer.read())
        conn.close()
        return answer.status, found


@pytest.fixture
def remote(plain_line: Line) -> Iterator[Remote]:
    with Control(plain_line.proxy) as port:
        yield Remote(port.address.port)


def test_faults_are_ordered_by_post_and_seen_by_get(plain_line: Line, remote: Remote) -> None:
    client, table = plain_line.client(), plain_line.table()
    assert remote.ask("POST", "/blackhole", {"mode": "hold"}) == (200, {"done": "blackhole"})
    asked = client.in_background()
    until(lambda: remote.ask("GET", "/connections")[1][0]["held"] > 0)
    assert asked.is_waiting
    assert remote.ask("POST", "/heal") == (200, {"done": "heal"})
    assert asked.wait() == 1
    assert remote.ask("POST", "/cut_at", {"pattern": f"INTO {table}", "before": False})[0] == 200
    with pytest.raises(Exception):  # noqa: B017 - each driver's own
        client.ask(f"INSERT INTO {table} VALUES (1)")
    assert plain_line.stored(table) == [1]
    second = plain_line.client()
    assert remote.ask("POST", "/rst", {"on": 2})[0] == 200
    until(lambda: second.kernel.state == CLOSED)
    events = remote.ask("GET", "/events")[1]
    assert {"blackhole", "healed", "cut", "rst"} <= {event["name"] for event in events}
    last = events[-1]["serial"]
    assert remote.ask("GET", f"/events?after={last}&wait=0.01") == (200, [])
    plain_line.proxy.heal()
    assert [event["name"] for event in remote.ask("GET", f"/events?after={last}&wait=10")[1]] == [
        "healed"
    ]


def test_it_tells_what_it_can(plain_line: Line, remote: Remote) -> None:
    status, found = remote.ask("GET", "/")
    assert status == 200
    assert found["upstream"] == f"127.0.0.1:{plain_line.server.port}"
    assert found["listen"] == f"127.0.0.1:{plain_line.proxy.port}"
    assert found["verbs"]["latency"] == {
        "seconds": "needed",
        "jitter": 0.0,
        "on": "all",
        "way": "both",
    }
    public = {
        name
        for name in dir(FaultProxy)
        if not name.startswith("_") and callable(getattr(FaultProxy, name))
    }
    assert set(found["verbs"]) == public - {"start", "close", "url", "events_after"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/nothing", None, 404, "known: GET /, GET /connections"),
        ("POST", "/close", {}, 404, "unknown verb; known: "),
        ("POST", "/__init__", {}, 404, "unknown verb; known: "),
        ("POST", "/rst", {"onn": 1}, 400, "rst has no argument 'onn'; it takes on"),
        ("POST", "/rst", {"on": "both"}, 400, "on='both' must be"),
        ("POST", "/rst", [1], 400, "takes a JSON object"),
        ("POST", "/rst", b"{", 400, "the body is not JSON"),
        ("POST", "/rst", b"[" * 50_000, 400, "the body is not JSON"),
        ("POST", "/rst", b"\xff\xfe", 400, "the body is not JSON"),
        ("POST", "/latency", {}, 400, "latency needs seconds"),
        ("POST", "/latency", b'{"seconds": NaN}', 400, "the body is not JSON"),
        ("POST", "/cut_at", {}, 400, "cut_at needs statement"),
        ("POST", "/cut_at", {"pattern": "("}, 400, "pattern='(' is not a regular expression"),
        ("POST", "/cut_at", {"pattern": 1}, 400, "either a statement or a pattern, as text"),
        (
            "POST",
            "/cut_at",
            {"pattern": "a", "statement": "b"},
            400,
            "either a statement or a pattern",
        ),
        ("POST", "/rst", b" " * 70_000, 400, "Content-Length"),
        ("POST", "/rst", {"on": 1}, 409, "connection 1 is already closed"),
        ("GET", "/events?after=x", None, 400, "after must be a whole number"),
        ("GET", "/events?wait=nan", None, 400, "wait=nan"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    servers: Any, method: str, path: str, body: Any, status: int, said: str
) -> None:
    with FaultProxy(("127.0.0.1", 9), protocol="mysql") as proxy, Control(proxy) as port:
        with socket.create_connection((proxy.host, proxy.port)) as client:
            client.settimeout(10)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        found = Remote(port.address.port).ask(method, path, body)
        assert found[0] == status, found
        assert said in found[1]["error"]
        assert "\n" not in found[1]["error"]


def test_a_web_page_cannot_steer_it() -> None:
    with FaultProxy(("127.0.0.1", 9)) as proxy, Control(proxy) as port:
        remote = Remote(port.address.port)
        assert remote.ask("POST", "/refuse", b"", Origin="http://evil.example")[0] == 400
        # a name that was made to mean this machine
        assert remote.ask("POST", "/refuse", b"", Host="evil.example")[0] == 400
        assert not any(event.name == "refuse" for event in proxy.events)
        assert remote.ask("POST", "/refuse", b"", Host="localhost:1")[0] == 200


def test_it_listens_on_the_loopback_only_unless_told() -> None:
    with FaultProxy(("127.0.0.1", 9)) as proxy:
        with pytest.raises(ConfigurationError, match="is not a loopback address"):
            Control(proxy, "0.0.0.0:0")
        with pytest.raises(ConfigurationError, match="must be a TCP address"):
            Control(proxy, "/tmp/s")
        with Control(proxy, "0.0.0.0:0", anywhere=True) as port:
            assert Remote(port.address.port).ask("GET", "/connections") == (200, [])
            with pytest.raises(ProxyError, match="cannot listen for control"):
                Control(proxy, ("127.0.0.1", proxy.port))


@given(st.binary(max_size=300))
def test_any_body_is_arguments_or_a_clear_error(data: bytes) -> None:
    for verb in VERBS:
        try:
            found = control.arguments(verb, control.body(data))
        except ConfigurationError:
            continue
        assert isinstance(found, dict)


NAMES = st.sampled_from(["on", "seconds", "bytes", "statement", "pattern", "n", "x"])
VALUES = st.one_of(
    st.none(),
    st.text(max_size=9),
    st.integers(),
    st.floats(),
    st.lists(st.integers(), max_size=2),
    st.booleans(),
    st.floats(0),
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_arguments_are_done_or_refused_clearly(found: dict[str, Any]) -> None:
    with FaultProxy(("127.0.0.1", 9), protocol="mysql") as proxy:
        for verb in VERBS:
            with contextlib.suppress(ConfigurationError, ProxyError):
                getattr(proxy, verb)(**control.arguments(verb, found))
        proxy.heal()
        assert not [event for event in proxy.events if event.name == "failed"]


@given(st.text(max_size=100))
def test_any_query_is_read_or_refused_clearly(text: str) -> None:
    try:
        after, wait = control.query(text)
    except ConfigurationError:
        return
    assert isinstance(after, int)
    assert 0 <= wait <= 30


# -- unbroken proxy --------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "unbroken", "proxy"]
PLAIN = {**os.environ, "NO_COLOR": "1", "COLUMNS": "80"}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_logs_takes_orders_and_ends_cleanly(
    plain_line: Line, end: signal.Signals
) -> None:
    url = plain_line.server.url()
    command = subprocess.Popen(
        [*COMMAND, url, "--seed", "7"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN,
    )
    try:
        assert command.stdout is not None
        first, second = command.stdout.readline(), command.stdout.readline()
        control_port = int(re.findall(r"control: http://127\.0\.0\.1:(\d+)/", first)[0])
        (listening,) = re.findall(
            r"listening on 127\.0\.0\.1:(\d+), in front of .*, seed 7", second
        )
        conn = plain_line.connect(port=int(listening))
        # the URL told the protocol
        assert Remote(control_port).ask("POST", "/cut_at", {"statement": "SELECT"})[0] == 200
        with pytest.raises(Exception):  # noqa: B017 - each driver's own
            conn.cursor().execute("SELECT 1")
        for line in command.stdout:
            if "cut #1 after SELECT was answered" in line:
                break
        command.send_signal(end)
        rest, wrong = command.communicate(timeout=20)
    finally:
        command.kill()
        command.wait()
    assert (command.returncode, wrong) == (0, "")
    assert rest.splitlines()[-1].startswith("connections: 1; ")
    assert plain_line.server.password not in first + second + rest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["db"], "upstream='db' is not an address"),
        (["sqlite:///x.db"], "a sqlite URL names no server"),
        (["mysql+pymysqll://app:geheim@db/x"], "did you mean"),
        (["127.0.0.1:9", "--listen", "nowhere"], "listen='nowhere' is not an address"),
        (["127.0.0.1:9", "--control", "0.0.0.0:0"], "is not a loopback address"),
        (["127.0.0.1:9", "--protocol", "oracle"], "oracle"),
        (["127.0.0.1:9", "--seed", "x"], "--seed"),
        (["no-such-host.invalid:1"], "cannot resolve 'no-such-host.invalid'"),
        ([], "Missing argument 'UPSTREAM'"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from unbroken.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["proxy", *arguments])
    wrong = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert said in wrong
    assert wrong.count("\n") == 1
    assert "geheim" not in wrong
