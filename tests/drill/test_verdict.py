"""What makes the drill's exit status 1."""

from __future__ import annotations

import pytest

from unbroken_drill.drill.verdict import Judge
from unbroken_drill.drill.worker.results import SmallResult


def row(scenario: str, *, ours: bool = True, **values: object) -> SmallResult:
    made = SmallResult("postgresql", scenario, "unbroken/psycopg" if ours else "one", "it", ours)
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("scenario", "values", "said"),
    [
        ("kill", {"errors": 1}, "1 errors"),
        ("freeze", {"errors": 1}, "1 errors"),
        ("kill", {"wrong": 1}, "1 wrong"),
        ("storm", {"hung": 2}, "2 requests hung"),
        ("idle", {"unwell": 1}, "after all faults had ended"),
        ("kill", {"told": 1}, "reported a deadline, but none was set"),
        ("freeze", {"told": 3, "slowest": 2.6}, "a request took 2.60 s"),
        ("restart", {"recoveries": [0.3]}, "first success 300 ms"),
        ("crash", {"recoveries": [0.01, 0.06, 0.06, 0.06, 0.01], "runs": 5}, "first success 60 ms"),
        ("storm", {"recoveries": [None]}, "no success after the fault"),
        ("idle", {"close_wait": 1}, "1 sockets in CLOSE_WAIT"),
        ("forget", {"sessions": 6}, "6 sessions on the server, 5 allowed"),
        ("fork", {"sessions": 41}, "41 sessions on the server, 40 allowed"),
        ("hold", {"left": 1}, "1 sessions left"),
        ("idle", {"failure": "no server"}, "not measured: no server"),
    ],
)
def test_unbroken_breaks_its_contract(scenario: str, values: dict[str, object], said: str) -> None:
    (found,) = Judge().breaches(row(scenario, **values))
    assert said in found


@pytest.mark.parametrize(
    ("scenario", "values"),
    [
        ("kill", {"in_doubt": 3}),  # honest
        ("freeze", {"told": 8, "slowest": 2.4}),
        ("restart", {"recoveries": [0.2]}),  # one run says little
        ("restart", {"recoveries": [0.04, 0.06, 0.03, 0.3, 0.01], "runs": 5}),
        ("kill", {"recoveries": [0.3] * 5}),  # the server was never away
        ("restart", {"slowest": 1.7}),
        ("fork", {"sessions": 13}),
        ("idle", {"close_wait": None}),  # not known on this system
    ],
)
def test_unbroken_keeps_its_contract(scenario: str, values: dict[str, object]) -> None:
    assert Judge().breaches(row(scenario, **values)) == []


def test_other_contenders_have_promised_nothing() -> None:
    assert Judge().breaches(row("kill", ours=False, errors=900, wrong=3, failure="gone")) == []
