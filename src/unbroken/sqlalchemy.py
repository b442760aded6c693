"""SQLAlchemy engines that do not break: see :mod:`unbroken.integrations.sqlalchemy` and
docs/sqlalchemy.md.
"""

from unbroken.integrations.sqlalchemy import (
    AsyncUnbrokenQueuePool,
    Plugin,
    UnbrokenQueuePool,
    stats,
)

__all__ = ["AsyncUnbrokenQueuePool", "Plugin", "UnbrokenQueuePool", "stats"]
