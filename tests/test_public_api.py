"""What the package shows: every public thing is explained, `__all__` tells the truth, and types are
shipped.
"""

from __future__ import annotations

import ast
import importlib
import importlib.resources
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unbroken
import unbroken_drill

SRC = Path(unbroken.__file__).parent
ROOTS = (SRC, Path(unbroken_drill.__file__).parent)
FILES = [
    path
    for root in ROOTS
    for path in sorted(root.rglob("*.py"))
    if not any(
        part.startswith("_") and part != "__init__.py" for part in path.relative_to(root).parts
    )
]


def unexplained(tree: ast.Module) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring.

    What stands inside a function is private.
    """
    if not ast.get_docstring(tree):
        yield "the module"
    todo: list[tuple[str, ast.AST]] = [("", tree)]
    for prefix, parent in todo:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.If | ast.Try | ast.With):
                todo.append((prefix, node))
            elif isinstance(
                node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and not node.name.startswith("_"):
                # an overriding method is explained where it is first declared
                inherited = any(
                    ast.unparse(d).split(".")[-1] in ("override", "overload", "setter")
                    for d in node.decorator_list
                )
                if not ast.get_docstring(node) and not inherited:
                    yield f"{prefix}{node.name} (line {node.lineno})"
                if isinstance(node, ast.ClassDef):
                    todo.append((f"{prefix}{node.name}.", node))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p).rpartition("/src/")[2])
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert list(unexplained(ast.parse(path.read_text()))) == []


def test_a_missing_docstring_is_found() -> None:
    source = (
        "class A:\n  'said'\n  def f(self): pass\n  def _g(self): pass\nasync def h(): pass\nif"
        " x:\n  def i(): 'said'\n"
    )
    assert list(unexplained(ast.parse(source))) == ["the module", "h (line 5)", "A.f (line 3)"]


def test_all_names_exist_are_sorted_and_come_from_here() -> None:
    assert unbroken.__all__ == sorted(set(unbroken.__all__))
    for name in unbroken.__all__:
        thing = getattr(unbroken, name)
        origin = getattr(thing, "__module__", None)
        assert origin is None or origin.split(".")[0] == "unbroken", name


def test_every_public_name_of_the_package_is_in_all() -> None:
    tree = ast.parse((SRC / "__init__.py").read_text())
    ours = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("unbroken")
    ]
    assert {alias.asname or alias.name for node in ours for alias in node.names} == set(
        unbroken.__all__
    )


def test_nothing_is_imported_before_something_is_used() -> None:
    program = (
        "import sys, unbroken, unbroken_drill; print(*sorted(m for m in sys.modules if"
        " m.startswith('unbroken')))"
    )
    program += (
        "; print(unbroken.Pool.__name__, unbroken.errors.OutageError.__name__,"
        " unbroken_drill.FaultProxy.__name__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said == ["unbroken unbroken_drill", "Pool OutageError FaultProxy"]
    with pytest.raises(AttributeError, match="no attribute 'Puddle'"):
        _ = unbroken.Puddle  # type: ignore[attr-defined]
    assert set(unbroken.__all__) <= set(dir(unbroken))


def test_every_error_is_public() -> None:
    errors = importlib.import_module("unbroken.errors")
    classes = {
        name
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, unbroken.UnbrokenError)
    }
    assert len(classes) > 5
    assert classes <= set(unbroken.__all__)


@pytest.mark.parametrize("package", ["unbroken", "unbroken_drill"])
def test_a_package_ships_its_types(package: str) -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()
