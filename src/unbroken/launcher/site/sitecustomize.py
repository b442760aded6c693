"""Python runs this at its start under ``unbroken run``.

It leaves the path unchanged, and then runs the next ``sitecustomize`` on it.
"""

import contextlib
import importlib
import sys
from pathlib import Path


def _begin() -> None:
    try:
        from unbroken.launcher import begin
    except ImportError as why:
        print(
            f"unbroken: not active, because {sys.executable} cannot import it: {why}",
            file=sys.stderr,
        )
    else:
        begin()


def _next() -> None:
    here = Path(__file__).parent
    sys.path[:] = [each for each in sys.path if not each or Path(each) != here]
    sys.path_importer_cache.pop(str(here), None)
    ours = sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")  # the next one on the path
    if ours is not None:
        sys.modules.setdefault("sitecustomize", ours)


_begin()
_next()
