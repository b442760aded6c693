"""Translates an error that PyMongo notes of a server into a fault of the brain's."""

from __future__ import annotations

from pymongo.errors import NetworkTimeout, NotPrimaryError, OperationFailure

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends.masking import masked
from unbroken.backends.system import flat

#: The server reports that it is stopping (SDAM specification, "node is shutting down").
_SHUTDOWN = {91, 11600}

#: ECONNREFUSED, on Linux and on macOS.
_REFUSALS = (111, 61)

#: By the error's text, since PyMongo keeps no cause with the error that it notes.
_BY_TEXT = (
    ("refused", FaultKind.REFUSED, Cause.CRASHED),
    *((f"[errno {code}]", FaultKind.REFUSED, Cause.CRASHED) for code in _REFUSALS),  # asyncio's
    ("reset by peer", FaultKind.LOST, Cause.CONNECTION_RESET),
    ("connection closed", FaultKind.LOST, Cause.CLOSED_BY_PEER),
    ("timed out", FaultKind.UNREACHABLE, Cause.SILENT_DROP),
    ("certificate", FaultKind.REJECTED, None),
)


def fault_of(error: BaseException | None) -> Fault:
    """Return the fault that *error*, from a server description or a heartbeat, reports.

    None: the server does not provide the requested role.
    """
    if error is None:
        return Fault(FaultKind.WRONG_SERVER, Cause.FAILOVER, None, "no primary")
    text = said(error)
    if isinstance(error, (NotPrimaryError, OperationFailure)):
        code = (error.details or {}).get("code") if isinstance(error.details, dict) else None
        if code in _SHUTDOWN:
            return Fault(FaultKind.NOT_READY, Cause.SHUTDOWN, code, text)
        if isinstance(error, NotPrimaryError):
            return Fault(FaultKind.WRONG_SERVER, Cause.FAILOVER, code, text)
        return Fault(FaultKind.NOT_READY, None, code, text)
    if isinstance(error, NetworkTimeout):
        return Fault(FaultKind.UNREACHABLE, Cause.SILENT_DROP, None, text)
    small = text.lower()
    for words, kind, cause in _BY_TEXT:
        if words in small:
            return Fault(kind, cause, None, text)
    return Fault(FaultKind.UNREACHABLE, None, None, text)


def said(error: BaseException) -> str:
    """Return *error* as one line, without PyMongo's list of the configured timeouts."""
    words = str(error).split(" (configured timeouts:")[0].split(", full error:")[0]
    return masked(flat(words)) or type(error).__name__
