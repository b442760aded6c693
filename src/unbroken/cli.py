"""The command ``unbroken``. Errors are one line; the packages it needs are the extra ``[cli]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line *arguments* (default: the process's own) and exit with its status.

    0: done; 1: what was checked is not as it should be; 2: the command line is wrong, or something it needs is missing;
    130: interrupted.
    """
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        status = _complain("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stderr.close()
        status = 1
    raise SystemExit(status)


def _run(arguments: Sequence[str]) -> int:
    try:
        import click
        import rich  # noqa: F401 - the commands print with it
    except ImportError:
        return _complain('the command line needs two packages more: pip install "unbroken[cli]"', 2)
    from unbroken.errors import ConfigurationError, UnbrokenError
    from unbroken_drill.drill.command import drill
    from unbroken_drill.proxy_command import proxy

    @click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
    @click.version_option(package_name="unbroken", message="unbroken %(version)s")
    def unbroken() -> None:
        """Database connections that do not break."""

    unbroken.add_command(drill)
    unbroken.add_command(proxy)
    try:
        unbroken.main(list(arguments), prog_name="unbroken", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except click.Abort:
        return _complain("interrupted", 130)
    except ConfigurationError as error:
        return _complain(str(error), 2)
    except UnbrokenError as error:
        return _complain(str(error), 1)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if os.environ.get("UNBROKEN_TRACEBACK"):
            raise
        return _complain(f"unexpected {type(error).__name__}: {error}; this is a bug, UNBROKEN_TRACEBACK=1 shows where", 1)
    return 0


def _complain(text: str, status: int) -> int:
    print(f"unbroken: {' '.join(text.split())}", file=sys.stderr)
    return status
