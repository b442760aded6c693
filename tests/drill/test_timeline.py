"""What is counted of a timeline, and when an app is said to be back."""

from __future__ import annotations

import pytest

from unbroken_drill.drill.apps.replies import Reply, Target
from unbroken_drill.drill.apps.results import AppResult, recovery
from unbroken_drill.drill.plot import plot
from unbroken_drill.drill.results import Mark, spans


def reply(due: float, latency: float = 0.1, status: int = 200, line: str = "") -> Reply:
    return Reply(due, due, due + latency, status, line, 0)


def row(replies: list[Reply], marks: list[Mark]) -> AppResult:
    made = AppResult("mariadb", "restart", "app", "app", is_ours=False)
    made.take(replies, marks, 0.0)
    return made


def test_back_is_the_answer_of_the_first_request_from_which_on_all_went_well() -> None:
    assert recovery([reply(5.0), reply(5.5)], 4.0) == pytest.approx(1.1)
    assert recovery(
        [reply(5.0), reply(5.5, status=500), reply(6.0), reply(6.5)], 4.0
    ) == pytest.approx(2.1)
    assert recovery([reply(5.0), reply(5.5, status=500)], 4.0) is None


def test_every_outcome_is_counted_once_and_said_in_its_own_words() -> None:
    replies = [
        reply(1.0),
        reply(2.0, status=503, line="away"),
        reply(3.0, 10.0, 0, "no answer within 10 s"),
        reply(4.0, status=0, line="no response: x"),
    ]
    made = row(replies, [])
    assert (made.requests, made.errors, made.hung, made.slowest) == (4, 2, 1, 10.0)
    assert made.statuses == {"none": 2, "200": 1, "503": 1}
    assert made.samples == {"503 away": 1, "no answer within 10 s": 1, "no response: x": 1}


def test_a_status_stands_once_and_the_url_is_named_where_there_are_several() -> None:
    replies = [
        reply(1.0, status=500, line="500 Internal Server Error"),
        reply(1.1, status=500, line="500"),
        Reply(1.2, 1.2, 1.3, 503, "Service Unavailable", 1),
        Reply(1.3, 1.3, 1.4, 0, "no response: x", 1),
    ]
    one = row(replies, [])
    assert set(one.samples) == {
        "500 Internal Server Error", "500", "503 Service Unavailable", "no response: x",
    }  # fmt: skip
    targets = [Target("http://h:1/items?a=1"), Target("http://h:1", "POST")]
    one.take(replies, [], 0.0, [each.name for each in targets])
    assert set(one.samples) == {
        "GET /items?a=1: 500 Internal Server Error", "GET /items?a=1: 500",
        "POST /: 503 Service Unavailable", "POST /: no response: x",
    }  # fmt: skip


def test_a_scenario_without_a_fault_can_be_drawn() -> None:
    assert "<svg" in plot(row([reply(1.0)], []), 10.0)


def test_faults_that_overlap_are_one() -> None:
    marks = [Mark("rst", 2.1, 2.1), Mark("refuse", 2.0, 4.0), Mark("kill", 5.0, 5.0)]
    assert spans(marks) == [(2.0, 4.0), (5.0, 5.0)]


def test_a_request_under_way_when_the_next_fault_comes_is_not_held_against_the_first() -> None:
    replies = [reply(1.0), reply(2.1), reply(2.95, 0.2, status=500), reply(3.5), reply(4.0)]
    made = row(replies, [Mark("kill", 2.0, 2.0), Mark("kill", 3.0, 3.0)])
    assert made.recoveries == pytest.approx([0.2, 0.6])
    assert made.recovery == pytest.approx(0.6)
    assert not made.never_back


def test_of_a_fault_that_lasts_to_the_end_nobody_recovers() -> None:
    made = row([reply(1.0), reply(3.0, status=500)], [Mark("stall", 2.0, 4.0)])
    assert made.recoveries == []
    assert not made.never_back


def test_the_row_for_machines_has_the_timeline_and_nothing_of_small_apps() -> None:
    made = row([reply(1.0), reply(3.0, status=500)], [Mark("kill", 2.0, 2.0)])
    document = made.as_json()
    assert document["replies"] == [[1.0, 0.1, 200, 0], [3.0, 0.1, 500, 0]]
    assert document["marks"] == [{"text": "kill", "begin": 2.0, "end": 2.0}]
    assert "wrong" not in document


def test_several_runs_are_one_row_with_the_timeline_of_the_worst() -> None:
    well = row([reply(1.0), reply(3.0), reply(3.5)], [Mark("kill", 2.0, 2.0)])
    bad = row([reply(1.0), reply(3.0, status=500), reply(4.0)], [Mark("kill", 2.0, 2.0)])
    both = AppResult.combined([well, bad])
    assert (both.requests, both.errors, both.runs) == (6, 1, 2)
    assert both.statuses == {"200": 5, "500": 1}
    assert both.replies == bad.replies
    assert both.recovery == pytest.approx((1.1 + 2.1) / 2)
