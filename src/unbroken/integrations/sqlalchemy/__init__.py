"""SQLAlchemy: one word makes an engine unbroken, ``create_engine(url, plugins=["unbroken"])``, sync
and async.
"""

from unbroken.integrations.sqlalchemy.async_pool import AsyncUnbrokenQueuePool
from unbroken.integrations.sqlalchemy.plugin import Plugin, stats
from unbroken.integrations.sqlalchemy.pool import UnbrokenQueuePool

__all__ = ["AsyncUnbrokenQueuePool", "Plugin", "UnbrokenQueuePool", "stats"]
