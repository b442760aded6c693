"""``unbroken run COMMAND``: an unchanged program gets unbroken engines and units of work.

The command starts with a folder of ours on ``PYTHONPATH``, whose ``sitecustomize`` Python runs at
its start: in the program, and in every Python that it starts in turn. Two environment variables
control it, see :func:`begin`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from unbroken.errors import ConfigurationError
from unbroken.hints import nearest, shown
from unbroken.messages.command import RUN_CANNOT, RUN_USAGE
from unbroken.messages.configuration import BAD_SETTING
from unbroken.settings import Settings

#: Whether all of SQLAlchemy's engines get the plugin: "1", "0", or settings as in a URL's query.
ENGINES = "UNBROKEN_SQLALCHEMY"
#: Names of functions whose calls become units of work, separated by commas.
UNITS = "UNBROKEN_UNITS"

#: The folder with ``sitecustomize.py``.
SITE = str(Path(__file__).with_name("site"))

_OFF = ("", "0", "false", "no", "off")
_ON = ("1", "true", "yes", "on")

USAGE = """\
Usage: unbroken run [--units NAME,...] COMMAND [ARGUMENT ...]

Start an unchanged Python program with connections that do not break. All of its SQLAlchemy engines
get the plugin. UNBROKEN_SQLALCHEMY=0 turns this off. UNBROKEN_SQLALCHEMY=leak_after=10 gives the
engines settings, in the form of a URL's query.

Each call of a function in --units becomes a unit of work. A NAME is package.module:Class.method, or
package.module:Class for all public methods of the class."""


def command(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command that *arguments* of ``unbroken run`` name, and the environment for it.

    Raises ConfigurationError for arguments and settings that cannot work.
    """
    rest = list(arguments)
    units = [environment[UNITS]] if environment.get(UNITS) else []
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            break
        name, equals, value = option.partition("=")
        if name == "--units" and not (equals or rest):
            raise ConfigurationError(
                RUN_USAGE("--units needs a list of names: unbroken run --units shop.orders:Store …")
            )
        if name != "--units":
            near = " (did you mean '--units'?)" if nearest(name, ["--units"]) else ""
            raise ConfigurationError(
                RUN_USAGE(
                    f"unbroken run has no option {shown(option)}{near}. Its only option is"
                    " --units NAME,..."
                )
            )
        units.append(value if equals else rest.pop(0))
    if not rest or not rest[0] or any("\0" in word for word in rest):
        raise ConfigurationError(
            RUN_USAGE("unbroken run needs a command, such as: unbroken run gunicorn shop:app")
        )
    _check_units(units)
    engines = environment.get(ENGINES, "1")
    settings_in(engines)
    path = [
        SITE,
        *(
            each
            for each in environment.get("PYTHONPATH", "").split(os.pathsep)
            if each and each != SITE
        ),
    ]
    given = {
        "PYTHONPATH": os.pathsep.join(path),
        ENGINES: engines,
        **({UNITS: ",".join(units)} if units else {}),
    }
    return rest, {**environment, **given}


def _check_units(units: Sequence[str]) -> None:
    from unbroken.adoption import split_names
    from unbroken.adoption.names import is_well_formed

    for name in split_names(",".join(units)):
        if not is_well_formed(name):
            raise ConfigurationError(
                RUN_USAGE(
                    f"--units: {shown(name)} is not a function's name; write"
                    " package.module:Class.method"
                )
            )


def run(arguments: Sequence[str]) -> int:
    """Replace this process by the command that *arguments* name. Returns only if there is nothing
    to run: 0 after a request for help.

    Raises ConfigurationError, also if there is no such command.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    words, environment = command(arguments, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(words[0], words, environment)
    except (OSError, ValueError) as why:
        reason = getattr(why, "strerror", None) or why
        raise ConfigurationError(RUN_CANNOT(f"cannot run {shown(words[0])}: {reason}")) from None


def settings_in(text: str) -> dict[str, Any] | None:
    """Return the settings in ``UNBROKEN_SQLALCHEMY``: settings for all engines, or None for no
    engine.

    Raises ConfigurationError.
    """
    if text.lower() in _OFF:
        return None
    if text.lower() in _ON:
        return {}
    settings = (
        Settings.from_text(dict(parse_qsl(text, keep_blank_values=True))) if "=" in text else {}
    )
    if not settings:
        raise ConfigurationError(
            BAD_SETTING(
                f"{ENGINES}={shown(text)} must be 1, 0 or settings such as"
                " leak_after=10&outage_wait=20"
            )
        )
    Settings.of(**settings)
    return settings


def begin() -> None:
    """Apply the environment's requests to this process. Imports neither SQLAlchemy nor any of the
    named modules.

    Errors are printed to standard error: a program must start without this library, too.
    """
    try:
        _begin(os.environ)
    except ConfigurationError as why:
        print(f"unbroken: {why}", file=sys.stderr)


def _begin(environment: Mapping[str, str]) -> None:
    settings = settings_in(environment.get(ENGINES, ""))
    if settings is not None:
        from unbroken.importing import on_import

        on_import("sqlalchemy", lambda _module: _install(settings))
    if environment.get(UNITS):
        from unbroken.adoption import adopt_for

        adopt_for()


def _install(settings: dict[str, Any]) -> None:
    from unbroken.integrations.sqlalchemy.install import install

    install(**settings)
