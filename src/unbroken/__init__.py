"""unbroken: database connections that do not break."""

from unbroken.aio import AsyncPool
from unbroken.core.stats import Stats
from unbroken.errors import (
    CommitUnknownError,
    ConfigurationError,
    ConnectionLostError,
    ConnectRejectedError,
    DeadlineExceeded,
    DriverNotInstalledError,
    NotYoursError,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    UnbrokenError,
)
from unbroken.settings import Settings
from unbroken.sync import Pool
from unbroken.units import replayable

__version__ = "0.1.0"

__all__ = [
    "AsyncPool",
    "CommitUnknownError",
    "ConfigurationError",
    "ConnectRejectedError",
    "ConnectionLostError",
    "DeadlineExceeded",
    "DriverNotInstalledError",
    "NotYoursError",
    "OutageError",
    "Pool",
    "PoolClosedError",
    "PoolTimeoutError",
    "Settings",
    "Stats",
    "UnbrokenError",
    "replayable",
]
