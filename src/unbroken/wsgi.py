"""``unbroken.wsgi``: any WSGI app, unbroken."""

from unbroken.integrations.wsgi import Unbroken

__all__ = ["Unbroken"]
