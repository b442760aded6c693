"""The names in an alias of ``DATABASES``: settings that stand in the wrong place are told."""

from __future__ import annotations

import os
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
#: What Django takes for the parts of an address, which it hands on as they are.
_TEXTS: Mapping[str, tuple[type, ...]] = {
    "NAME": (str, int, os.PathLike), "HOST": (str, os.PathLike), "USER": (str, int),
    "PORT": (str, int),
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
    for name, kinds in _TEXTS.items():
        value = alias.get(name)
        huge = isinstance(value, int) and abs(value) >= 1 << 64
        asked = name == "USER" and callable(value)
        if value and not asked and (not isinstance(value, kinds) or huge or value is True):
            raise ConfigurationError(BAD_SETTING(f"{name}={shown(value)} must be a text"))
    for name in alias:
        if isinstance(name, str) and name.lower() == "unbroken":
            raise ConfigurationError(SETTING_MISPLACED(f"{name!r} stands beside OPTIONS. {_HOW}"))
    engine = str(alias.get("ENGINE", ""))
    for vendor, drivers in _DRIVERS.items():
        if vendor in engine:
            known = _READ.union(*(takes(driver) or () for driver in drivers))
            refuse_strays(options, known, f"OPTIONS: {drivers[0]} has no option", _HOW)
