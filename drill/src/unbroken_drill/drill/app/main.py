"""The app's drill from its options to its reports."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.text import Text

from unbroken.errors import ConfigurationError
from unbroken_drill.drill import report as league_report
from unbroken_drill.drill.app import html, options, project, report
from unbroken_drill.drill.app.command import CONFIG
from unbroken_drill.drill.app.launch import AppError
from unbroken_drill.drill.app.plan import Plan
from unbroken_drill.drill.app.results import AppResult
from unbroken_drill.drill.app.run import AppDrill
from unbroken_drill.drill.app.verdict import breaches
from unbroken_drill.drill.output import machine, writable, write
from unbroken_drill.drill.progress import Progress
from unbroken_drill.servers import ServerError


def run(given: Mapping[str, Any]) -> None:
    """Drill the app that *given* (the command line's options) and drill.toml describe, and exit."""
    console = Console(stderr=given.get("json") == "-", highlight=False)
    merged, file = _merged(given)
    if file is not None:
        console.print(Text(f"options from {file}", "dim"))
    json_to, html_to = writable("json", merged.get("json")), writable("html", merged.get("html"))
    plan, left_out = options.plan(merged)
    for line in left_out:
        console.print(Text(line, "yellow"))
    drill = AppDrill(plan)
    names = [scenario.name for scenario in plan.scenarios]
    with (
        _ended_by_sigterm(),
        Progress(console, drill.players, names, len(drill.jobs())) as progress,
    ):
        try:
            rows = drill.run(progress)
        except (
            AppError,
            ServerError,
        ) as error:  # before the first scenario: status 2, for it says nothing of the app
            raise ConfigurationError(str(error)) from None
    if all(row.failure is not None for row in rows):
        raise ConfigurationError(f"nothing could be measured: {rows[0].failure}")
    server = f"{league_report.SERVERS[plan.backend]} {drill.version}".strip()
    report.final(console, rows, drill.players, plan, server, verbose=bool(given.get("verbose")))
    found = facts(plan, server)
    console.print(Text(f"again: {found['command']}", "dim"), soft_wrap=True)
    write(json_to, json.dumps(_document(rows, plan, found), indent=1) + "\n")
    write(html_to, html.page(rows, drill.players, plan, server, found))
    if any(breaches(row, plan) for row in rows):
        raise SystemExit(1)


def _merged(given: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The command line's options over the file's."""
    file = (
        Path(given["config"])
        if given.get("config")
        else Path(CONFIG)
        if Path(CONFIG).exists()
        else None
    )
    found = project.read(file) if file is not None else {}
    for name, value in given.items():
        if value is not None and value != () and value is not False:
            found[name] = value
    if isinstance(found.get("scenarios"), str):
        found["scenarios"] = [
            name.strip() for name in found["scenarios"].split(",") if name.strip()
        ]
    return found, file


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the drill as Ctrl-C does: in order, leaving nothing."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def facts(plan: Plan, server: str) -> dict[str, Any]:
    """What another person needs to do the same."""
    arguments = list(sys.argv[1:])
    if "--seed" not in arguments:
        at = arguments.index("--") if "--" in arguments else 1
        arguments[at:at] = ["--seed", str(plan.seed)]
    return {
        "command": _shown(arguments),
        "apps": {
            each.name: _shown(
                [*(f"{name}={value}" for name, value in each.environment.items()), *each.argv]
            )
            for each in plan.variants
        },
        "seed": plan.seed,
        "server": server,
        "versions": {"unbroken": metadata.version("unbroken"), "Python": platform.python_version()},
        "machine": machine(),
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _shown(words: Sequence[str]) -> str:
    command = "unbroken " if words and words[0] == "drill" else ""
    return command + " ".join(_quoted(options.without_password(word)) for word in words)


def _quoted(word: str) -> str:
    return (
        word
        if word and not set(word) & set(" \t\n'\"$&|;<>(){}*?")
        else "'" + word.replace("'", "'\\''") + "'"
    )


def _document(rows: Sequence[AppResult], plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    broken = [
        {"scenario": row.scenario, "app": row.key, "breach": text}
        for row in rows
        for text in breaches(row, plan)
    ]
    scenarios = {
        each.name: {"title": each.title, "steps": [step.text for step in each.steps]}
        for each in plan.scenarios
    }
    return {
        **found,
        "rate": plan.rate,
        "scenarios": scenarios,
        "results": [row.as_json() for row in rows],
        "breaches": broken,
    }
