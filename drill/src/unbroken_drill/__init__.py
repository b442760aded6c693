"""What unbroken is tested with, public so that its users can test with it too: a distribution of
its own, for no production.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unbroken_drill.proxy import FaultProxy, ProxyError

__all__ = ["FaultProxy", "ProxyError"]


def __getattr__(name: str) -> Any:
    """Imported when used: pytest loads this package with the plugin in it, in every run."""
    if name in __all__:
        from unbroken_drill import proxy

        return getattr(proxy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
