"""``unbroken.wsgi``: any WSGI app, unbroken."""

from unbroken.integrations.web.wsgi import Unbroken

__all__ = ["Unbroken"]
