"""The striker finds every point, strikes the one that it is told, and leaves out where no exception
can come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from .points import HardStrike, Striker, chosen

seen: list[str] = []
_lock = threading.Lock()


def _inner(text: str) -> str:
    seen.append(text)
    return text


def _work() -> str:
    with _lock:
        _inner("a")
    for _ in range(3):
        _inner("b")
    return _inner("c")


class _Here:
    """Strikes the functions of this file that begin with an underscore."""

    def includes(self, code: Any) -> bool:
        return code.co_filename == __file__ and code.co_name in (
            "_inner",
            "_work",
            "_with_callback",
        )


@pytest.fixture
def striker() -> Striker:
    seen.clear()
    return Striker(_Here())  # type: ignore[arg-type] # all that it needs


def test_a_survey_finds_calls_lines_returns_and_the_ends_of_calls(striker: Striker) -> None:
    points = striker.survey(_work)
    assert seen == ["a", "b", "b", "b", "c"]
    assert {point.event for point in points} == {"call", "line", "after", "return"}
    assert sum(point.event == "call" and point.code is _inner.__code__ for point in points) == 5
    assert sum(point.event == "after" and point.code is _inner.__code__ for point in points) == 5, (
        "after seen.append"
    )


def test_every_point_is_struck_once(striker: Striker) -> None:
    for point in striker.survey(_work):
        with pytest.raises(HardStrike):
            striker.run(_work, point, HardStrike)
        assert striker.struck, point


def test_a_lock_is_free_after_a_strike_at_any_point(striker: Striker) -> None:
    for point in striker.survey(_work):
        with pytest.raises(HardStrike):
            striker.run(_work, point, HardStrike)
        assert _lock.acquire(timeout=0), point
        _lock.release()


def test_the_part_that_is_not_struck_runs_unharmed(striker: Striker) -> None:
    def parts() -> None:
        striker.begin("first")
        _inner("first")
        striker.begin("second")
        _inner("second")

    points = [point for point in striker.survey(parts) if point.label == "second"]
    assert points
    for point in points:
        seen.clear()
        with pytest.raises(HardStrike):
            striker.run(parts, point, HardStrike)
        assert seen[0] == "first"


def test_a_function_that_runs_already_is_struck_in_its_later_part(striker: Striker) -> None:
    def parts() -> None:
        _with_callback(lambda: striker.begin("second"))

    points = [
        point
        for point in striker.survey(parts)
        if point.label == "second" and point.code is _with_callback.__code__
    ]
    assert points
    for point in points:
        with pytest.raises(HardStrike):
            striker.run(parts, point, HardStrike)
        assert striker.struck


def _with_callback(callback: Callable[[], None]) -> int:
    callback()
    return len("abc")


def test_a_generator_is_not_struck_where_it_is_only_suspended(striker: Striker) -> None:
    def _work() -> Any:
        yield _inner("a")
        yield _inner("b")

    points = [
        point for point in striker.survey(lambda: list(_work())) if point.code.co_name == "_work"
    ]
    assert [point.event for point in points].count("return") == 1
    assert [point.event for point in points].count("call") == 3


def test_of_many_times_the_first_and_the_last_are_chosen_and_known_ones_are_not(
    striker: Striker,
) -> None:
    known: set[Any] = set()
    points = chosen(striker.survey(_work), known)
    calls = [
        point.nth for point in points if point.event == "call" and point.code is _inner.__code__
    ]
    assert sorted(calls) == [1, 5]
    assert chosen(striker.survey(_work), known) == []


def test_what_was_struck_is_free_once_the_exception_was_caught(striker: Striker) -> None:
    import weakref

    class Held:
        pass

    refs: list[weakref.ref[Held]] = []

    def hold() -> None:
        held = Held()
        refs.append(weakref.ref(held))
        _inner("x")

    point = next(point for point in striker.survey(hold) if point.event == "after")
    with pytest.raises(HardStrike):
        striker.run(hold, point, HardStrike)
    assert refs[-1]() is None
