"""The error and the log line for an attempt to connect that was rejected permanently: one decision
for both.
"""

from __future__ import annotations

from typing import NamedTuple

from unbroken.abc import Fault, FaultKind
from unbroken.backends.fault import shows_server
from unbroken.errors import (
    ConfigurationError,
    ConnectRejectedError,
    OutageError,
    UnbrokenError,
)
from unbroken.messages.configuration import BAD_LOGIN, OPTION_TO_BLAME
from unbroken.messages.server import CONNECT_REJECTED, EXHAUSTED, OWN_CONNECT, STRANGER
from unbroken.pool.secrets import LoginError

#: The start of a fault's text about the result of the application's own ``connect=``.
GAVE = "connect= returned"


class Verdict(NamedTuple):
    """The class of the callers' error, and the message with its code."""

    kind: type[UnbrokenError]
    message: str


def verdict(exc: Exception, fault: Fault, what: str, *, is_opened_outside: bool) -> Verdict:
    """The error for *exc*, which means *fault*. *what*: the failed action, which the message begins
    with.

    *is_opened_outside*: the application's own code opens the connections. Pure.
    """
    text = fault.text
    if isinstance(exc, LoginError):
        return Verdict(ConfigurationError, BAD_LOGIN(f"{what}: {text}"))
    if hasattr(exc, "is_strangers"):
        return Verdict(
            ConnectRejectedError, STRANGER(f"{what}: {text}; check the host and the port")
        )
    if fault.kind is FaultKind.EXHAUSTED:
        return Verdict(
            OutageError,
            EXHAUSTED(f"{what}: this process or its machine has run out of resources: {text}"),
        )
    if is_opened_outside and text.startswith(GAVE):
        return Verdict(ConnectRejectedError, OWN_CONNECT(f"{what}: {text}"))
    if is_opened_outside and not shows_server(fault):
        return Verdict(
            ConnectRejectedError, OWN_CONNECT(f"{what}: your own connect= raised {text}")
        )
    if fault.kind is FaultKind.MISCONFIGURED:
        return Verdict(ConfigurationError, OPTION_TO_BLAME(f"{what}: {text}"))
    return Verdict(ConnectRejectedError, CONNECT_REJECTED(f"{what}: {text}"))
