"""Options of an app's drill that can be checked one by one, before anything is started."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.apps.plan import Variant
from unbroken_drill.messages import BAD_OPTION_VALUE, NO_PROGRAM

#: The kind of server for each scheme of a database URL.
SCHEMES: Final = {
    "postgres": "postgresql",
    **{name: name for name in ("postgresql", "mysql", "mariadb", "mongodb")},
}


def scheme_of(db: str) -> str:
    """Return the kind of server in the URL of --db. Raises ConfigurationError without the URL."""
    try:
        parts = urlsplit(db)
        scheme, host, port = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError as error:
        if "ort" in str(error):  # urllib's error for an impossible port
            raise ConfigurationError(
                BAD_OPTION_VALUE("--db: the port must be a number from 1 to 65535")
            ) from None
        raise ConfigurationError(BAD_OPTION_VALUE("--db: the host is invalid")) from None
    if scheme not in SCHEMES or not host or port == 0:
        raise ConfigurationError(
            BAD_OPTION_VALUE(
                "--db is not a database URL with a host, such as"
                " mysql://user:password@db.example/shop"
            )
        )
    return scheme


def setup(text: str | None, folder: Path) -> tuple[str, ...]:
    """Return the words of --setup, whose program must exist in *folder* or on the path.

    Raises ConfigurationError.
    """
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise ConfigurationError(BAD_OPTION_VALUE(f"--setup {text!r}: {error}")) from None
    if words:
        _find(words[0], folder, f"--setup is {text}")
    return tuple(words)


def driver(name: str | None) -> str | None:
    """Return the *name* of --driver, in any language. Raises ConfigurationError for a wrong one."""
    if name is not None and not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise ConfigurationError(
            BAD_OPTION_VALUE(f"--driver {name!r} is not the name of a driver, such as pymysql")
        )
    return name


def runnable(each: Variant, folder: Path) -> Variant:
    """Return *each* if its program exists. Raises ConfigurationError otherwise."""
    _find(each.argv[0], folder, f"the app's command is {shlex.join(each.argv)}")
    return each


def _find(name: str, folder: Path, where: str) -> None:
    there = shutil.which(name) if "/" not in name else shutil.which(str(folder / name))
    if there is None:
        raise ConfigurationError(NO_PROGRAM(f"{name}: no such program; {where}"))
