"""``ENGINE = "unbroken.django.postgresql"``: Django's backend for PostgreSQL over a pool. It uses
psycopg 3 or psycopg2.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQL
from django.db.backends.postgresql.creation import DatabaseCreation as Creation
from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3

from unbroken.integrations.django import checks, pools
from unbroken.integrations.django.wrapper import Pooled
from unbroken.pool.heal import is_serializable


class DatabaseCreation(Creation):  # type: ignore[misc] # Django has no types
    """Django's class. The sessions of all pools to a database end before it is dropped or
    copied.
    """

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> Any:
        pools.close_database(self.connection.settings_dict["NAME"], self.connection)
        return super()._clone_test_db(*args, **kwargs)

    def _destroy_test_db(self, test_database_name: str, *args: Any, **kwargs: Any) -> Any:
        pools.close_database(test_database_name, self.connection)
        return super()._destroy_test_db(test_database_name, *args, **kwargs)


class DatabaseWrapper(Pooled, PostgreSQL):  # type: ignore[misc] # Django has no types
    """Django's class, with its connections from a pool of ours."""

    creation_class = DatabaseCreation

    def unbroken_driver(self) -> str:
        """Return the driver that Django itself has chosen."""
        return "psycopg" if is_psycopg3 else "psycopg2"

    @property
    def pool(self) -> None:
        """Return None: Django's own pool is not used here; ours is ``unbroken_pool``."""
        return

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Return a connection of the pool's, with the isolation level from the settings."""
        connection = super().get_new_connection(conn_params)
        if self._held is not None:
            self.isolation_level = IsolationLevel(
                self.settings_dict["OPTIONS"].get("isolation_level", IsolationLevel.READ_COMMITTED)
            )
        return connection

    def unbroken_is_serializable(self) -> bool:
        """Return the value from the settings, or else from the server's default, which is asked
        once per pool.
        """
        chosen = self.settings_dict["OPTIONS"].get("isolation_level")
        if chosen is not None:
            return bool(chosen == IsolationLevel.SERIALIZABLE)
        source = pools.source_of(self)
        if "serializable" not in source.facts:
            source.facts["serializable"] = is_serializable(source.pool)
        return bool(source.facts["serializable"])

    def close_pool(self) -> None:
        """Close the pool of this alias in this process.

        A new one is created when it is next needed.
        """
        pools.close_pools(self.alias)


checks.register()
