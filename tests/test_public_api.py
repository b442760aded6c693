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
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("unbroken.")
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


DOORS = ("asgi", "django", "flask", "mongo", "peewee", "sqlalchemy", "wsgi")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_frameworks_module_is_reached_through_the_package() -> None:
    program = (
        "import sys, inspect, pickle, doctest, unbroken\n"
        f"doors = {DOORS}\n"
        "print(*[m for m in sys.modules if m.startswith('unbroken')])\n"
        "print(set(doors) <= set(dir(unbroken)), hasattr(unbroken, 'flsk'))\n"
        "print(*[m for m in sys.modules if m.startswith('unbroken')])\n"
        "print(unbroken.flask.Unbroken.__name__, unbroken.sqlalchemy.install.__name__)\n"
        "print(sum(inspect.ismodule(thing) for _, thing in inspect.getmembers(unbroken)))\n"
        "print(pickle.loads(pickle.dumps(unbroken.flask.Unbroken)) is unbroken.flask.Unbroken)\n"
        "print(len(doctest.DocTestFinder().find(unbroken)))\n"
    )
    said = run(program).splitlines()
    assert said[0] == said[2] == "unbroken"
    assert said[1] == "True False"
    assert said[3] == "Unbroken install"
    assert int(said[4]) >= len(DOORS)
    assert said[5] == "True"


def test_a_framework_that_is_not_installed_is_named_with_its_extra() -> None:
    program = (
        "import sys, inspect\n"
        "HIDDEN = {'flask', 'pymongo', 'peewee', 'sqlalchemy', 'django'}\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in HIDDEN:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import unbroken, importlib\n"
        "for name in ('flask', 'mongo', 'peewee', 'sqlalchemy'):\n"
        "    for get in (lambda: getattr(unbroken, name),\n"
        "                lambda: importlib.import_module(f'unbroken.{name}')):\n"
        "        try: get()\n"
        "        except ImportError as why: print(why)\n"
        "try: unbroken.django.replayable\n"
        "except ImportError as why: print(why)\n"
        "inspect.getmembers(unbroken)\n"
        "print(*dir(unbroken))\n"
    )
    *said, names = run(program).splitlines()
    wanted = []
    for door, package in (
        ("flask", "flask"),
        ("mongo", "pymongo"),
        ("peewee", "peewee"),
        ("sqlalchemy", "sqlalchemy"),
        ("django", "django"),
    ):
        text = (
            f"unbroken.{door} needs {package}, which is not installed. Install it:"
            f' pip install "unbroken[{door}]" [UB122]'
        )
        wanted += [text] * (1 if door == "django" else 2)
    assert said == wanted
    assert not {"flask", "mongo", "peewee", "sqlalchemy"} & set(names.split())
    assert {"asgi", "wsgi"} <= set(names.split())


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
