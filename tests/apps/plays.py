"""Applications from PyPI, unmodified, through faults of their database: as they are, with the
plugin, and with units of work.

    python -m apps.plays [APP ...] [--target pymysql] [--fault kill] [--way plain]

Each application stands in a venv of its own (scripts/setup-apps). ``unbroken run`` starts it, or
nothing does.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from unbroken_drill.servers import PostgreSQL

from .parts import (
    FAULTS,
    GIVEN_UP,
    HERE,
    TARGETS,
    WAYS,
    Faults,
    Score,
    answers,
    command,
    free_port,
    has,
    keep,
    last_words,
    limit_idling,
    note_reasons,
    requests,
    run,
    server_for,
    started,
    until,
)

# -- the applications ------------------------------------------------------------------------------


def optuna(target: str, fault: str, way: str, trials: int = 240, workers: int = 4) -> Score:
    """Workers with one study; a trial that is not complete in the end was lost."""
    with server_for(target) as server, tempfile.TemporaryDirectory() as folder:
        url = server.url(target)
        run("optuna", "plain", str(HERE / "trials.py"), url, "create")
        limit_idling(server, fault)
        if fault == "idle":
            trials = trials // 10
        share = str(trials // workers)
        words = [str(HERE / "trials.py"), url, "work", share, "6.0" if fault == "idle" else "0.1"]
        with contextlib.ExitStack() as stack:
            logs = [Path(folder, f"{number}.log") for number in range(workers)]
            processes = [
                stack.enter_context(started(command("optuna", way, *words), log)) for log in logs
            ]
            for process, log in zip(processes, logs, strict=True):
                until(partial(has, log, b"ready"), process)
            faults = stack.enter_context(Faults(server, fault, 3.0))
            for process in processes:
                process.wait(300)
        ends = [last_words(log) for log in logs]
        for number, log in enumerate(logs):
            keep(log, "optuna", target, fault, way, str(number))
        states = run("optuna", "plain", str(HERE / "trials.py"), url, "count")
        score = Score(
            trials,
            states.get("COMPLETE", 0),
            workers,
            sum("error" in end for end in ends),
            faults.count,
        )
        score.words.update(end["error"] for end in ends if "error" in end)
        return score


def apscheduler(target: str, fault: str, way: str, seconds: float = 20.0) -> Score:
    """A scheduler and a program that changes its jobs; its worker is the scheduler's own thread."""
    with server_for(target) as server, tempfile.TemporaryDirectory() as folder:
        limit_idling(server, fault)
        log = Path(folder, "log")
        pause = "15.0" if fault == "idle" else "0.2"
        words = [str(HERE / "schedule.py"), server.url(target), str(seconds), pause]
        with started(command("apscheduler", way, *words), log) as process:
            until(partial(has, log, b"ready"), process)
            with Faults(server, fault) as faults:
                process.wait(seconds + 120)
        end = last_words(log)
        keep(log, "apscheduler", target, fault, way)
        return Score(
            end["asked"],
            end["asked"] - len(end["errors"]),
            1,
            int(end["dead"]),
            faults.count,
            Counter(end["errors"]),
        )


def mlflow(target: str, fault: str, way: str, seconds: float = 20.0) -> Score:
    """The tracking server; four clients that log runs."""
    with server_for(target) as server, tempfile.TemporaryDirectory() as folder:
        port = free_port()
        words = [
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            server.url(target),
            "--default-artifact-root",
            folder,
        ]
        words += ["--port", str(port), "--workers", "1"]
        log = Path(folder, "log")
        more = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes more
            "MLFLOW_LOGGING_LEVEL": "DEBUG",  # what its errors come from
        }
        with started(command("mlflow", way, *words), log, **more) as process:
            base = f"http://127.0.0.1:{port}"
            until(lambda: answers(f"{base}/health"), process, 120, log)
            api = f"{base}/api/2.0/mlflow"

            def client(ask: Callable[[str, Any], Any]) -> None:
                made = ask(f"{api}/runs/create", {"experiment_id": "0", "start_time": 1})
                if made is None:
                    return
                run_id = made["run"]["info"]["run_id"]
                for step in range(3):
                    ask(
                        f"{api}/runs/log-metric",
                        {
                            "run_id": run_id,
                            "key": "loss",
                            "value": 0.5,
                            "timestamp": 1,
                            "step": step,
                        },
                    )
                ask(f"{api}/runs/log-parameter", {"run_id": run_id, "key": "p", "value": "1"})
                ask(f"{api}/runs/get?run_id={run_id}", None)
                ask(f"{api}/runs/search", {"experiment_ids": ["0"], "max_results": 5})
                ask(f"{api}/runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": 2})

            limit_idling(server, fault)
            score = Score(workers=1)
            with Faults(server, fault) as faults:
                requests(score, client, seconds, 1.6 if fault == "idle" else 0.0)
            score.faults, score.dead = faults.count, int(process.poll() is not None)
            note_reasons(score, log, GIVEN_UP)
            keep(log, "mlflow", target, fault, way)
            return score


def prefect(target: str, fault: str, way: str, seconds: float = 20.0) -> Score:
    """The API server; four clients that make flow runs and set their states."""
    binary = PostgreSQL.find(
        tls=True
    )  # Debian's: it has the extension pg_trgm, which the wheels' have not
    with server_for(target, binary) as server, tempfile.TemporaryDirectory() as folder:
        port = free_port()
        log = Path(folder, "log")
        words = ["-m", "prefect", "server", "start", "--port", str(port), "--host", "127.0.0.1"]
        more = {
            "PREFECT_API_DATABASE_CONNECTION_URL": server.url(target),
            "PREFECT_HOME": folder,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        }
        with started(command("prefect", way, *words), log, **more) as process:
            api = f"http://127.0.0.1:{port}/api"
            until(lambda: answers(f"{api}/health"), process, 180, log)

            def client(ask: Callable[[str, Any], Any]) -> None:
                flow = ask(f"{api}/flows/", {"name": "flow"})
                if flow is None:
                    return
                made = ask(
                    f"{api}/flow_runs/", {"flow_id": flow["id"], "state": {"type": "PENDING"}}
                )
                if made is None:
                    return
                ask(f"{api}/flow_runs/{made['id']}/set_state", {"state": {"type": "RUNNING"}})
                ask(f"{api}/flow_runs/{made['id']}", None)
                ask(f"{api}/flow_runs/filter", {"limit": 5})
                ask(f"{api}/flow_runs/{made['id']}/set_state", {"state": {"type": "COMPLETED"}})

            limit_idling(server, fault)
            score = Score(workers=1)
            with Faults(server, fault) as faults:
                requests(score, client, seconds, 1.6 if fault == "idle" else 0.0)
            score.faults, score.dead = faults.count, int(process.poll() is not None)
            # its clients are told of no reason
            note_reasons(score, log, "\nunbroken.errors.CommitUnknownError:")
            keep(log, "prefect", target, fault, way)
            return score


APPS: dict[str, Callable[..., Score]] = {
    "optuna": optuna,
    "apscheduler": apscheduler,
    "mlflow": mlflow,
    "prefect": prefect,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("apps", nargs="*", default=[])
    parser.add_argument("--target")
    parser.add_argument("--fault")
    parser.add_argument("--way")
    given = parser.parse_args(arguments)
    for app in given.apps or APPS:
        for target in TARGETS[app]:
            for fault in FAULTS:
                for way in WAYS:
                    if (
                        given.target in (None, target)
                        and given.fault in (None, fault)
                        and given.way in (None, way)
                    ):
                        begun = time.monotonic()
                        score = APPS[app](target, fault, way)
                        print(
                            f"{app:12}{target:10}{fault:9}{way:8}{score}"
                            f" ({time.monotonic() - begun:.0f} s)",
                            flush=True,
                        )


if __name__ == "__main__":
    main(sys.argv[1:])
