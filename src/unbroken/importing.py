"""Call a function after the import of a module, without importing the module and without changing
how it is imported.

A finder at the head of ``sys.meta_path`` lets the other finders find the module, and makes its
loader report when the module's code has run. The module itself sees its normal loader. If an
earlier finder found the module, or if its import was in progress at registration, the report comes
at the next import of any module.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from unbroken.logs import Part
from unbroken.messages.pool import CALLBACK_FAILED

log = Part("adoption")

Callback = Callable[[ModuleType], None]

_lock = threading.Lock()
_callbacks: dict[
    str, tuple[Callback, ...]
] = {}  #: by the module's name; a name stays as long as a callback waits
_untold: set[str] = set()  #: those of them whose import was not seen yet


def on_import(name: str, callback: Callback) -> Callable[[], None]:
    """Call *callback* with the module *name* each time its code has run: at its import, and at
    every reload.

    If it is imported already, *callback* is called immediately. Errors of *callback* are logged
    then and never reach the import. Returns a function that ends this.
    """
    with _lock:
        _callbacks[name] = (*_callbacks.get(name, ()), callback)
        _untold.add(name)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
    imported(name)  # if another thread was faster, let it finish
    _catch_up()

    def end() -> None:
        with _lock:
            left = tuple(each for each in _callbacks.get(name, ()) if each is not callback)
            if left:
                _callbacks[name] = left
                return
            _callbacks.pop(name, None)
            _untold.discard(name)
            if not _callbacks and _FINDER in sys.meta_path:
                sys.meta_path.remove(_FINDER)

    return end


def imported(name: str) -> ModuleType | None:
    """Return the module *name* if its import is complete. Waits while another thread imports it;
    never imports it itself.

    None also if this thread is in the middle of importing it.
    """
    module = sys.modules.get(name)
    if module is None or not _is_initializing(module):
        return module
    try:
        importlib.import_module(name)  # the other thread's import has begun: this waits for its end
    except Exception:
        return None  # and it failed
    module = sys.modules.get(name)
    return None if module is None or _is_initializing(module) else module


def is_begun(name: str) -> bool:
    """Return whether *name* is imported, or is being imported at this moment."""
    return sys.modules.get(name) is not None


def exists(name: str) -> bool:
    """Return whether there is a module *name*, without importing anything.

    A module that only code creates, such as one in a package that changes its own ``__path__``, is
    found once that package is imported.
    """
    return is_begun(name) or _spec_of(name) is not None


def find(
    name: str, path: Sequence[str] | None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """Return the result of the finders of ``sys.meta_path`` except ours for the module *name*."""
    for finder in list(sys.meta_path):
        found = (
            None
            if finder is _FINDER
            else getattr(finder, "find_spec", _finds_nothing)(name, path, target)
        )
        if found is not None:
            return found
    return None


def _finds_nothing(
    _name: str, _path: Sequence[str] | None, _target: ModuleType | None
) -> ModuleSpec | None:
    """Return nothing for a finder of the old kind, which Python does not ask either."""
    return None


def _spec_of(name: str) -> ModuleSpec | None:
    parent, _, last = name.rpartition(".")
    path = path_of(parent) if parent else None
    if parent and not path:
        return None
    try:
        return find(name, path)
    except KeyError:  # a package without __init__.py looks for its parent among the imported
        folders = [
            folder for each in path or () if os.path.isdir(folder := os.path.join(each, last))
        ]
        spec = ModuleSpec(name, None)
        spec.submodule_search_locations = folders
        return spec if folders else None
    except Exception:  # a finder of another library, asked without the imports that it expects
        return None


def path_of(package: str) -> list[str]:
    """Return the folders in which the modules of *package* are searched; empty if it is none.
    Imports nothing.
    """
    module = sys.modules.get(package)
    spec = _spec_of(package) if module is None else None
    path: Any = (
        getattr(module, "__path__", None) if spec is None else spec.submodule_search_locations
    )
    try:
        # a namespace's own list would look for its parent in sys.modules
        return list(getattr(path, "_path", path) or ())
    except KeyError:
        return []


def _is_initializing(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _tell(name: str) -> None:
    module = sys.modules.get(name)
    if module is None:
        return
    with _lock:
        callbacks = _callbacks.get(name, ())
        _untold.discard(name)
    for callback in callbacks:
        try:
            callback(module)
        except Exception:
            log.exception(
                "import hook failed",
                CALLBACK_FAILED(f"a callback failed after the import of {name}"),
                about=name,
            )


def _catch_up() -> None:
    """Report modules whose import is complete and was not seen."""
    for name in list(_untold):
        module = sys.modules.get(name)
        if module is not None and not _is_initializing(module):
            _tell(name)


class _Finder:
    """Finds nothing by itself: it makes other finders find the modules for which callbacks wait."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the first other finder, with a loader that reports when the module's
        code has run.
        """
        if _untold:
            _catch_up()
        if name not in _callbacks:
            return None
        spec = find(name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment] # it is one in all but its class
        return spec


class _Loader:
    """Stands in for a module's own loader until the module's code is run."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # a copy is being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Do the same as the module's own loader."""
        made: ModuleType | None = getattr(self._loader, "create_module", _makes_nothing)(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code with its own loader in place, then call the waiting callbacks."""
        spec = module.__spec__
        if spec is not None and spec.loader is self:  # type: ignore[comparison-overlap]
            spec.loader = self._loader
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        self._loader.exec_module(module)
        _tell(module.__name__ if spec is None else spec.name)


def _makes_nothing(_spec: ModuleSpec) -> ModuleType | None:
    """Return None: Python creates the module then."""
    return None


def _new_lock() -> None:
    """In a forked child: replace the lock, which another thread of the parent may have held."""
    global _lock
    _lock = threading.Lock()


_FINDER: Any = _Finder()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
