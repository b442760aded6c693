"""Applications from PyPI, unmodified, through kills, restarts and idle limits of their database.

The venvs are made by ``make soak`` (scripts/setup-apps). ``python -m apps.plays`` prints the
figures of docs/applications.md, also of the applications as they are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .parts import FAULTS, TARGETS, explained, python
from .plays import APPS

CELLS = [(app, target, fault) for app in APPS for target in TARGETS[app] for fault in FAULTS]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("app", "target", "fault"), CELLS)
def test_no_worker_dies_and_what_fails_is_a_commit_in_doubt(
    app: str, target: str, fault: str
) -> None:
    if not Path(python(app)).exists():
        pytest.skip(f"no venv for {app}: scripts/setup-apps python3 .venvs {app}")
    score = APPS[app](target, fault, "units")
    print(app, target, fault, score)
    assert score.asked > 10
    assert fault == "idle" or score.faults > 0
    assert score.dead <= explained(score)
    if app == "optuna":  # a dead worker's trials are those that nobody did
        assert score.failed <= score.dead * score.asked // score.workers
    else:
        assert score.failed <= explained(score)
