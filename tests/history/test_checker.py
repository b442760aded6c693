"""The checker finds what is planted; the journal, the workload and the order of the faults are what
they are said to be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from unbroken import CommitUnknownError

from .checker import GIVEN_UP, Stored, Verdict, check
from .faults import DECKS, order
from .journal import History, Journal
from .workload import (
    ACCOUNTS,
    COUNTERS,
    KINDS,
    MANNERS,
    START,
    MixedAnswersError,
    Statement,
    Unit,
    Workload,
    heard,
)

INSERT, MANY, TRANSFER, INCREMENT = range(4)
UNITS = {
    INSERT: Unit(INSERT, "insert"),
    MANY: Unit(MANY, "insert many", parts=3),
    TRANSFER: Unit(TRANSFER, "transfer", source=2, target=5, amount=7),
    INCREMENT: Unit(INCREMENT, "increment", parts=0, counter=1),
}


def told(*, unknown: tuple[int, ...] = (), refused: tuple[int, ...] = ()) -> History:
    """All four units: acknowledged, where nothing else is said."""
    return History(
        set(UNITS),
        set(UNITS) - {*unknown, *refused},
        set(unknown),
        dict.fromkeys(refused, "ValueError: no"),
    )


def stored(*without: int) -> Stored:
    """What the units store, but for some of them."""
    rows = Counter(
        {
            (n, part): 1
            for n, unit in UNITS.items()
            if n not in without
            for part in range(unit.parts)
        }
    )
    balances = dict.fromkeys(range(ACCOUNTS), START)
    if TRANSFER not in without:
        balances |= {2: START - 7, 5: START + 7}
    return Stored(
        rows, balances, dict.fromkeys(range(COUNTERS), 0) | {1: int(INCREMENT not in without)}
    )


def verdict(history: History, found: Stored, units: dict[int, Unit] = UNITS) -> Verdict:
    return check(history, found, units.__getitem__)


def test_nothing_is_wrong_with_an_exact_history() -> None:
    assert verdict(told(), stored()).wrongs == {}


@pytest.mark.parametrize("n", [INSERT, MANY, TRANSFER])
def test_an_acknowledged_unit_of_which_nothing_is_stored_is_lost(n: int) -> None:
    assert verdict(told(), stored(n)).wrongs == {"lost": [n]}


@pytest.mark.parametrize("n", [INSERT, MANY])
@pytest.mark.parametrize("unknown", [False, True])
def test_a_row_that_is_stored_twice_is_found(n: int, unknown: bool) -> None:
    found = stored()
    found.rows[n, 0] += 1
    assert verdict(told(unknown=(n,) if unknown else ()), found).wrongs == {"doubled": [n]}


@pytest.mark.parametrize("unknown", [False, True])
def test_a_unit_of_which_only_a_part_is_stored_is_torn(unknown: bool) -> None:
    found = stored()
    found.rows[MANY, 2] = 0
    assert verdict(told(unknown=(MANY,) if unknown else ()), found).wrongs == {"torn": [MANY]}


@pytest.mark.parametrize("account", [2, 5])
def test_half_a_transfer_is_found_on_the_account_that_misses_it(account: int) -> None:
    found = stored()
    found.balances[account] = START
    (wrong,) = verdict(told(), found).wrongs["balances"]
    assert f"account {account} holds {START}" in str(wrong)


def test_a_transfer_that_was_done_twice_and_noted_once_is_found() -> None:
    found = stored()
    found.balances.update({2: START - 14, 5: START + 14})
    assert len(verdict(told(), found).wrongs["balances"]) == 2


def test_an_account_that_is_gone_is_found() -> None:
    found = stored()
    del found.balances[11]
    assert verdict(told(), found).wrongs == {"balances": [f"account 11 holds None, due {START}"]}


def test_a_refused_unit_that_is_stored_yet_is_found() -> None:
    units = {n: replace(unit, manner="plain") for n, unit in UNITS.items()}
    assert verdict(told(refused=(MANY,)), stored(), units).wrongs == {"refused": [MANY]}
    assert verdict(told(refused=(MANY,)), stored(MANY), units).wrongs == {}


def test_a_refused_unit_that_had_time_enough_is_denied() -> None:
    assert verdict(told(refused=(INSERT,)), stored(INSERT)).wrongs == {
        "denied": ["0: ValueError: no"]
    }


def test_one_that_two_faults_have_met_may_be_given_up_but_rarely() -> None:
    why = f"OperationalError: lost {GIVEN_UP}"
    history = told(refused=(INSERT, MANY))
    history.refused[INSERT] = why
    assert verdict(history, stored(INSERT, MANY)).wrongs == {"denied": [f"{MANY}: ValueError: no"]}
    history.refused[MANY] = why
    assert verdict(history, stored(INSERT, MANY)).wrongs == {
        "denied": [f"{n}: {why}" for n in sorted((INSERT, MANY))]
    }


def test_an_unknown_unit_is_stored_whole_or_not_at_all() -> None:
    whole = verdict(told(unknown=(INSERT, MANY)), stored())
    assert (whole.wrongs, whole.unknown_stored) == ({}, 2)
    half = verdict(told(unknown=(INSERT, MANY)), stored(MANY))
    assert (half.wrongs, half.unknown_stored) == ({}, 1)


@pytest.mark.parametrize("row", [(77, 0), (INSERT, 1)])
def test_a_row_that_nobody_wrote_is_found(row: tuple[int, int]) -> None:
    found = stored()
    found.rows[row] = 1
    assert verdict(told(), found).wrongs == {"strange": [row]}


@pytest.mark.parametrize(("history", "value", "due"), [
    (told(), 0, "1 to 1"), (told(), 2, "1 to 1"), (told(unknown=(INCREMENT,)), 2, "0 to 1"),
    (told(unknown=(INCREMENT,)), -1, "0 to 1"),
])  # fmt: skip
def test_a_counter_outside_of_what_was_told_is_found(
    history: History, value: int, due: str
) -> None:
    found = stored()
    found.counters[1] = value
    assert verdict(history, found).wrongs == {"counters": [f"counter 1 is {value}, due {due}"]}


@pytest.mark.parametrize("value", [0, 1])
def test_a_counter_may_or_may_not_hold_what_is_unknown(value: int) -> None:
    found = stored()
    found.counters[1] = value
    assert verdict(told(unknown=(INCREMENT,)), found).wrongs == {}


def test_a_refused_increment_that_is_stored_yet_is_found() -> None:
    units = UNITS | {INCREMENT: replace(UNITS[INCREMENT], manner="fickle")}
    assert "counters" in verdict(told(refused=(INCREMENT,)), stored(), units).wrongs


# ---- the journal


def test_the_journal_tells_how_each_attempt_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number, error in enumerate(
        [None, CommitUnknownError("where is it?"), ValueError("no\nway")]
    ):
        with journal.attempt(number):
            if error is not None:
                raise error
    with pytest.raises(KeyboardInterrupt), journal.attempt(3):
        raise KeyboardInterrupt  # a process that hears no more
    history = History.of((tmp_path / "journal").read_text().splitlines())
    assert history == History({0, 1, 2, 3}, {0}, {1, 3}, {2: "ValueError: no way"})


@pytest.mark.parametrize(
    "last", ["begun 1", "acknowledged 1", "unknown 1", "refused 1 why", "acknowledged 2"]
)
def test_a_journal_that_contradicts_itself_is_refused(last: str) -> None:
    with pytest.raises(ValueError, match="out of turn"):
        History.of(["begun 1", "acknowledged 1", last])


def test_an_answer_to_another_statement_is_found() -> None:
    look = Unit(8, "look", parts=0)
    steps = [step for step in look.steps() if isinstance(step, Statement)]
    for step, answer in zip(steps, ([(8,)], [(3,)], [(9,)]), strict=True):
        heard(step, answer)
        heard(step, None)  # where a client does not know
    with pytest.raises(MixedAnswersError, match="asked for 8"):
        heard(steps[0], [(9,)])
    told = History.of(["begun 8", "refused 8 MixedAnswersError: asked for 8, and got [(9,)]"])
    assert check(told, stored(*UNITS), {8: look}.__getitem__).mixed == [8]


# ---- the workload, and the order of the faults


def test_a_unit_is_the_same_whenever_it_is_asked_for_and_another_with_another_seed() -> None:
    some = [Workload(1).unit(n) for n in range(200)]
    assert some == [Workload(1).unit(n) for n in range(200)]
    assert some != [Workload(2).unit(n) for n in range(200)]
    assert {unit.kind for unit in some} == set(KINDS)
    assert {unit.manner for unit in some} == set(MANNERS)


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_a_unit_inserts_each_of_its_parts_once(parts: int) -> None:
    said = " ".join(
        step for step in Unit(8, "insert many", parts=parts).steps() if isinstance(step, str)
    )
    assert [said.count(f"(8, {part})") for part in range(5)] == [1] * parts + [0] * (5 - parts)


@pytest.mark.parametrize("deck", DECKS)
def test_the_seed_decides_the_order_of_the_faults_and_each_kind_comes_up(deck: str) -> None:
    often, first = DECKS[deck]
    length = len(first) + sum(often.values())
    some = list(islice(order(Random(3), often, first), length))
    assert some == list(islice(order(Random(3), often, first), length))
    assert some != list(islice(order(Random(4), often, first), length))
    assert set(some) == set(often)
