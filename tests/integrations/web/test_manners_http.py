"""Over real HTTP: a view that forgets to close, and an outage that lasts longer than anybody
waits.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from unbroken_drill.servers import MariaDB


@pytest.mark.parametrize("web", ["sync", "gthread", "gevent --preload"])
def test_a_view_that_forgets_to_close_leaves_nothing_taken_and_its_place_is_logged_once(
    web: str, stands: Any, tmp_path: Any
) -> None:
    stand = stands(f"{web} -w 1", "pymysql")
    for _ in range(100):
        assert stand.site.ask("/forget").json == {"forgot": "to close"}
    assert stand.site.ask("/taken").json == {"taken": 0}
    assert stand.site.ask("/items").status == 200
    said = [
        line for line in stand.site.log.read_text().splitlines() if "examples/flask_app.py:" in line
    ]
    assert len(said) == 1, stand.site.tail()
    assert re.search(r"examples/flask_app\.py:\d+ in forget", said[0])


def test_an_outage_longer_than_outage_wait_is_a_503_with_retry_after_and_over_without_a_restart(
    stands: Any, until: Any
) -> None:
    # a second worker could still be starting
    stand = stands("gthread -w 1", "pymysql", query="outage_wait=1")
    server, site = stand.server, stand.site
    assert isinstance(server, MariaDB)
    server.stop()
    for form in (None, {"number": 1}):
        reply = site.ask("/items", form)
        assert (reply.status, reply.headers["retry-after"], reply.json["error"]) == (
            503,
            "1",
            "service unavailable",
        )
        assert reply.seconds < 5  # the setting is 1 s; gunicorn gives up after 30
    assert site.ask("/items", accept="text/html").body.startswith(b"<!doctype html>")
    assert (site.ask("/readyz").status, site.ask("/healthz").status) == (503, 200)
    assert "Traceback" not in site.log.read_text()
    server.start()
    until(lambda: site.ask("/items").status == 200)
    assert site.ask("/readyz").status == 200
    assert site.ask("/items", {"number": 1}).json == {"stored": 1}
