"""Modules that are written for one test, and ``unbroken.adopt``, undone in the end."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import unbroken
from unbroken import importing

from .sample import SOURCE

_numbers = count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Writes a module with a name of its own, and gives the name."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def make(source: str = SOURCE, name: str = "") -> str:
        name = name or f"adopted_{os.getpid()}_{next(_numbers)}"
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        for folder in reversed(path.relative_to(tmp_path).parents[:-1]):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "__init__.py").touch()
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield make
    for name in list(sys.modules):
        if any(name == each or each.startswith(f"{name}.") for each in names):
            del sys.modules[name]


@pytest.fixture
def adopt() -> Iterator[Callable[..., Any]]:
    """``unbroken.adopt``, undone in the end."""
    made: list[Any] = []

    def call(*names: str, **how: Any) -> Any:
        made.append(unbroken.adopt(*names, **how))
        return made[-1]

    yield call
    for each in made:
        each.undo()
    assert not importing._callbacks
    assert importing._FINDER not in sys.meta_path
