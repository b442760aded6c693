"""The client's option that is to blame for a failed attempt to connect.

Libraries report "[Errno 2] No such file or directory" without the file's name. So after such a
failure the code looks at the files that the options name. It does so only after a failure, because
only the library knows which options it really reads.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unbroken.abc import Fault, FaultKind, Target
from unbroken.backends.commits import is_of_the_server
from unbroken.backends.system import errno_of_text

#: Options that name a file, recognized by the end of their names in any library.
_FILE = re.compile(
    r"(?:^|[^a-z])(?P<what>(?:ssl_?|tls_?)?(?:ca|cert|key|rootcert|crl|ca_?file|cert_?file"
    r"|key_?file|certificate_?key_?file|crl_?file)|read_default_file|option_files|passfile"
    r"|service_?file)$",
    re.IGNORECASE,
)
#: Options with such a name that are something else: a boolean, or a key in place of a file.
_NO_FILES = re.compile(r"verify|scram_|public_?key$", re.IGNORECASE)
_FOLDER = re.compile(r"ca_?path|crldir", re.IGNORECASE)
#: Values that libpq accepts in place of a file.
_NO_FILE = ("system",)
#: The files that libpq and asyncpg take from the environment.
_PG_FILES = {
    "PGSSLROOTCERT": "sslrootcert", "PGSSLCERT": "sslcert", "PGSSLKEY": "sslkey",
    "PGSSLCRL": "sslcrl", "PGSERVICEFILE": "servicefile", "PGPASSFILE": "passfile",
}  # fmt: skip
#: Options for the client's own end of a connection.
_BOUND = ("bind_address", "local_addr", "source_address", "local_address")
#: The server's certificate is not one that the client's authorities have signed.
_UNTRUSTED = re.compile(r"certificate verify failed|issuer|self[- ]signed", re.IGNORECASE)
#: Words of such names that occur in any error of connecting.
_EVERYWHERE = ("server", "client", "connect", "connection", "address", "timeout", "protocol")
#: A word that a message quotes.
_QUOTED = re.compile(r"""["'](\w{4,})["']""")
_SECRET = re.compile(r"pass|pwd|secret|token|scram_\w*key", re.IGNORECASE)
_MOST = 150


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the client's, and its place, for example ``in the URL``."""

    name: str
    value: Any
    source: str

    @property
    def is_secret(self) -> bool:
        """Return whether its value is a password."""
        is_text = isinstance(self.value, str)
        return is_text and "file" not in self.name and bool(_SECRET.search(self.name))

    @property
    def said(self) -> str:
        """Return name, value and place for messages; never a password."""
        if _SECRET.search(self.name) and "file" not in self.name:
            return f"{self.name} {self.source}"
        text = self.value if isinstance(self.value, str) else repr(self.value)
        if len(text) > _MOST:  # the end of a path says more than its beginning
            text = f"…{text[1 - _MOST :]}" if "/" in text else f"{text[: _MOST - 1]}…"
        return f"{self.name}={text} {self.source}"


def _file(name: str) -> re.Match[str] | None:
    """Return the part of *name* that tells which file it names, if it names one."""
    return None if _NO_FILES.search(name) else _FILE.search(name)


def options_of(given: Mapping[str, Any], source: str) -> tuple[Option, ...]:
    """Return the options of *given*, including those in nested dictionaries (``ssl.ca``)."""
    return tuple(_flat(given, source, ""))


def _flat(given: Mapping[str, Any], source: str, before: str) -> Iterator[Option]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _flat(value, source, f"{before}{name}.")
        elif value is not None:
            yield Option(f"{before}{name}", value, source)


def _of_environment(backend: str, known: Iterable[Option]) -> list[Option]:
    if backend != "postgresql":
        return []
    names = {each.name for each in known}
    return [
        Option(name, os.environ[name], "in the environment")
        for name, option in _PG_FILES.items()
        if os.environ.get(name) and option not in names
    ]


def diagnosed(
    fault: Fault, target: Target, options: tuple[Option, ...], *, is_foreign: bool = False
) -> Fault:
    """Return *fault*, of an attempt to connect to *target* with *options*, with the option to
    blame, if there is one.

    *is_foreign*: the application's own code connects, and the options that it reads are not known.
    Reads files. Never raises.
    """
    if not _is_doubtful(fault):
        return fault
    options = (*options, *_of_environment(target.backend, options))
    found = _no_socket(fault, target)
    if found is None and not _is_of_the_network(fault):
        found = _flaw(options)
    if found is not None:
        text = found if fault.kind is FaultKind.REJECTED else f"{found} ({fault.text})"
        kind = FaultKind.MISCONFIGURED
        if is_of_the_server(fault):  # the server answered and refused: that stays so
            kind, text = fault.kind, f"{fault.text}; {found}"
        return replace(fault, kind=kind, text=text)
    if _is_of_a_file(fault, target, is_foreign):
        fault = replace(fault, kind=FaultKind.MISCONFIGURED)
    bound = [each for each in options if each.name in _BOUND]
    if fault.kind is FaultKind.EXHAUSTED and bound:
        return replace(fault, kind=FaultKind.MISCONFIGURED, text=_see(fault.text, bound))
    if fault.kind is FaultKind.MISCONFIGURED and _LATIN in fault.text:
        return replace(fault, text=f"{fault.text}; {_AS_LATIN}")
    about = [each for each in options if _is_about(fault.text, each)]
    if about or fault.kind is not FaultKind.MISCONFIGURED:
        return replace(fault, text=_see(fault.text, about))
    said = ", ".join(each.said for each in options[:4])
    return replace(fault, text=f"{fault.text} (the options are {said})" if said else fault.text)


def asks_for_password(options: Iterable[Option]) -> Fault | None:
    """Return the fault of an encrypted key for which no password is given. OpenSSL would ask for
    one on the terminal, and wait. None: there is no such key.
    """
    options = tuple(options)
    for each in options:
        named = _file(each.name)
        is_key = named is not None and _kind_of(named["what"]) == "key"
        if is_key and _is_encrypted(each.value) and not _has_key_password(options):
            return Fault(FaultKind.MISCONFIGURED, text=f"{each.said}: {_ENCRYPTED}")
    return None


_LATIN = "'latin-1' codec can't encode"
_AS_LATIN = (
    "this driver encodes a password as Latin-1; give it password.encode().decode('latin-1'), which"
    " it sends as UTF-8"
)
_ENCRYPTED = "the key is encrypted, but no password was given for it"


def _is_doubtful(fault: Fault) -> bool:
    """Return whether the client's own options may be to blame for *fault*."""
    if fault.kind in _SETTLED:
        return True
    if is_of_the_server(fault):
        return False
    if fault.kind is FaultKind.REFUSED:
        return True
    return fault.kind in (FaultKind.LOST, FaultKind.NOT_READY) and fault.cause is None


def _is_of_the_network(fault: Fault) -> bool:
    """Return whether no file can be to blame, because the network answered or failed to answer."""
    if fault.kind is FaultKind.REFUSED:
        return errno.ENOENT not in (fault.code, errno_of_text(fault.text))
    return fault.kind is FaultKind.EXHAUSTED


_SETTLED = (
    FaultKind.MISCONFIGURED,
    FaultKind.EXHAUSTED,
    FaultKind.OTHER,
    FaultKind.REJECTED,
)


def _no_socket(fault: Fault, target: Target) -> str | None:
    """Return a description of the file at the path of the server's unix socket, if it is something
    else.
    """
    path = target.unix_socket
    if path is None or target.backend == "postgresql" or fault.kind is not FaultKind.REFUSED:
        return None
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None  # a server that is down has none
    return None if stat.S_ISSOCK(mode) else f"unix_socket={path}: the file is not a socket"


def _is_of_a_file(fault: Fault, target: Target, is_foreign: bool) -> bool:
    """Return whether "no such file" refers to a file, and not to the socket of a server that is
    down.

    A blocking library wraps the system's error for a socket in an error of its own.
    """
    if fault.kind is not FaultKind.REFUSED or target.unix_socket is not None:
        return False
    if "socket" in fault.text.lower():
        return False
    if is_foreign:
        return fault.code == errno.ENOENT
    return target.host is not None and errno.ENOENT in (fault.code, errno_of_text(fault.text))


def _see(text: str, options: list[Option]) -> str:
    return f"{text} (see {', '.join(each.said for each in options[:2])})" if options else text


def _is_about(text: str, option: Option) -> bool:
    """Return whether *text* contains the name, a long word of the name, or the value of
    *option*.
    """
    if option.source == "in the environment":
        return False
    named = _file(option.name)
    if named and _kind_of(named["what"]) == "ca" and _UNTRUSTED.search(text):
        return True
    last = option.name.rpartition(".")[2]
    parts = (each for each in last.split("_") if len(each) > 5)
    words = [last, *(each for each in parts if each.lower() not in _EVERYWHERE)]
    if isinstance(option.value, str) and len(option.value) > 3:
        words.append(option.value)
        if any(each in option.value for each in _QUOTED.findall(text)):
            return True
    return any(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text, re.IGNORECASE) for each in words)


# -- files -----------------------------------------------------------------------------------------


def _flaw(options: tuple[Option, ...]) -> str | None:
    """Return the flaw of the first unusable file that *options* name; None: there is none."""
    paths: dict[str, Option] = {}
    for each in options:
        is_folder = _FOLDER.search(each.name) is not None
        named = _file(each.name)
        if not isinstance(each.value, (str, os.PathLike)) or each.value in (*_NO_FILE, ""):
            continue
        if is_folder or named:
            why = _unreadable(each.value, is_folder)
            if why:
                return f"{each.said}: {why}"
        if named:
            paths[_kind_of(named["what"])] = each
    return _unfit(paths, options)


def _kind_of(name: str) -> str:
    lower = name.lower().replace("_", "").removeprefix("ssl").removeprefix("tls")
    return {"rootcert": "ca", "cafile": "ca", "certfile": "cert", "keyfile": "key"}.get(
        lower, lower
    )


def _unreadable(path: Any, is_folder: bool) -> str | None:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode) != is_folder:
            return "it must be a folder" if is_folder else "it is a folder, not a file"
        if is_folder:
            os.listdir(path)
        elif stat.S_ISREG(mode):
            with open(path, "rb"):
                pass
    except ValueError:
        return "it is not a valid file name"
    except OSError as exc:
        what = {
            errno.ENOENT: "there is no such file",
            errno.EACCES: "permission to read it is denied",
        }
        return what.get(exc.errno or 0, exc.strerror or type(exc).__name__)
    return None


def _unfit(paths: Mapping[str, Option], options: Iterable[Option]) -> str | None:
    """Return why the certificates and the key at *paths* cannot be used; None: they can."""
    try:
        import ssl
    except ImportError:
        return None
    if not all(_is_regular(each.value) for each in paths.values()):
        return None  # reading a pipe would block, and it could not be read again
    ca, cert, key = (paths.get(each) for each in ("ca", "cert", "key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        try:
            context.load_verify_locations(os.fspath(ca.value))
        except (OSError, ValueError):
            return f"{ca.said}: it contains no certificate in PEM format"
    if cert is None:
        return None
    if key is not None and _is_encrypted(key.value) and not _has_key_password(options):
        return f"{key.said}: {_ENCRYPTED}"
    password = None if _has_key_password(options) else ""
    if password is None:
        return None  # it may be the wrong one, which the library reports
    try:
        context.load_cert_chain(
            os.fspath(cert.value), None if key is None else os.fspath(key.value), lambda: ""
        )
    except ssl.SSLError as exc:
        if "KEY_VALUES_MISMATCH" in str(exc) and key is not None:
            return f"{key.said}: the key does not belong to the certificate in {cert.value}"
        about = cert if key is None or not _holds(cert.value, "CERTIFICATE") else key
        what = "certificate" if about is cert else "key"
        return f"{about.said}: it contains no {what} in PEM format"
    except (OSError, ValueError):
        return None
    return None


def _has_key_password(options: Iterable[Option]) -> bool:
    return any(re.search(r"(ssl|key).*pass", each.name, re.IGNORECASE) for each in options)


def _is_encrypted(path: Any) -> bool:
    return _holds(path, "ENCRYPTED")


def _holds(path: Any, word: str) -> bool:
    try:
        if not _is_regular(path):
            return False
        with open(path, "rb") as file:
            return word.encode() in file.read(65536)
    except (OSError, ValueError, TypeError):
        return False


def _is_regular(path: Any) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError, TypeError):
        return False
