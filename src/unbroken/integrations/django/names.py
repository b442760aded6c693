"""The names in an alias of ``DATABASES``: settings that stand in the wrong place are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbroken.drivers._takes import refuse_strays, takes
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.messages.configuration import BAD_SETTING, SETTING_MISPLACED

#: What Django's backends read in OPTIONS themselves, and we.
_READ = {
    "unbroken", "pool", "isolation_level", "assume_role", "server_side_binding", "client_encoding",
    "target_session_attrs",
}  # fmt: skip
#: The drivers behind each vendor's backend; PyMySQL where a site puts it in mysqlclient's place.
_DRIVERS = {"mysql": ("mysqlclient", "pymysql"), "postgresql": ("psycopg", "psycopg2")}
#: What Django reads in an alias.
KEYS = {
    "ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS", "ATOMIC_REQUESTS",
    "AUTOCOMMIT", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "TIME_ZONE", "TEST",
    "DISABLE_SERVER_SIDE_CURSORS",
}  # fmt: skip
_HOW = 'Settings of unbroken\'s stand in OPTIONS["unbroken"], as {"max_size": 5}.'


def check(alias: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where a setting of ours stands beside ``OPTIONS`` or beside
    ``OPTIONS["unbroken"]``.

    Other names that Django or the driver does not know are theirs to refuse.
    """
    options = alias["OPTIONS"]
    if not isinstance(options, Mapping):
        raise ConfigurationError(BAD_SETTING(f"OPTIONS={shown(options)} must be a dictionary"))
    for name in alias:
        if isinstance(name, str) and name.lower() == "unbroken":
            raise ConfigurationError(SETTING_MISPLACED(f"{name!r} stands beside OPTIONS. {_HOW}"))
    engine = str(alias.get("ENGINE", ""))
    for vendor, drivers in _DRIVERS.items():
        if vendor in engine:
            known = _READ.union(*(takes(driver) or () for driver in drivers))
            refuse_strays(options, known, f"OPTIONS: {drivers[0]} has no option", _HOW)
