"""One connection for the whole process, as in tutorials, behind a lock."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from unbroken_drill.drill.contenders.base import Settings, SmallApp, driver_arguments
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Rows, Unit, on_cursor


class OneConnection(SmallApp):
    """``conn = driver.connect(…)`` at import, ``conn.cursor()`` in each request, ``commit`` or
    ``rollback``, nothing else.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        del settings
        name = "psycopg" if where.backend == "postgresql" else "pymysql"
        self._conn: Any = importlib.import_module(name).connect(**driver_arguments(where, name))
        self._lock = threading.Lock()

    def work(self, unit: Unit) -> Rows:
        """Make a cursor, execute, commit; roll back on an exception."""
        with self._lock:
            try:
                rows = on_cursor(unit, self._conn)
                self._conn.commit()
            except Exception:
                self._conn.rollback()
                raise
            return rows

    def take(self, unit: Unit) -> Any:
        """Act like a handler that raises before its commit."""
        with self._lock:
            on_cursor(unit, self._conn)
            return self._conn

    def close(self) -> None:
        """Close it."""
        self._conn.close()
