"""One logger for each part, named fields, no line without a bound."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from unbroken import logs
from unbroken.logs.allowance import SHORTEST

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the first of a list, with nobody who keeps it."""
    logs.forget()
    now = [1000.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    monkeypatch.setattr(logs, "_timekeeper", None)
    yield now
    logs.forget()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_each_part_has_a_logger_below_the_librarys(clock, caplog):
    with caplog.at_level(logging.INFO, "unbroken"):
        for name in logs.PARTS:
            logs.Part(name).info("tried", f"a line of {name}")
    assert [record.name for record in caplog.records] == [f"unbroken.{n}" for n in logs.PARTS]


def test_fifty_lines_of_one_event_are_one_line_and_one_with_their_number(clock, caplog):
    part = logs.Part("outage")
    for n in range(50):
        part.warning("turned away", f"caller {n} was turned away", pool="shop")
    clock[0] += SHORTEST
    part.warning("another", "something else")
    assert messages(caplog) == [
        "caller 0 was turned away",
        "49 more lines of this kind within 10 s, the last: caller 49 was turned away",
        "something else",
    ]
    assert caplog.records[1].unbroken_count == 49
    assert caplog.records[1].unbroken_event == "turned away"


def test_what_was_left_out_is_told_in_time_where_somebody_keeps_it(clock, caplog, monkeypatch):
    called: list[tuple[float, Any]] = []
    monkeypatch.setattr(logs, "_timekeeper", lambda when, what: called.append((when, what)) or 1)
    part = logs.Part("pool")
    for _ in range(3):
        part.warning("ended", "a connection ended")
    ((when, say_rest),) = called
    assert when == clock[0] + SHORTEST
    clock[0] = when
    say_rest()
    assert messages(caplog)[1:] == [
        "2 more lines of this kind within 10 s, the last: a connection ended"
    ]


def test_a_line_that_is_to_be_logged_once_is(clock, caplog):
    part = logs.Part("driver")
    for about in ("NullPool", "NullPool", "StaticPool"):
        part.warning("pool stays", f"{about} stays", about=about, once=True)
        clock[0] += 10_000.0
    assert messages(caplog) == ["NullPool stays", "StaticPool stays"]


def test_steps_are_logged_one_by_one_for_those_who_ask(clock, caplog):
    part = logs.Part("pool")
    part.debug("opened", "not asked for")
    with caplog.at_level(logging.DEBUG, "unbroken.pool"):
        for n in range(20):
            part.debug("opened", f"connection {n} opened")
    assert len(caplog.records) == 20


def test_what_nobody_wants_is_not_counted_either(clock, caplog):
    part = logs.Part("pool")
    part.info("ended", "at INFO, which is off")
    with caplog.at_level(logging.INFO, "unbroken"):
        part.info("ended", "at INFO, which is on")
    assert messages(caplog) == ["at INFO, which is on"]


def test_fields_are_attributes_of_the_record_and_none_is_one_of_loggings_own(clock, caplog):
    part = logs.Part("outage")
    part.warning("outage ended", "back [UB301]", pool="shop", server="db1:3306", seconds=1.5)
    (record,) = caplog.records
    ours = {name: value for name, value in vars(record).items() if name.startswith("unbroken_")}
    assert ours == {
        "unbroken_event": "outage ended", "unbroken_code": "UB301", "unbroken_pool": "shop",
        "unbroken_server": "db1:3306", "unbroken_seconds": 1.5,
    }  # fmt: skip
    assert json.loads(json.dumps(ours)) == ours
    plain = logging.LogRecord("n", logging.INFO, __file__, 1, "m", (), None)
    names = {f"unbroken_{name}" for name in (*logs.Fields.__annotations__, *logs.ALWAYS)}
    assert not names & set(vars(plain))
    assert record.pathname == __file__


def test_a_percent_sign_in_a_message_does_no_harm(clock, caplog):
    logs.Part("pool").warning("ended", "100 %s of it: %d")
    assert messages(caplog) == ["100 %s of it: %d"]


def test_an_error_is_logged_with_its_traceback(clock, caplog):
    part = logs.Part("pool")
    try:
        raise ValueError("broken")
    except ValueError:
        part.exception("observer failed", "an observer failed")
    assert "ValueError: broken" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_log_and_tells_nothing_for_its_parent(clock):
    part = logs.Part("pool")
    part.warning("ended", "in the parent")
    part.warning("ended", "in the parent, left out")
    child = os.fork()
    if child == 0:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        part.logger.addHandler(handler)
        clock[0] += 1.0
        part.warning("ended", "in the child")
        clock[0] += 2 * SHORTEST
        part.warning("other", "later")
        os._exit(0 if lines == ["in the child", "later"] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_handler_that_makes_the_library_log_does_not_go_round_in_circles(clock):
    part, seen = logs.Part("pool"), []

    class Circle(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())
            part.warning("ended", "by the handler")

    handler = Circle()
    part.logger.addHandler(handler)
    try:
        part.warning("ended", "first")
    finally:
        part.logger.removeHandler(handler)
    assert seen == ["first"]


def test_the_page_lists_the_parts_and_the_fields():
    page = (ROOT / "docs" / "logging.md").read_text()
    rows = set(re.findall(r"^\| `([a-z_.]+)`", page, re.M))
    parts = {f"unbroken.{name}" for name in logs.PARTS}
    fields = {f"unbroken_{name}" for name in (*logs.Fields.__annotations__, *logs.ALWAYS)}
    assert rows == parts | fields


def test_every_line_of_the_librarys_goes_through_a_part_so_that_none_is_without_a_bound():
    sources = (ROOT / "src" / "unbroken").rglob("*.py")
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        if path.parent.name != "logs" and "getLogger" in path.read_text()
    ]
    assert found == []
