"""``unbroken drill`` on the command line, from its options to its reports."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from unbroken.errors import ConfigurationError
from unbroken_drill.drill import html, options, project, report
from unbroken_drill.drill.apps.results import AppResult
from unbroken_drill.drill.options import Order
from unbroken_drill.drill.output import machine, writable, write
from unbroken_drill.drill.progress import Progress
from unbroken_drill.drill.results import Result
from unbroken_drill.drill.run import Drill
from unbroken_drill.messages import NOTHING_MEASURED, OPTIONS_EXCLUDE
from unbroken_drill.servers import folders

_HELP = """Break real servers under real traffic, and print what their users noticed.

Without a command, the drill tests its own small apps: unbroken beside other ways to connect. With
--url, --env and a command, or with a drill.toml, it tests your own app, in any language. It starts
a private server, a fault proxy in front of it, and your app with the variable of --env pointing to
the proxy.

\b
    unbroken drill
    unbroken drill --url http://127.0.0.1:8000/items --env DATABASE_URL -- gunicorn app:app

The exit status is 1 if a limit was broken (an app's, or unbroken's contract), and 2 for a wrong
command line. A LIST is names, separated by commas.
"""


@click.command(help=_HELP)
@click.option(
    "--servers",
    metavar="LIST",
    help="postgresql, mariadb; for an app one of them, or mysql or mongodb. Default: postgresql.",
)
@click.option(
    "--topology",
    metavar="NAME",
    help="Several servers instead of one: standby, replica, galera (behind HAProxy), pgbouncer, "
    "pgbouncer-transaction; for an app also replicaset.",
)
@click.option(
    "--scenarios", metavar="LIST",
    help="idle, kill, restart, crash, freeze, reset, nat, mute, refuse, slow, or one of "
    "drill.toml; small apps also fork, forget, hold, storm; topologies: promote, switchover, "
    "demote, rolling, reject, pooler-restart, rotate.",
)  # fmt: skip
@click.option(
    "--repeat",
    type=click.IntRange(1),
    help="Number of runs of each scenario. Recovery times are their median. Default: 1.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Contenders at a time, each with its own server. Default: 2, or 1 on one core; apps 1.",
)
@click.option(
    "--seed",
    type=int,
    help="Decides when requests and kills come. Default: random, shown at the end.",
)
@click.option(
    "--json",
    metavar="FILE",
    help="Also write all results as JSON; - is standard output (the tables then go to stderr).",
)
@click.option("-v", "--verbose", is_flag=True, help="Also print the texts of all errors.")
@click.option(
    "--all", is_flag=True, help="Small apps: every available server, contender and scenario."
)
@click.option(
    "--contenders",
    metavar="LIST",
    help="Small apps: unbroken, one, sqlalchemy, pre_ping, dbutils, psycopg_pool, asyncpg, peewee.",
)
@click.option(
    "--gevent",
    is_flag=True,
    help="Small apps: greenlets instead of threads (gevent's monkey.patch_all() in each process).",
)
@click.option(
    "--url",
    multiple=True,
    help="The address of your app; several are requested in turn. {port}: a free port.",
)
@click.option(
    "--env",
    multiple=True,
    metavar="NAME[=TEMPLATE]",
    help="The variable that your app reads its database URL from.",
)
@click.option(
    "--compare", is_flag=True, help="Several whole commands follow, each quoted: 'NAME: COMMAND'."
)
@click.option(
    "--config",
    metavar="FILE",
    help="Read options and scenarios from this file. Default: ./drill.toml, if it exists.",
)
@click.option("--db", metavar="URL", help="Use this server instead of a private one; needs --harm.")
@click.option("--harm", is_flag=True, default=None, help="Allow harm to the server of --db.")
@click.option("--driver", help="The driver in the URL's scheme: pymysql gives mysql+pymysql://.")
@click.option(
    "--setup",
    metavar="COMMAND",
    help="Run once before the app, with its environment, such as a migration.",
)
@click.option("--setup-sql", metavar="SQL|@FILE", help="Run once on the private server.")
@click.option("--rate", type=float, help="Requests a second, sent on schedule. Default: 50.")
@click.option(
    "--concurrency", type=int, help="Maximum number of requests in progress. Default: 256."
)
@click.option(
    "--timeout",
    type=float,
    help="Seconds without an answer after which a request counts as hung. Default: 10.",
)
@click.option(
    "--start-timeout",
    type=float,
    help="Maximum number of seconds that your app takes to start. Default: 30.",
)
@click.option(
    "--method",
    help="Default: GET, or POST with --body. A URL can have its own: --url 'POST http://…'.",
)
@click.option("--header", multiple=True, metavar="'NAME: VALUE'", help="Sent with each request.")
@click.option("--body", help="Sent with each request. {n}: the request's number.")
@click.option("--html", metavar="FILE", help="Also write a page with a timeline of every scenario.")
@click.option(
    "--max-errors",
    type=click.IntRange(0),
    help="Failed requests allowed in each scenario. Default: 0.",
)
@click.option(
    "--judge",
    multiple=True,
    metavar="NAME",
    help="With --compare: only these decide the exit status.",
)
@click.option(
    "--folder",
    metavar="DIR",
    help="The folder in which the commands run. Default: the current one.",
)
@click.option(
    "--clean",
    is_flag=True,
    help="Remove the cache (server programs, empty data folders), and do nothing else.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def drill(**given: Any) -> None:
    """Read the options, play everything, write the reports."""
    console = Console(stderr=given["json"] == "-", highlight=False)
    if given.pop("clean"):
        console.print(Text(_clean(given)), soft_wrap=True)
        return
    found = _read(given, console)
    json_to, html_to = writable("json", found.get("json")), writable("html", found.get("html"))
    order = options.order(found)
    for line in order.left_out:
        console.print(Text(line, "yellow"), soft_wrap=True)  # so that a command in it can be copied
    rows = _play(order, console)
    judge, versions = order.judge, order.drill.versions
    report.final(
        console, rows, order.drill.contenders, judge, versions, verbose=bool(found.get("verbose"))
    )
    known = facts(order)
    console.print(Text(_footer(known), "dim"), soft_wrap=True)
    write(json_to, json.dumps(_document(rows, order, known), indent=1) + "\n")
    if order.app is not None:
        own = [row for row in rows if isinstance(row, AppResult)]
        server = report.titled(order.app.backend, versions)
        write(html_to, html.page(own, order.drill.contenders, order.app, judge, server, known))
    if any(judge.breaches(row) for row in rows):
        raise SystemExit(1)


def _clean(given: dict[str, Any]) -> str:
    """Remove the cache. Returns a description of that. Raises ConfigurationError if *given* has
    other orders.
    """
    if project.stated(given):
        raise ConfigurationError(OPTIONS_EXCLUDE("--clean takes no other option"))
    folder, size = folders.remove_cache()
    return f"no cache at {folder}" if size is None else f"removed {folder}, {_mb(size)}"


def _cache() -> str:
    folder, size = folders.cache_size()
    return f"cache: {folder}, {_mb(size or 0)}; unbroken drill --clean removes it"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _read(given: dict[str, Any], console: Console) -> dict[str, Any]:
    """Return the command line's options, and those of drill.toml unless it chooses small apps."""
    if options.chooses_small(given):
        found = project.stated(given)
    else:
        found, file = project.merged(given)
        if file is not None:
            console.print(Text(f"options from {file}", "dim"))
    return found


def _play(order: Order, console: Console) -> list[Result]:
    """Play everything and return every row. Raises ConfigurationError if nothing was measured."""
    drill = order.drill
    names = [scenario.name for scenario in drill.scenarios]
    console.print(Text(_outlook(drill), "dim"), soft_wrap=True)
    with (
        _ended_by_sigterm(),
        Progress(console, drill.contenders, names, len(drill.jobs())) as progress,
    ):
        rows = drill.run(progress)
    if all(row.failure is not None for row in rows):
        raise ConfigurationError(NOTHING_MEASURED(f"no row was measured: {rows[0].failure}"))
    return rows


def _outlook(drill: Drill) -> str:
    count, seconds = len(drill.jobs()), drill.expected()
    time = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return f"{count} run{'s' if count > 1 else ''}, {drill.lanes} at a time: about {time}"


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the drill in the same way as Ctrl-C: in order, leaving nothing."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def facts(order: Order) -> dict[str, Any]:
    """Return the facts that another person needs to repeat it: command line, versions, machine."""
    arguments = list(sys.argv[1:])
    if "--seed" not in arguments:
        at = (
            arguments.index("--")
            if "--" in arguments
            else 1
            if order.app is not None
            else len(arguments)
        )
        arguments[at:at] = ["--seed", str(order.drill.seed)]
    versions = {
        "unbroken": importlib.metadata.version("unbroken"),
        "Python": platform.python_version(),
    }
    servers = {report.SERVERS[name]: version for name, version in order.drill.versions.items()}
    packages = {name: importlib.metadata.version(name) for name in order.packages}
    return {
        "command": _shown(arguments),
        **({"apps": _apps(order)} if order.app is not None else {}),
        "seed": order.drill.seed,
        "versions": {**versions, **servers, **packages},
        "machine": machine(),
        "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _apps(order: Order) -> dict[str, str]:
    from unbroken_drill.drill.apps.actor import OwnApp

    variants = [each.variant for each in order.drill.contenders if isinstance(each, OwnApp)]
    return {
        each.name: _shown(
            [*(f"{name}={value}" for name, value in each.environment.items()), *each.argv]
        )
        for each in variants
    }


def _shown(words: Sequence[str]) -> str:
    shown = " ".join(_quoted(options.without_password(word)) for word in words)
    return f"{'unbroken ' if words and words[0] == 'drill' else ''}{shown}"


def _quoted(word: str) -> str:
    return (
        word
        if word and not set(word) & set(" \t\n'\"$&|;<>(){}*?")
        else "'" + word.replace("'", "'\\''") + "'"
    )


def _footer(known: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return f"{versions}\n{known['machine']}\n{_cache()}\nagain: {known['command']}"


def _document(rows: Sequence[Result], order: Order, known: dict[str, Any]) -> dict[str, Any]:
    broken = [
        {"server": row.server, "scenario": row.scenario, "contender": row.key, "breach": text}
        for row in rows
        for text in order.judge.breaches(row)
    ]
    scenarios = {
        each.name: {"title": each.title, "steps": [step.text for step in each.steps]}
        for each in order.drill.scenarios
    }
    rate = {"rate": order.app.rate} if order.app is not None else {}
    return {
        **known,
        **({"topology": order.drill.topology.name} if order.drill.topology else {}),
        **rate,
        "scenarios": scenarios,
        "results": [row.as_json() for row in rows],
        "breaches": broken,
    }
