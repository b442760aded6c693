"""The floors of the house: who may import whom.

Read from the sources, so a violation is found before it is run.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
#: Where each distribution's package stands. Only the first is installed in production.
PACKAGES = {"unbroken": SRC, "unbroken_drill": ROOT / "drill" / "src"}

#: Every room below src/unbroken and its floor. A new room is entered here, once it is known where
#: it stands.
FLOORS = {
    "logs": -1,  # every other room may log
    "errors": 0, "abc": 0, "messages": 0,
    "roles": 0, "hints": 0,
    "importing": 0.1, "extras": 0.1,  # each tells what went wrong in an import
    "settings": 0.5,  # says what is wrong with itself, so it needs the errors
    "brain": 1, "ledger": 1, "backends": 1, "net": 1,
    "drivers": 2,
    "pool": 2.5,  # opens drivers by their URL
    "units": 2.6, "adoption": 2.7,  # pools adopt what their settings name
    "sync": 3, "aio": 3,
    "integrations": 4,
    # an import path for what stands in integrations
    "sqlalchemy": 4.2, "peewee": 4.2, "mongo": 4.2,
    "flask": 4.2, "wsgi": 4.2, "asgi": 4.2, "django": 4.2,
    "launcher": 4.5,
    "cli": 5, "__main__": 5.5,
}  # fmt: skip

#: The rooms of the second distribution, above the whole first one. None of the first may import any
#: of them.
DRILL_FLOORS = {
    "messages": 9.5,
    "fake_clock": 10, "fake_server": 10.1, "fake": 10.2, "leaks": 10, "proxy": 10, "servers": 10,
    "databases": 10.5, "faults": 10.7, "pytest_plugin": 10.9,  # a proxy before a server
    "drill": 11, "proxy_command": 11, "cli": 11.5,
}  # fmt: skip

#: The packages themselves: ``import unbroken`` has names of the pools' floor, for those above it.
PACKAGE = {"unbroken": 3.5, "unbroken_drill": 10.3}

#: The brain, the ledger and the tables of what servers say decide; they have no hands, no ears and
#: no clock.
PURE = {"brain", "ledger", "backends"}
NOT_IN_PURE = {
    "asyncio", "concurrent", "datetime", "http", "io", "logging", "multiprocessing", "os",
    "pathlib", "queue", "select", "selectors", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "_thread", "urllib",
}  # fmt: skip

#: What a file may import beside what it is named after.
THIRD_PARTY_OF = {
    "flask": {"werkzeug"},
    "django": {"asgiref"},
    "peewee": {"playhouse"},
    "mongo": {"pymongo", "bson", "gridfs", "mongoengine"},
    "pytest_plugin": {"pytest"},
    "mysqlclient": {"MySQLdb"},
    "mysqldb": {"MySQLdb"},
    "mysqlconnector": {"mysql"},
    "mariadbconnector": {"mariadb"},
}


@dataclass(frozen=True)
class Import:
    """One import statement's target: ``name`` is the module, as deep as it can be told."""

    name: str
    line: int
    lazy: bool  #: inside a function: it runs later, or never
    for_types: bool  #: under ``if TYPE_CHECKING``


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """All imports of *source*, wherever they stand."""

    def walk(node: ast.AST, lazy: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join(
                    [
                        *package[: len(package) - node.level + 1],
                        *([node.module] if node.module else []),
                    ]
                )
            for alias in node.names:
                yield Import(submodule(base, alias.name), node.lineno, lazy, for_types)
        is_types = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        )
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy or is_function, for_types or is_types)

    return walk(ast.parse(source), False, False)


def submodule(base: str, name: str) -> str:
    """``from base import name``: the module ``base.name`` where there is one, else ``base``."""
    path = PACKAGES.get(base.split(".")[0], SRC).joinpath(*base.split("."), name)
    return f"{base}.{name}" if path.with_suffix(".py").exists() or path.is_dir() else base


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floors_of(module: str) -> dict[str, float]:
    return FLOORS if module.split(".")[0] == "unbroken" else DRILL_FLOORS


def floor(module: str) -> float:
    """A room without a floor is as low as can be: whatever it imports is an offence, until it is
    given one.
    """
    return (
        floors_of(module).get(room(module), -1) if room(module) else PACKAGE[module.split(".")[0]]
    )


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of *module*, in words."""
    found = []
    for each in imports(source, module, is_package):
        where = f"{module}:{each.line} imports {each.name}"
        if each.name.split(".")[0] in PACKAGES:
            found.extend(f"{where}: {why}" for why in [wrong_inside(module, each)] if why)
        elif each.name.split(".")[0] not in sys.stdlib_module_names:
            found.extend(f"{where}: {why}" for why in [wrong_outside(module, each)] if why)
        elif room(module) in PURE and each.name.split(".")[0] in NOT_IN_PURE:
            found.append(f"{where}: this room does no I/O and knows no clock, threads or asyncio")
    return found


def wrong_inside(module: str, each: Import) -> str | None:
    if room(each.name) and room(each.name) not in floors_of(each.name):
        return "it has no floor: give it one"
    if module.split(".")[:2] == each.name.split(".")[:2]:
        return None
    if module == "unbroken.cli" and each.name == "unbroken_drill.cli" and each.lazy:
        # the one door between the two distributions
        return None
    mine, other = floor(module), floor(each.name)
    is_asked_for = each.lazy or each.for_types
    if other > mine and not (module == "unbroken" and is_asked_for and other < 10):
        # it may load a framework's names when asked
        return f"floor {other} is above floor {mine}"
    if other == mine and not (each.lazy and mine >= 3):
        return f"both are on floor {mine}"
    return None


def wrong_outside(module: str, each: Import) -> str | None:
    if floor(module) >= 11 or (each.for_types and each.name.startswith("typing_extensions")):
        # type checkers know it by themselves
        return None
    if (floor(module) not in (2, 4) and floor(module) < 10) or module == "unbroken":
        return "nothing outside the standard library is imported here"
    if room(module) == "drivers":
        return (
            None
            if each.lazy or each.for_types
            else "a driver is imported when a pool is made, not before"
        )
    names = set(module.split(".")[2:] or [room(module)])
    allowed = names.union(*(THIRD_PARTY_OF.get(name, set()) for name in names))
    if each.lazy or each.for_types or each.name.split(".")[0] in allowed:
        return None
    return f"only {', '.join(sorted(allowed))} may be imported at module level there"


def modules() -> dict[str, Path]:
    found = {}
    for package, src in PACKAGES.items():
        for path in sorted((src / package).rglob("*.py")):
            parts = path.relative_to(src).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_room_has_a_floor() -> None:
    assert {
        module for module in modules() if room(module) and room(module) not in floors_of(module)
    } == set()


def test_imports_go_down_only() -> None:
    found = [
        offence
        for module, path in modules().items()
        for offence in offences(path.read_text(), module, path.name == "__init__.py")
    ]
    assert found == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph = {
        module: {
            i.name
            for i in imports(path.read_text(), module, path.name == "__init__.py")
            if not i.lazy and i.name != module
        }
        for module, path in modules().items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_importing_unbroken_loads_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import unbroken; [getattr(unbroken, n) for n in"
        " getattr(unbroken, '__all__', ())];print(*{m.split('.')[0] for m in set(sys.modules) -"
        " before} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["unbroken"]


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("unbroken.errors", "import unbroken.settings", "floor 0.5 is above floor 0"),
        ("unbroken.errors", "import unbroken.abc", "both are on floor 0"),
        ("unbroken.abc", "from unbroken.brain import kernel", "floor 1 is above floor 0"),
        (
            "unbroken.brain.kernel",
            "from unbroken.net.liveness import Liveness",
            "both are on floor 1",
        ),
        (
            "unbroken.brain.kernel",
            "if TYPE_CHECKING:\n    from unbroken.sync import Pool",
            "floor 3 is above floor 1",
        ),
        (
            "unbroken.brain.kernel",
            "def f():\n    from ..pool import acquire",
            "floor 2.5 is above floor 1",
        ),
        ("unbroken.brain.kernel", "import unbroken", "floor 3.5 is above floor 1"),
        ("unbroken.brain.kernel", "from time import monotonic", "knows no clock"),
        ("unbroken.brain.kernel", "def f():\n    import threading", "knows no clock, threads"),
        (
            "unbroken.net.patched",
            "def f():\n    import gevent",
            "nothing outside the standard library",
        ),
        ("unbroken.drivers.url", "import unbroken.pool.acquire", "floor 2.5 is above floor 2"),
        ("unbroken.brain.outage", "from unbroken.ledger.unit import Unit", "both are on floor 1"),
        ("unbroken.drivers.pymysql", "import pymysql", "not before"),
        ("unbroken.sync", "from unbroken.aio import AsyncPool", "both are on floor 3"),
        ("unbroken.sync", "import sqlalchemy", "nothing outside the standard library"),
        (
            "unbroken.integrations.peewee",
            "import sqlalchemy",
            "only peewee, playhouse may be imported",
        ),
        ("unbroken_drill.servers.base", "import psutil", "only base may be imported"),
        ("unbroken_drill.proxy", "import unbroken_drill.drill", "floor 11 is above floor 10"),
        (
            "unbroken_drill.proxy.engine",
            "from unbroken_drill.servers import Server",
            "both are on floor 10",
        ),
        ("unbroken.sync", "import unbroken.attic", "it has no floor"),
        (
            "unbroken",
            "def f():\n    from unbroken_drill import servers",
            "floor 10 is above floor 3.5",
        ),
        ("unbroken.cli", "from unbroken_drill.cli import run", "floor 11.5 is above floor 5"),
        (
            "unbroken.cli",
            "def f():\n    from unbroken_drill.drill import command",
            "floor 11 is above floor 5",
        ),
        ("unbroken.cli", "def f():\n    import click", "nothing outside the standard library"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, reason: str) -> None:
    (offence,) = offences(source, module)
    assert reason in offence


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "unbroken.brain.kernel",
            "from unbroken.brain.entry import Entry\nfrom .entry import State\nimport random",
        ),
        ("unbroken.drivers.pymysql", "def connect():\n    import pymysql"),
        ("unbroken.drivers.mysqldb", "if TYPE_CHECKING:\n    import MySQLdb"),
        (
            "unbroken.integrations.peewee",
            "import peewee\nimport unbroken\nfrom unbroken.sync import Pool",
        ),
        ("unbroken.integrations.django.mysql.base", "from django.db.backends.mysql import base"),
        ("unbroken.cli", "def main():\n    import unbroken_drill.cli"),
        (
            "unbroken_drill.cli",
            "import rich\nimport unbroken_drill.drill\nfrom unbroken.errors import UnbrokenError",
        ),
        ("unbroken_drill.faults", "from unbroken_drill.proxy import FaultProxy\nimport unbroken"),
        (
            "unbroken",
            "from unbroken.sync import Pool\ndef __getattr__(name):\n    import unbroken.mongo",
        ),
    ],
)
def test_a_right_import_is_let_be(module: str, source: str) -> None:
    assert offences(source, module) == []
