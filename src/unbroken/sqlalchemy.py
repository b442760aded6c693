"""SQLAlchemy engines that survive lost connections (docs/sqlalchemy.md). The code is in
:mod:`unbroken.integrations.sqlalchemy`.
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
