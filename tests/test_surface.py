"""What integrations and the drill use of a pool's state: a list, so that it grows on purpose only.

Everything else of :class:`unbroken.pool.state.PoolState` belongs to the files beside it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import unbroken
import unbroken_drill
from unbroken.pool.state import PoolState
from unbroken.sync import Pool

SRC = Path(unbroken.__file__).parent
ROOMS = (SRC / "integrations", Path(unbroken_drill.__file__).parent)

#: What a state is called where it is used.
NAMES = {"state", "owner", "body"}

#: What every integration may use.
FOR_ALL = {
    # what stands fast
    "backend", "clock", "driver", "name", "policy", "runtime", "settings",
    # whose process is this, who has what
    "here", "in_use", "kernel", "lock", "pid", "waiting",
    # of one connection
    "explain", "fresh_for", "hung_up", "is_clean", "is_in_step", "is_settled", "knows_status",
    # of the server
    "classify", "describe_outage", "may_hide_writes",
    # what is told
    "counters", "emit", "error", "remedy", "stats",
    # moves
    "close_entry", "follow_sessions", "now", "sever", "sweep",
}  # fmt: skip
#: What only SQLAlchemy's body uses, whose record is a pool's own, and the test of leaks.
FOR_BODIES = {
    "connect_limit", "dispatch", "ensure_connecting", "forgotten", "heard_goodbye", "idle",
}  # fmt: skip
SURFACE = FOR_ALL | FOR_BODIES


def fields() -> set[str]:
    """Every name that a state has: fields and methods, its own and those of the floors below."""
    found = {name for kind in PoolState.__mro__[:-1] for name in vars(kind)}
    tree = ast.parse((SRC / "pool" / "knowledge.py").read_text())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            found.add(node.attr)
    return {name for name in found if not name.startswith("__")}


def last(node: ast.expr) -> str | None:
    """``state`` for ``state``, for ``loan.state`` and for ``state_of(pool)``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return "state" if node.func.id == "state_of" else None
    return None


def uses() -> Iterator[tuple[str, str, str]]:
    """File, name of the object and attribute, for each attribute that is read or written."""
    for room in ROOMS:
        for path in sorted(room.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and (name := last(node.value)) is not None:
                    yield path.relative_to(room.parent).as_posix(), name, node.attr


def test_no_more_of_a_state_is_used_than_is_listed_and_no_less() -> None:
    known = fields()
    found = {
        attr
        for path, name, attr in uses()
        # PyMongo's own client is the body there
        if name in NAMES | {"_state"} and attr in known and "/mongo/" not in path
    }
    assert found == SURFACE


def test_nobody_outside_reaches_into_a_pool_or_a_state() -> None:
    private = {
        name for name in fields() | set(vars(Pool)) if name.startswith("_") and name[1] != "_"
    }
    found = {
        (path, name, attr)
        for path, name, attr in uses()
        if attr in private | {"_state"} and name in NAMES | {"pool", "_pool", "_made"}
    }
    assert found == set()
