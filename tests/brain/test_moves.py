"""Every change of ownership stands in the kernel, but for the two moves without a lock, which the
bodies have inline.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "unbroken"

#: What says who owns an entry.
BOOKS = {"idle", "in_use", "resetting", "reclaimed", "entries", "waiting"}
#: … and how many places are reserved.
COUNTS = {"opening", "generation", "closed"}
CHANGES = {
    "append",
    "appendleft",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "popleft",
    "remove",
    "setdefault",
    "update",
}

#: Where the two stand: taking an idle entry, and putting one back. ``brain/kernel.py`` says in
#: which order.
WITHOUT_A_LOCK = {
    ("pool/lease.py", "Lease.__enter__"), ("pool/lease.py", "Lease.__exit__"),
    ("sync.py", "Pool.acquire"),
    ("sync.py", "Pool.release"), ("pool/async_lease.py", "AsyncLease.__aenter__"),
    ("pool/async_lease.py", "AsyncLease.__aexit__"), ("aio.py", "AsyncPool.acquire"),
    ("aio.py", "AsyncPool.release"),
    ("integrations/sqlalchemy/pool.py", "UnbrokenQueuePool._do_get"),
    ("integrations/sqlalchemy/async_pool.py", "AsyncUnbrokenQueuePool._do_get"),
    ("integrations/sqlalchemy/pool.py", "EnginePool._do_return_conn"),
}  # fmt: skip


def moves() -> Iterator[tuple[str, str]]:
    """File and function of each line that changes one of the books of a kernel."""
    for path in sorted(SRC.rglob("*.py")):
        name = path.relative_to(SRC).as_posix()
        if name in ("brain/kernel.py", "brain/waiting.py"):
            continue
        for scope, node in functions(ast.parse(path.read_text()), ()):
            if any(is_move(each) for each in ast.walk(node)):
                yield name, ".".join(scope)


def functions(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from functions(child, (*scope, child.name))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (*scope, child.name), child


def is_move(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in CHANGES
            and is_book(node.func.value)
        )
    if isinstance(node, ast.Delete):
        return any(isinstance(each, ast.Subscript) and is_book(each.value) for each in node.targets)
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return any(is_changed(each) for target in targets for each in ast.walk(target))
    return False


def is_changed(target: ast.AST) -> bool:
    if isinstance(target, ast.Subscript):
        return is_book(target.value)
    return isinstance(target, ast.Attribute) and target.attr in COUNTS and of_a_kernel(target.value)


def is_book(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in BOOKS
        and (of_a_kernel(node.value) or of_a_pool(node.value))
    )


def of_a_kernel(node: ast.AST) -> bool:
    return "kernel" in (getattr(node, "attr", None), getattr(node, "id", None))


def of_a_pool(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in {"state", "body", "home"}


def test_nobody_but_the_kernel_and_the_two_moves_without_a_lock_changes_an_owner() -> None:
    assert set(moves()) == WITHOUT_A_LOCK


def test_each_kind_of_change_is_seen() -> None:
    for line in (
        "state.idle.pop()",
        "state.kernel.in_use[key] = entry",
        "del kernel.entries[key]",
        "kernel.opening += 1",
        "kernel.closed = True",
        "body.in_use.pop(key, None)",
        "a, state.in_use[key] = 1, entry",
        "self.kernel.reclaimed.pop(key)",
    ):
        assert any(is_move(node) for node in ast.walk(ast.parse(line))), line
    for line in (
        "entry.opening = 1",
        "len(state.idle)",
        "self.closed = True",
        "state.tries.pop(attempt)",
    ):
        assert not any(is_move(node) for node in ast.walk(ast.parse(line))), line
