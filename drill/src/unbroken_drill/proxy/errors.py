"""The fault proxy's exceptions."""

from __future__ import annotations

from unbroken.errors import UnbrokenError


class ProxyError(UnbrokenError):
    """The proxy cannot perform an operation: its address is taken, a connection is gone, statements
    cannot be read …
    """
