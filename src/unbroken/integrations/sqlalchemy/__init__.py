"""SQLAlchemy: one argument protects an engine, sync or async: ``create_engine(url,
plugins=["unbroken"])``.
"""

from unbroken.integrations.sqlalchemy.async_pool import AsyncUnbrokenQueuePool
from unbroken.integrations.sqlalchemy.plugin import Plugin, stats
from unbroken.integrations.sqlalchemy.pool import UnbrokenQueuePool

__all__ = ["AsyncUnbrokenQueuePool", "Plugin", "UnbrokenQueuePool", "stats"]
