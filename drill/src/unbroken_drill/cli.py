"""The commands ``unbroken drill`` and ``unbroken proxy``, for ``unbroken.cli``.

The packages they need are the extra ``[cli]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from unbroken.cli import ELSEWHERE, HERE, INSTALL, complain
from unbroken.hints import nearest, shown

_COMMANDS = (*HERE, *ELSEWHERE)


def _usage(error: Any, arguments: Sequence[str]) -> str:
    """Describe the error in the command line *arguments*, and name the command that shows help."""
    import click

    at = " ".join(("unbroken", *(word for word in arguments[:1] if word in _COMMANDS)))
    text = error.format_message()
    if isinstance(error, click.exceptions.NoSuchOption):
        names = {
            name for each in error.ctx.command.params if each.param_type_name == "option"
            for name in (*each.opts, *each.secondary_opts)
        } if error.ctx is not None else set()  # fmt: skip
        name = error.option_name
        text = f"unknown option {shown(name)}{_near(name, names)}"
    elif isinstance(error, click.exceptions.NoSuchCommand):
        name = error.command_name
        text = f"unknown command {shown(name)}{_near(name, _COMMANDS)}"
    return f"{text.rstrip('.')}. Run '{at} --help'"


def _near(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f" (did you mean {found!r}?)" if found else ""


def run(arguments: Sequence[str]) -> int:
    """Run the command line *arguments*. Returns the exit status: see :func:`unbroken.cli.main`."""
    try:
        import click
        import rich  # noqa: F401 - the commands print with it
    except ImportError:
        return complain(f"the command needs click and rich. Install them: {INSTALL}", 2)
    from unbroken.errors import ConfigurationError, UnbrokenError
    from unbroken_drill.drill.command import drill
    from unbroken_drill.proxy_command import proxy

    @click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
    @click.version_option(package_name="unbroken", message="unbroken %(version)s")
    def unbroken() -> None:
        """Database connections that do not break."""

    # for the list of commands only: unbroken.cli runs it
    unbroken.add_command(click.Command("run", help=HERE["run"], short_help=HERE["run"]))
    unbroken.add_command(drill)
    unbroken.add_command(proxy)
    try:
        unbroken.main(list(arguments), prog_name="unbroken", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.UsageError as error:
        return complain(_usage(error, arguments), 2)
    except click.ClickException as error:
        return complain(error.format_message(), error.exit_code)
    except click.Abort:
        return complain("interrupted", 130)
    except ConfigurationError as error:
        return complain(str(error), 2)
    except UnbrokenError as error:
        return complain(str(error), 1)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if os.environ.get("UNBROKEN_TRACEBACK"):
            raise
        return complain(
            f"unexpected {type(error).__name__}: {error}. This is a bug; set UNBROKEN_TRACEBACK=1"
            " to see the traceback",
            1,
        )
    return 0
