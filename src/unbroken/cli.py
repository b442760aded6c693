"""The command ``unbroken``. Errors are one line.

``unbroken run`` starts a program. The other commands are for tests and trials: the second
distribution, unbroken-drill, brings them and the packages that they need.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from unbroken.hints import nearest, shown
from unbroken.messages.command import NO_SUCH_COMMAND

#: The commands of this distribution, and the action of each.
HERE = {"run": "start an unchanged program with unbroken engines and units of work"}
#: The commands of unbroken-drill, and the action of each.
ELSEWHERE = {
    "drill": "break a real database under traffic, and show how pools or your app behave",
    "proxy": "break the connections between any client and its server",
}
INSTALL = 'pip install "unbroken[drill]"'


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line *arguments* (default: the process's own) and exit with its status.

    0: done. 1: a check failed. 2: the command line is wrong, or something it needs is missing. 130:
    interrupted.
    """
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        status = complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stderr.close()
        status = 1
    raise SystemExit(status)


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] == "run":
        return _launch(arguments[1:])
    if find_spec("unbroken_drill") is None:
        return _run_alone(arguments)
    from unbroken_drill.cli import run

    return run(arguments)


def _launch(arguments: Sequence[str]) -> int:
    from unbroken.errors import ConfigurationError
    from unbroken.launcher import run

    try:
        return run(arguments)
    except ConfigurationError as error:
        return complain(str(error), 2)


def _run_alone(arguments: Sequence[str]) -> int:
    """Run the command if unbroken-drill is not installed."""
    first = arguments[0] if arguments else ""
    if first == "--version":
        from unbroken import __version__

        print(f"unbroken {__version__}")
        return 0
    if first in ("", "-h", "--help"):
        print(
            "Usage: unbroken COMMAND\n\nDatabase connections that do not break. Applications need"
            f" no command.\n\n  run  {HERE['run']}\n\nFor tests:\n"
        )
        print("\n".join(f"  {name}  {words}" for name, words in ELSEWHERE.items()))
        print(f"\nThe commands for tests are not installed. Install them: {INSTALL}")
        return 0 if first else 2
    if first in ELSEWHERE:
        return complain(
            NO_SUCH_COMMAND(f"the command {first} is not installed. Install it: {INSTALL}"), 2
        )
    near = nearest(first, (*HERE, *ELSEWHERE))
    hint = f" (did you mean {near!r}?)" if near else ""
    return complain(
        NO_SUCH_COMMAND(
            f"unknown command {shown(first)}{hint}. Known: run. The commands"
            f" {' and '.join(ELSEWHERE)} need another package: {INSTALL}"
        ),
        2,
    )


def complain(text: str, status: int) -> int:
    """Print *text* as one line to standard error. Returns *status*."""
    print(f"unbroken: {' '.join(text.split())}", file=sys.stderr)
    return status
