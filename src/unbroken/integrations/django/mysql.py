"""``ENGINE = "unbroken.django.mysql"``: Django's backend for MySQL and MariaDB over a pool. It uses
mysqlclient, or PyMySQL in its place.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.mysql.base import DatabaseWrapper as MySQL
from django.db.backends.mysql.creation import DatabaseCreation as Creation
from django.utils.functional import cached_property

from unbroken.integrations.django import checks, pools
from unbroken.integrations.django.wrapper import Pooled


class DatabaseCreation(Creation):  # type: ignore[misc] # Django has no types
    """Django's class. The pool's sessions end before their database does."""

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> Any:
        pools.close_database(self.connection.settings_dict["NAME"], self.connection)
        return super()._clone_test_db(*args, **kwargs)

    def _destroy_test_db(self, test_database_name: str, *args: Any, **kwargs: Any) -> Any:
        self.connection.close_pool()
        pools.close_database(test_database_name, self.connection)
        return super()._destroy_test_db(test_database_name, *args, **kwargs)


class DatabaseWrapper(Pooled, MySQL):  # type: ignore[misc] # Django has no types
    """Django's class, with its connections from a pool."""

    creation_class = DatabaseCreation

    def unbroken_driver(self) -> str:
        """Return the driver's name. PyMySQL replaces mysqlclient if the site asks for it
        (``install_as_MySQLdb``).
        """
        return "pymysql" if self.Database.__name__ == "pymysql" else "mysqlclient"

    @cached_property  # type: ignore[untyped-decorator] # Django has no types
    def mysql_server_data(self) -> Any:
        """Return the data, asked once per process and pool, not once per thread."""
        ask = MySQL.__dict__["mysql_server_data"].func
        if not pools.is_pooled(self):
            return ask(self)
        facts = pools.source_of(self).facts
        if "mysql_server_data" not in facts:
            facts["mysql_server_data"] = ask(self)
        return dict(facts["mysql_server_data"])


checks.register()
