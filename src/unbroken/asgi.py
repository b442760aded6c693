"""``unbroken.asgi``: any ASGI app, unbroken; sessions for FastAPI."""

from unbroken.integrations.web.asgi import Unbroken, session

__all__ = ["Unbroken", "session"]
