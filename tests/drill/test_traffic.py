"""Requests on schedule, against a real HTTP server that does as it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from unbroken_drill.drill.apps.replies import ERROR, HUNG, OK, Target
from unbroken_drill.drill.apps.traffic import Traffic, first_line


class Answers(BaseHTTPRequestHandler):
    """``/ok``, ``/500``, ``/hang``, ``/drop``, ``/big``; while the server's ``gate`` is shut,
    nobody is answered.
    """

    server: Any

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("X-Own")))
        self.server.gate.wait()
        what = self.path.strip("/").partition("?")[0]
        if what == "hang":
            self.server.over.wait()
        elif what != "drop":
            self.send_response(int(what) if what.isdigit() else 200)
            self.end_headers()
            self.wfile.write(b"\n  first   line \nsecond" if what != "big" else b"x" * 300_000)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(self.rfile.read(length).decode())
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads, server.request_queue_size = True, 128
    server.seen, server.bodies, server.gate, server.over = (
        [],
        [],
        threading.Event(),
        threading.Event(),
    )
    server.gate.set()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.gate.set()
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def traffic(
    *targets: Target, rate: float = 50.0, concurrency: int = 100, patience: float = 5.0
) -> Traffic:
    return Traffic(targets, rate, concurrency, patience, seed=1)


def quiet(running: Traffic) -> None:
    running.pause()
    deadline = time.monotonic() + 20
    while running.is_busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stall_is_charged_to_every_request_that_it_kept_waiting(site: Any) -> None:
    with traffic(Target(f"{site.url}/ok")) as running:
        running.start()
        while len(running.replies) < 10:
            time.sleep(0.01)
        site.gate.clear()
        while len(site.seen) < 40:  # they go on coming, although nobody is answered
            time.sleep(0.01)
        site.gate.set()
        quiet(running)
    slow = [reply for reply in running.replies if reply.end - reply.due > 0.1]
    assert len(slow) > 15
    assert all(reply.outcome == OK for reply in running.replies)
    latencies = [reply.end - reply.due for reply in sorted(slow)]
    half = len(latencies) // 2
    assert sum(latencies[:half]) > sum(latencies[-half:])  # who was due first has waited longest


def test_no_more_than_the_limit_are_under_way_and_waiting_for_a_place_counts(site: Any) -> None:
    site.gate.clear()
    with traffic(Target(f"{site.url}/ok"), concurrency=3) as running:
        running.start()
        while running._number < 12:
            time.sleep(0.01)
        assert len(site.seen) <= 3
        site.gate.set()
        quiet(running)
    waited = [reply for reply in running.replies if reply.sent - reply.due > 0.01]
    assert len(waited) >= 8


@pytest.mark.parametrize(
    ("path", "outcome", "status", "line"),
    [
        ("/ok", OK, 200, "first line"),
        ("/404", ERROR, 404, "first line"),
        ("/500", ERROR, 500, "first line"),
        ("/drop", ERROR, 0, "the connection was closed without a response"),
        ("/hang", HUNG, 0, "no answer within 0.3 s"),
        ("/big", OK, 200, "x" * 160),
    ],
)
def test_each_end_of_a_request_has_its_name(
    site: Any, path: str, outcome: str, status: int, line: str
) -> None:
    with traffic(Target(site.url + path), patience=0.3 if path == "/hang" else 5.0) as running:
        (reply,) = running.ask()
    assert (reply.outcome, reply.status, reply.line) == (outcome, status, line)
    assert running.replies == []
    assert len(site.seen) == 1  # nothing is sent a second time behind our back


def test_a_refused_connection_is_an_error_without_a_status() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with traffic(Target(f"http://127.0.0.1:{port}/")) as running:
        (reply,) = running.ask()
    assert (reply.outcome, reply.status, reply.line) == (
        ERROR,
        0,
        "no response: connection refused",
    )


def test_targets_take_turns_and_numbers_are_filled_in(site: Any) -> None:
    post = Target(f"{site.url}/ok", "POST", '{"number": {n}}', {"X-Own": "yes"})
    with traffic(Target(f"{site.url}/ok?n={{n}}"), post) as running:
        running.ask(2)
    assert [(method, own) for method, _, own in site.seen] == [("GET", None)] * 2 + [
        ("POST", "yes")
    ] * 2
    assert [path for _, path, _ in site.seen[:2]] == ["/ok?n=1", "/ok?n=2"]
    assert site.bodies == ['{"number": 3}', '{"number": 4}']


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("\n\n  a\tb \nc", "a b"),
        ("<!doctype html>\n<html><title>500 Internal\nServer Error</title>", "500 Internal"),
        ("<p>plain</p>", "<p>plain</p>"),
        ("y" * 500, "y" * 160),
    ],
)
def test_the_first_line_is_the_first_that_says_something(text: str, line: str) -> None:
    assert first_line(text) == line
