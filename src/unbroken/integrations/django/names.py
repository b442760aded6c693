"""The names in an alias of ``DATABASES``. Settings in the wrong place are reported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from unbroken.drivers._takes import refuse_strays, takes
from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.messages.configuration import BAD_SETTING, SETTING_MISPLACED

#: The names in OPTIONS that Django's backends read themselves, and that this library reads.
_READ = {
    "unbroken", "pool", "isolation_level", "assume_role", "server_side_binding", "client_encoding",
    "target_session_attrs",
}  # fmt: skip
#: The drivers behind each vendor's backend; PyMySQL if a site uses it in mysqlclient's place.
_DRIVERS = {"mysql": ("mysqlclient", "pymysql"), "postgresql": ("psycopg", "psycopg2")}
#: The types that Django accepts for the parts of an address, which it passes on unchanged.
_TEXTS: Mapping[str, tuple[type, ...]] = {
    "NAME": (str, int, os.PathLike), "HOST": (str, os.PathLike), "USER": (str, int),
    "PORT": (str, int),
}  # fmt: skip
_HOW = 'Put unbroken\'s settings into OPTIONS["unbroken"], such as {"max_size": 5}.'


def check(alias: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if a setting of ours is outside of ``OPTIONS`` or
    ``OPTIONS["unbroken"]``.

    Django or the driver must refuse other names that they do not know.
    """
    options = alias["OPTIONS"]
    if not isinstance(options, Mapping):
        raise ConfigurationError(BAD_SETTING(f"OPTIONS={shown(options)} must be a dictionary"))
    for name, kinds in _TEXTS.items():
        value = alias.get(name)
        huge = isinstance(value, int) and abs(value) >= 1 << 64
        asked = name == "USER" and callable(value)
        if value and not asked and (not isinstance(value, kinds) or huge or value is True):
            raise ConfigurationError(BAD_SETTING(f"{name}={shown(value)} must be a string"))
    for name in alias:
        if isinstance(name, str) and name.lower() == "unbroken":
            raise ConfigurationError(SETTING_MISPLACED(f"{name!r} is outside of OPTIONS. {_HOW}"))
    engine = str(alias.get("ENGINE", ""))
    for vendor, drivers in _DRIVERS.items():
        if vendor in engine:
            known = _READ.union(*(takes(driver) or () for driver in drivers))
            refuse_strays(options, known, f"OPTIONS: {drivers[0]} has no option", _HOW)
