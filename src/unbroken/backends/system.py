"""The errors of the operating system, TLS and the name lookup, and the texts that messages
quote.
"""

from __future__ import annotations

import errno as E  # noqa: N812 - the tables below read better
import re
import struct
from collections.abc import Iterable, Iterator

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends.masking import masked

_K = FaultKind

_MAX_TEXT = 300


def flat(text: object) -> str:
    """Return *text* as one line. The tables use it before a driver knows which secrets to mask."""
    return " ".join(str(text).split())


def one_line(text: object, *secrets: str | None, known: Iterable[str | None] = ()) -> str:
    """Return *text* as one line of at most 300 characters, with *secrets*, and any values in places
    for passwords, masked. *known*: see :func:`unbroken.backends.masking.masked`.
    """
    line = masked(flat(text), secrets, known)
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


_REFUSED = {E.ECONNREFUSED, E.ENOENT}  # ENOENT: the unix socket's file does not exist
_UNREACHABLE = {
    E.ETIMEDOUT,
    E.EHOSTUNREACH,
    E.ENETUNREACH,
    E.EHOSTDOWN,
    E.ENETDOWN,
    E.ENETRESET,
}
# of this process or its machine: descriptors, local ports, memory
_EXHAUSTED = {E.EMFILE, E.ENFILE, E.EADDRNOTAVAIL, E.ENOBUFS, E.ENOMEM}
_RESET = {E.ECONNRESET, E.EPIPE, E.ECONNABORTED, E.ENOTCONN, E.ESHUTDOWN}
_DENIED = {E.EACCES, E.EPERM}
# of a file that a setting names, or of an address that is invalid
_PATHS = {E.EISDIR, E.ENOTDIR, E.ELOOP, E.ENAMETOOLONG, E.EINVAL, E.EAFNOSUPPORT}
# getaddrinfo's answers, as numbers since they differ by system (Linux is negative, macOS positive)
_NAME_UNKNOWN = {-2, -5, 7, 8}  # EAI_NONAME, EAI_NODATA
# EAI_AGAIN, EAI_FAIL, EAI_MEMORY, EAI_SYSTEM: the name service itself, or the machine, has a
# problem
_NAME_LATER = {-3, -4, -10, -11, 2, 4, 6, 11}
# texts of the system and getaddrinfo, for drivers that pass on only the text
_OS_WORDS: tuple[tuple[str, int], ...] = (
    ("connection refused", E.ECONNREFUSED),
    ("connect call failed", E.ECONNREFUSED),
    ("no such file or directory", E.ENOENT),
    ("timed out", E.ETIMEDOUT),
    ("timeout expired", E.ETIMEDOUT),
    ("connection timeout", E.ETIMEDOUT),
    ("no route to host", E.EHOSTUNREACH),
    ("network is unreachable", E.ENETUNREACH),
    ("connection reset by peer", E.ECONNRESET),
    ("broken pipe", E.EPIPE),
    ("too many open files", E.EMFILE),
    ("cannot assign requested address", E.EADDRNOTAVAIL),
    ("permission denied", E.EACCES),
    ("temporary failure in name resolution", -3),
    ("name or service not known", -2),
    ("nodename nor servname", -2),
    ("no address associated with hostname", -5),
    ("non-recoverable failure in name resolution", -4),
    ("name does not resolve", -2),  # musl
    # the texts of libpq, psycopg and the MySQL libraries around one of these, in another language
    ("could not translate host name", -2),
    ("failed to resolve host", -2),
    ("unknown server host", -2),
    ("unknown mysql server host", -2),
)
_EMBEDDED = re.compile(r"\[Errno (-?\d+)\]|\((-?\d+)(?:\)|\s+\"| ')|system error: (\d+)")


def errno_of_text(text: str) -> int | None:
    """Return the system's (or getaddrinfo's) number inside a driver's message, or the number that
    its text means; None without one.
    """
    found = _EMBEDDED.search(text)
    if found:
        return int(next(group for group in found.groups() if group))
    lower = text.lower()
    return next((number for words, number in _OS_WORDS if words in lower), None)


def of_errno(number: int, text: str, connecting: bool) -> Fault | None:
    """Return the fault that the system's error *number* reports; None: nothing about a
    connection.
    """
    if number in _REFUSED and (connecting or number != E.ENOENT):
        return Fault(_K.REFUSED if connecting else _K.LOST, None, number, text)
    if number in _UNREACHABLE:
        if connecting:
            return Fault(_K.UNREACHABLE, None, number, text)
        return Fault(_K.LOST, Cause.SILENT_DROP, number, text)
    if number in _RESET:
        return Fault(_K.LOST, Cause.CONNECTION_RESET, number, text)
    if number in _EXHAUSTED and connecting:
        return Fault(_K.EXHAUSTED, None, number, text)
    if number in _DENIED and connecting:
        return Fault(_K.REJECTED, None, number, text)
    if number in _NAME_UNKNOWN and number < 0:
        return Fault(_K.UNKNOWN_NAME, None, number, text)
    if number in _NAME_LATER and number < 0:
        return Fault(_K.UNREACHABLE, None, number, text)
    return None


def chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield *exc*, then the exceptions that it was raised from, innermost last. PyMySQL's
    ``original_exception`` counts too.
    """
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = (
            getattr(link, "original_exception", None)
            or link.__cause__
            or (None if link.__suppress_context__ else link.__context__)
        )


def os_fault(exc: BaseException, *, connecting: bool = False, is_link: bool = False) -> Fault:
    """Return the fault that an exception of the system (socket, name service, TLS, timeout)
    reports; OTHER for anything else.

    *is_link*: *exc* is only in the chain of the error that counts. Exceptions handled before may be
    in it as well, so *exc* then tells nothing about arguments.
    """
    only = exc.args[0] if len(exc.args) == 1 else None  # an SSLError has it as a tuple
    text = flat(only if only and isinstance(only, str) else str(exc) or type(exc).__name__)
    names = {cls.__name__ for cls in type(exc).__mro__}
    number = getattr(exc, "errno", None)
    if "gaierror" in names:
        if number in _NAME_UNKNOWN:
            return Fault(_K.UNKNOWN_NAME, None, number, text)
        return Fault(_K.UNREACHABLE if number in _NAME_LATER else _K.REJECTED, None, number, text)
    if "SSLError" in names:
        return _of_tls(exc, names, text, connecting)
    if isinstance(exc, EOFError):
        return Fault(_K.LOST, Cause.CLOSED_BY_PEER, None, text)
    if isinstance(exc, TimeoutError):
        return of_errno(number or E.ETIMEDOUT, text, connecting) or Fault(
            _K.LOST, None, number, text
        )
    if isinstance(exc, OSError):
        number = number if number is not None else errno_of_text(text)
        known = of_errno(number, text, connecting) if number is not None else None
        if known is None and isinstance(exc, ConnectionError):
            return Fault(_K.LOST, None, number, text)
        if known is None and connecting and (number in _PATHS or "path too long" in text):
            return Fault(_K.MISCONFIGURED, None, number, text)
        return known or Fault(_K.OTHER, None, number, text)
    if connecting and isinstance(exc, MemoryError):
        return Fault(_K.EXHAUSTED, None, None, text)
    if (
        connecting
        and not is_link
        and (isinstance(exc, _ARGUMENTS) or _is_about_arguments(exc, text))
    ):
        return Fault(_K.MISCONFIGURED, None, None, f"{type(exc).__name__}: {text}")
    return Fault(_K.OTHER, None, None, text)


#: The errors that a library raises for invalid arguments, names and modules.
_ARGUMENTS = (
    TypeError, ValueError, LookupError, AttributeError, ImportError, NameError,
    NotImplementedError, OverflowError, struct.error,
)  # fmt: skip


def _is_about_arguments(exc: BaseException, text: str) -> bool:
    """Return whether *exc* reports that a module is missing, in PyMySQL's text: it raises a
    RuntimeError.
    """
    return isinstance(exc, RuntimeError) and "package is required" in text


#: Texts of OpenSSL, GnuTLS and the libraries around them for an unusable certificate, key or
#: setting of the client's. No server was asked.
TLS_SETTINGS = (
    "no certificate or crl found", "key values mismatch", "no cipher match",
    "no cipher can be selected", "pem lib", "no start line", "bad decrypt", "processing error",
    "invalid ca certificate", "invalid certificate/key", "no such file or directory",
    "could not load private key", "could not read certificate file", "certificate present, but",
    "private key file", "root certificate", "could not load ssl engine", "bad password read",
    "unsupported protocol version", "ssl_ctx_set_default_verify_paths failed",
    "unable to get certificate", "unable to get private key", "ssl context",
)  # fmt: skip


def _of_tls(exc: BaseException, names: set[str], text: str, connecting: bool) -> Fault:
    lower = text.lower()
    is_local = getattr(exc, "library", None) in ("X509", "PEM") or any(
        words in lower for words in TLS_SETTINGS
    )
    if connecting and is_local:
        return Fault(_K.MISCONFIGURED, None, None, text)
    if "SSLCertVerificationError" in names:
        return Fault(_K.REJECTED, None, None, text)
    if names & {"SSLEOFError", "SSLZeroReturnError", "SSLSyscallError"}:
        return Fault(_K.LOST, Cause.CLOSED_BY_PEER, None, text)
    if "timed out" in text:
        return Fault(
            _K.UNREACHABLE if connecting else _K.LOST,
            None if connecting else Cause.SILENT_DROP,
            None,
            text,
        )
    return Fault(_K.REJECTED if connecting else _K.LOST, None, None, text)


#: Texts of OpenSSL for a peer that closed the connection during the handshake. The last two are the
#: client library's, if OpenSSL has no error of its own to report: nothing, or SSL_ERROR_SYSCALL.
HUNG_UP_IN_TLS = (
    "unexpected eof",
    "connection reset",
    "broken pipe",
    "connection was closed",
    "error:00000000",
    "error:00000005",
)
