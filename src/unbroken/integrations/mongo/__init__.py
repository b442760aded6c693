"""MongoDB: PyMongo's clients under their own names, created separately in each process, with every
wait bounded (docs/mongodb.md).
"""

from __future__ import annotations

import pymongo

from unbroken.errors import DriverNotInstalledError
from unbroken.messages.configuration import NOT_INSTALLED

if pymongo.version_tuple < (4, 9):
    raise DriverNotInstalledError(
        NOT_INSTALLED(
            f"unbroken.mongo needs PyMongo 4.9 or newer, but {pymongo.version} is installed; pip"
            " install -U pymongo"
        )
    )

from unbroken.integrations.mongo.aio import AsyncMongoClient
from unbroken.integrations.mongo.client import MongoClient
from unbroken.integrations.mongo.stats import stats

__all__ = ["AsyncMongoClient", "MongoClient", "stats"]
