"""A framework that is not installed: the import error names the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unbroken.messages.configuration import NOT_INSTALLED


@contextmanager
def needed(door: str, *packages: str, extra: str) -> Iterator[None]:
    """Wrap the imports of ``unbroken.<door>``, which need *packages*.

    Raises ModuleNotFoundError that names the *extra* if one of them is not installed. Any other
    error of an import is passed on.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        raise ModuleNotFoundError(
            NOT_INSTALLED(
                f"unbroken.{door} needs {missing}, which is not installed. Install it: pip install"
                f' "unbroken[{extra}]"'
            ),
            name=error.name,
        ) from error
