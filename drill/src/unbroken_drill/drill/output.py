"""Where a drill writes its results, and its description of the machine."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import BAD_OPTION_VALUE


def writable(option: str, to: str | None) -> Path | None:
    """Return the file to write to, after a check that it can be written. ``-`` is standard output,
    None means no file.

    Raises ConfigurationError, which names *option*.
    """
    if to is None:
        return None
    path = Path(to)
    if to == "-":
        return path
    if not path.parent.is_dir():
        raise ConfigurationError(BAD_OPTION_VALUE(f"--{option} {to}: no such folder {path.parent}"))
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(BAD_OPTION_VALUE(f"--{option} {to}: cannot write a file there"))
    return path


def write(to: Path | None, text: str) -> None:
    """Write *text* to the file that :func:`writable` returned."""
    if to is None:
        return
    if str(to) == "-":
        sys.stdout.write(text)
    else:
        to.write_text(text)


def machine() -> str:
    """Return the system, the processor and the cores, in one line."""
    return f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores"
