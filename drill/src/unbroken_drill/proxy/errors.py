"""What the fault proxy raises."""

from __future__ import annotations

from unbroken.errors import UnbrokenError


class ProxyError(UnbrokenError):
    """The proxy cannot do what was asked: its address is taken, a connection is gone, statements
    cannot be read …
    """
