"""The tools with which unbroken is tested. They are public, so that its users can test with them: a
separate distribution, not for production.

Names are imported on first access, because pytest loads this package with the plugin in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unbroken_drill.proxy import FaultProxy, ProxyError

__all__ = ["FaultProxy", "ProxyError"]


def __getattr__(name: str) -> Any:
    """Import *name* on first access: pytest loads this package with the plugin in every run."""
    if name in __all__:
        from unbroken_drill import proxy

        return getattr(proxy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
