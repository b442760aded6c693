"""A worker of Optuna's, as its documentation shows one: ``trials.py URL create|work|count
[TRIALS PAUSE]``. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any

import optuna

STUDY = "study"


def main(url: str, verb: str, trials: int = 0, pause: float = 0.0) -> dict[str, Any]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if verb == "create":
        optuna.create_study(storage=url, study_name=STUDY)
        return {}
    study = optuna.load_study(storage=url, study_name=STUDY)
    print("ready", flush=True)
    if verb == "count":
        states = [trial.state.name for trial in study.trials]
        return {state: states.count(state) for state in sorted(set(states))}

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -10, 10)
        y = trial.suggest_int("y", 0, 10)
        for step in range(3):
            time.sleep(pause / 3)
            trial.report(x * step, step)
        trial.set_user_attr("y", y)
        return x * x + y

    try:
        study.optimize(objective, n_trials=trials)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error.__cause__ or error}".splitlines()[0]}
    return {}


if __name__ == "__main__":
    print(
        json.dumps(
            main(
                *sys.argv[1:3],
                *(kind(word) for kind, word in zip((int, float), sys.argv[3:], strict=False)),
            )
        )
    )
