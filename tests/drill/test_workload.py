"""A request notices when it is told something else than the truth."""

from __future__ import annotations

from unbroken_drill.drill.worker import workload


def test_the_right_answers_are_right() -> None:
    unit = workload.reading("postgresql", 70, 0.0)
    assert workload.problem(unit, [(70, 1234), (workload.body_of(70 % workload.ITEMS),)]) is None
    assert workload.problem(workload.writing("mariadb", 7, 0.0), [(7, 1), None]) is None
    assert workload.session([(70, 1234)]) == 1234


def test_an_answer_that_belongs_to_somebody_else_shows() -> None:
    unit = workload.reading("postgresql", 70, 0.0)
    assert workload.problem(unit, [(71, 1234), (workload.body_of(6),)]) == "asked for 70, got 71"
    assert workload.problem(unit, [None, None]) == "asked for 70, got None"
    assert workload.problem(unit, []) == "asked for 70, got None"
    assert workload.problem(unit, [(70, 1234), ("item 5",)]) == "asked for item 6, got 'item 5'"


def test_places_are_numbered_for_asyncpg() -> None:
    assert workload.numbered("SELECT %s::bigint, %s") == "SELECT $1::bigint, $2"
    assert workload.numbered("COMMIT") == "COMMIT"


def test_steps_run_in_order_with_their_values() -> None:
    asked = []

    def execute(sql: str, values: tuple[object, ...]) -> tuple[object, ...]:
        asked.append((sql, values))
        return (len(asked),)

    rows = workload.perform(workload.writing("mariadb", 5, 0.0), execute)
    assert rows == [(1,), (2,)]
    assert [values for _, values in asked] == [(5,), (5,)]
