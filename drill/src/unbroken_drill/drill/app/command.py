"""The options of the app's drill on the command line.

What they need is imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from unbroken.errors import ConfigurationError

_F = TypeVar("_F", bound=Callable[..., Any])

#: Read where there is one, without being asked to.
CONFIG: Final = "drill.toml"

#: Options that only the app's drill has. Those that say that it is one stand first.
_OPTIONS: Final = (
    click.option(
        "--url",
        multiple=True,
        help="Where your app answers; several are asked in turn. {port}: a free port.",
    ),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=TEMPLATE]",
        help="The variable that your app reads its database URL from.",
    ),
    click.option(
        "--compare",
        is_flag=True,
        help="What follows are whole commands, each quoted: NAME: COMMAND.",
    ),
    click.option(
        "--config",
        metavar="FILE",
        help="Read options and scenarios from here. Default: ./drill.toml where there is one.",
    ),
    click.option("--db", metavar="URL", help="This server instead of a private one; needs --harm."),
    click.option(
        "--harm", is_flag=True, default=None, help="Yes, the server of --db may be harmed."
    ),
    click.option(
        "--driver", help="The driver in the URL's scheme: pymysql gives mysql+pymysql://."
    ),
    click.option(
        "--setup", metavar="COMMAND", help="Run once before the app, as it would run: a migration."
    ),
    click.option("--setup-sql", metavar="SQL|@FILE", help="Run once on the private server."),
    click.option("--rate", type=float, help="Requests a second, sent on schedule. Default: 50."),
    click.option("--concurrency", type=int, help="The most under way at a time. Default: 256."),
    click.option(
        "--timeout",
        type=float,
        help="A request without an answer for so many seconds hangs. Default: 10.",
    ),
    click.option(
        "--start-timeout", type=float, help="Seconds that your app may take to start. Default: 30."
    ),
    click.option(
        "--method",
        help="Default: GET, with --body POST. A URL may have its own: --url 'POST http://…'.",
    ),
    click.option(
        "--header", multiple=True, metavar="'NAME: VALUE'", help="Sent with each request."
    ),
    click.option("--body", help="Sent with each request. {n}: the request's number."),
    click.option(
        "--html", metavar="FILE", help="Also write a page with a timeline of every scenario."
    ),
    click.option(
        "--max-errors",
        type=click.IntRange(0),
        help="Failed requests allowed in each scenario. Default: 0.",
    ),
    click.option(
        "--judge",
        multiple=True,
        metavar="NAME",
        help="With --compare: only these decide the exit status.",
    ),
    click.option("--folder", metavar="DIR", help="Where the commands are run. Default: here."),
)


def app_options(function: _F) -> _F:
    """Decorate a click command with the options of the app's drill, and its arguments."""
    for option in reversed(
        (
            *_OPTIONS,
            click.argument(
                "arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]"
            ),
        )
    ):
        function = option(function)
    return function


def wanted(given: Mapping[str, Any], *, of_pools: bool) -> bool:
    """Whether an app's drill is meant rather than the pools'. *of_pools*: an option was given that
    only the latter has.
    """
    mine = any(value is not None and value != () and value is not False for value in given.values())
    if of_pools and mine:
        raise ConfigurationError(
            "--all, --contenders, --repeat and --gevent are for the drill of pools, not for an"
            " app's"
        )
    return mine or (Path(CONFIG).exists() and not of_pools)


def run(given: Mapping[str, Any]) -> None:
    """Drill the app that *given* describes, and exit."""
    try:
        import aiohttp  # noqa: F401 - the traffic's
    except ImportError:
        raise ConfigurationError(
            'the drill of an app needs one package more: pip install "unbroken[drill]"'
        ) from None
    from unbroken_drill.drill.app import main

    main.run(given)
