"""``unbroken drill`` on the command line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from unbroken.errors import ConfigurationError
from unbroken_drill.drill import report
from unbroken_drill.drill.app import command as app
from unbroken_drill.drill.output import machine, writable, write
from unbroken_drill.drill.pools import contenders, scenarios
from unbroken_drill.drill.pools import report as pool_report
from unbroken_drill.drill.pools.contenders import Entrant
from unbroken_drill.drill.pools.run import Drill
from unbroken_drill.drill.pools.verdict import breaches
from unbroken_drill.drill.progress import Progress
from unbroken_drill.drill.results import Result
from unbroken_drill.servers import available

_BACKENDS = ("postgresql", "mariadb")  #: that contenders here have drivers for


_HELP = """Break real servers under real traffic, and print who noticed.

With --url and a command, your own app is drilled, in whatever language: a private server and a
fault proxy are started, your app is started with --env pointing there, and every fault is played
under HTTP traffic (scenarios idle, kill, restart, crash, freeze, reset, nat, mute, refuse, slow,
and those of drill.toml). Without, the pools: unbroken beside what people use.

\b
    unbroken drill
    unbroken drill --url http://127.0.0.1:8000/items --env DATABASE_URL -- gunicorn app:app

The exit status is 1 when a limit is broken (an app's, or unbroken's contract), 2 for a wrong
command line. LIST: names with commas between.
"""


@click.command(help=_HELP)
@app.app_options
@click.option(
    "--all", "everything", is_flag=True, help="Every server, contender and scenario there is."
)
@click.option(
    "--servers",
    metavar="LIST",
    help="Of postgresql, mariadb; for an app one, also mysql or mongodb. Default: postgresql.",
)
@click.option(
    "--contenders",
    "who",
    metavar="LIST",
    help="Of unbroken, one, sqlalchemy, pre_ping, dbutils, psycopg_pool, peewee.",
)
@click.option(
    "--scenarios",
    "what",
    metavar="LIST",
    help="Of idle, kill, restart, crash, freeze, fork, forget, hold, storm (apps: see above).",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs of each; recovery is their median.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="How many at a time, each with a server of its own. Default: 2, or 1 on one core; apps 1.",
)
@click.option(
    "--gevent",
    "green",
    is_flag=True,
    help="Greenlets for threads: gevent's monkey.patch_all() in each contender's process.",
)
@click.option(
    "--seed", type=int, help="When requests and kills come. Default: a new one, shown at the end."
)
@click.option(
    "--json",
    "to",
    metavar="FILE",
    help="Also write everything as JSON; - for standard output (the tables then go to stderr).",
)
@click.option("-v", "--verbose", is_flag=True, help="Also print what the errors said.")
def drill(
    *,
    everything: bool,
    servers: str | None,
    who: str | None,
    what: str | None,
    repeat: int,
    jobs: int | None,
    green: bool,
    seed: int | None,
    to: str | None,
    verbose: bool,
    **of_app: Any,
) -> None:
    """The drill of pools, or of an app."""
    if app.wanted(of_app, of_pools=everything or who is not None or repeat > 1 or green):
        of_app |= {
            "servers": servers,
            "scenarios": what,
            "jobs": jobs,
            "seed": seed,
            "json": to,
            "verbose": verbose,
        }
        return app.run(of_app)
    console = Console(stderr=to == "-", highlight=False)
    backends = _servers(servers, everything, console)
    entrants = _entrants(who, everything, backends, green, console)
    acts = scenarios.choose(_names(what)) if what is not None else list(scenarios.SCENARIOS)
    chosen = secrets.randbelow(1_000_000) if seed is None else seed
    json_to = writable("json", to)
    run = Drill(entrants, acts, chosen, repeat, jobs or min(2, os.cpu_count() or 1), green)
    with Progress(console, entrants, [act.name for act in acts], len(run.jobs())) as progress:
        rows = run.run(progress)
    pool_report.final(console, rows, entrants, run.versions, verbose=verbose)
    footer = facts(chosen, run.versions, entrants, green=green)
    console.print(Text(_footer(footer), "dim"), soft_wrap=False)
    document = {**footer, "results": [row.as_json() for row in rows], "breaches": _breaches(rows)}
    write(json_to, json.dumps(document, indent=2) + "\n")
    if any(breaches(row) for row in rows):
        raise SystemExit(1)
    return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _servers(text: str | None, everything: bool, console: Console) -> list[str]:
    names = (
        list(dict.fromkeys(_names(text)))
        if text is not None
        else list(_BACKENDS)
        if everything
        else ["postgresql"]
    )
    for name in names:
        if name not in _BACKENDS:
            raise ConfigurationError(
                f"there is no server {name!r}; known are {', '.join(_BACKENDS)}"
            )
    found = []
    for name in names:
        reason = available(name)
        if reason is None:
            found.append(name)
        elif text is not None or not everything:
            raise ConfigurationError(reason)
        else:
            console.print(Text(f"{report.SERVERS[name]} is left out: {reason}", "yellow"))
    if not found:
        raise ConfigurationError("no server to drill: name one with --servers, such as postgresql")
    return found


def _entrants(
    text: str | None, everything: bool, backends: Sequence[str], green: bool, console: Console
) -> list[Entrant]:
    if green and importlib.util.find_spec("gevent") is None:
        raise ConfigurationError("--gevent needs gevent: pip install gevent")
    names = (
        _names(text)
        if text is not None
        else [e.key for e in contenders.ENTRANTS]
        if everything
        else list(contenders.USUAL)
    )
    there = []
    for entrant in contenders.choose(names, backends):
        if entrant.missing:
            todo = " ".join(entrant.missing)
            said = (
                f"{entrant.title} is left out on {report.SERVERS[entrant.backend]}: pip install"
                f" {todo}"
            )
            console.print(Text(said, "yellow"), soft_wrap=True)  # the command in it is to be copied
        elif green and not entrant.is_green:
            console.print(
                Text(f"{entrant.title} is left out: it does not wait by gevent", "yellow")
            )
        else:
            there.append(entrant)
    if not there:
        raise ConfigurationError(
            f"no contender is left: none of {', '.join(names)} is installed for"
            f" {', '.join(backends)}"
        )
    return there


def facts(
    seed: int, versions: dict[str, str], entrants: Sequence[Entrant], *, green: bool = False
) -> dict[str, Any]:
    """What another person needs to do the same: versions, seed, command line, machine."""
    packages = sorted(
        {name for entrant in entrants for name in entrant.needs} | ({"gevent"} if green else set())
    )
    arguments = [argument for argument in sys.argv[1:] if argument]
    if "--seed" not in arguments:
        arguments += ["--seed", str(seed)]
    return {
        "command": " ".join(["unbroken", *arguments]),
        "seed": seed,
        "unbroken": importlib.metadata.version("unbroken"),
        "servers": {report.SERVERS[name]: version for name, version in versions.items()},
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "machine": machine(),
        "python": platform.python_version(),
    }


def _footer(found: dict[str, Any]) -> str:
    versions = {
        "unbroken": found["unbroken"],
        "Python": found["python"],
        **found["servers"],
        **found["packages"],
    }
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{used}\n{found['machine']}\nagain: {found['command']}"


def _breaches(rows: Sequence[Result]) -> list[dict[str, str]]:
    return [
        {"server": r.server, "scenario": r.scenario, "contender": r.key, "breach": text}
        for r in rows
        for text in breaches(r)
    ]
