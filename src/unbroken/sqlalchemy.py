"""SQLAlchemy engines that do not break: see :mod:`unbroken.integrations.sqlalchemy` and
docs/sqlalchemy.md.
"""

from unbroken.extras import needed

with needed("sqlalchemy", "sqlalchemy", extra="sqlalchemy"):
    from unbroken.integrations.sqlalchemy import (
        AsyncUnbrokenQueuePool,
        Plugin,
        UnbrokenQueuePool,
        stats,
    )
    from unbroken.integrations.sqlalchemy.install import Installed, install

__all__ = ["AsyncUnbrokenQueuePool", "Installed", "Plugin", "UnbrokenQueuePool", "install", "stats"]
