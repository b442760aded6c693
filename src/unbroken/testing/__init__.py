"""What unbroken is tested with, public so that its users can test with it too."""

from unbroken.testing.proxy import FaultProxy, ProxyError

__all__ = ["FaultProxy", "ProxyError"]
