"""What came of the requests, counted and held against the journal."""

from __future__ import annotations

import pytest

from unbroken_drill.drill.contenders.base import DOUBT, ERROR, OK, TOLD, WRONG
from unbroken_drill.drill.results import Mark
from unbroken_drill.drill.worker.load import Record
from unbroken_drill.drill.worker.results import SmallResult, recoveries, recovery


def result(*, ours: bool = True, **values: object) -> SmallResult:
    row = SmallResult("postgresql", "restart", "unbroken/psycopg" if ours else "one", "it", ours)
    for name, value in values.items():
        setattr(row, name, value)
    return row


def write(number: int, outcome: str) -> Record:
    return Record(0.0, 0.1, outcome, True, number)


def test_every_outcome_has_its_own_count() -> None:
    row = result()
    row.count(
        [
            write(number, outcome)
            for number, outcome in enumerate([OK, ERROR, ERROR, WRONG, DOUBT, TOLD], 1)
        ]
    )
    assert (row.requests, row.errors, row.wrong, row.in_doubt, row.told) == (6, 2, 1, 1, 1)
    assert row.slowest == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("outcome", "stored", "wrong"),
    [
        (OK, 1, 0),
        (OK, 0, 1),  # acknowledged and lost
        (OK, 2, 1),  # doubled
        (DOUBT, 0, 0),
        (DOUBT, 1, 0),
        (DOUBT, 2, 1),
        (ERROR, 0, 0),
        (ERROR, 1, 1),  # reported as failed, and there all the same
        (TOLD, 1, 1),
    ],
)
def test_unbroken_is_held_to_what_it_said_of_each_write(
    outcome: str, stored: int, wrong: int
) -> None:
    row = result()
    row.check_journal([write(7, outcome)], {7: stored} if stored else {})
    assert row.wrong == wrong


def test_other_contenders_may_store_what_they_reported_as_failed_but_not_twice() -> None:
    row = result(ours=False)
    row.check_journal([write(7, ERROR), write(8, ERROR)], {7: 1, 8: 2})
    assert row.wrong == 1


def test_reads_are_not_looked_for_in_the_journal() -> None:
    row = result()
    row.check_journal([Record(0.0, 0.1, OK, False, 7)], {})
    assert row.wrong == 0


def test_recovery_counts_from_the_acceptance_to_the_first_success_after_the_fault() -> None:
    records = [
        Record(0.9, 1.0, OK, False, 1),
        Record(1.5, 2.0, ERROR, False, 2),
        Record(1.2, 3.02, OK, False, 3),
        Record(3.0, 3.5, OK, False, 4),
    ]
    assert recovery(records, since=1.1, up=3.0) == pytest.approx(0.02)
    assert recovery(records, since=1.1, up=3.1) == 0.0
    assert recovery(records, since=4.0, up=4.0) is None


def test_several_runs_add_their_errors_up_and_give_the_median_recovery() -> None:
    runs = [
        result(errors=1, recoveries=[0.01], slowest=1.0, close_wait=0, samples={"a": 1}),
        result(errors=2, recoveries=[0.9], slowest=3.0, close_wait=2, samples={"a": 2, "b": 1}),
        result(errors=0, recoveries=[0.03], slowest=2.0, close_wait=1),
    ]
    row = SmallResult.combined(runs)
    assert (row.errors, row.recovery, row.slowest, row.close_wait, row.runs) == (3, 0.03, 3.0, 2, 3)
    assert row.samples == {"a": 3, "b": 1}
    assert not row.never_back


def test_one_fault_without_a_later_success_is_remembered() -> None:
    assert SmallResult.combined([result(recoveries=[0.01]), result(recoveries=[None])]).never_back


def test_wrong_data_ranks_below_hanging_and_hanging_below_errors() -> None:
    wrong, hung, errors, told, clean = (
        result(wrong=1),
        result(hung=1),
        result(errors=999),
        result(told=5),
        result(),
    )
    assert sorted([hung, wrong, clean, told, errors], key=lambda row: row.badness) == [
        clean,
        told,
        errors,
        hung,
        wrong,
    ]


def test_an_answer_a_little_before_the_probe_counts_where_the_mark_says_so() -> None:
    records = [Record(0.9, 2.97, OK, False, 1), Record(3.0, 3.1, OK, False, 2)]
    assert recoveries(records, [Mark("stop", 1.0, 3.0, since=2.95)]) == [0.0]
    assert recoveries(records, [Mark("kill", 3.0, 3.0)]) == [pytest.approx(0.1)]


def test_of_several_faults_in_one_run_the_worst_counts() -> None:
    assert result(recoveries=[0.01, 0.3, 0.02]).recovery == 0.3
    assert result(recoveries=[0.01, None]).recovery is None
