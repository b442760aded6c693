"""TLS contexts, shared by all connections of a process and made anew when a file that they were
made of has changed.

Loading the CA store takes 19 of the 20 ms of a connect, and each context holds 800 kB. So there is
one for each set of options, of which the last few are kept; a look at the files' times, at each
connect, tells whether a certificate was renewed.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unbroken.logs import Part
from unbroken.messages.drivers import TLS_FILES

log = Part("driver")

#: Contexts that are kept.
MOST = 16

#: by options: what the files looked like, and the context
_kept: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()
_loading = threading.RLock()  # one thread loads the CA store, the others wait for it


def shared(key: Any, files: Iterable[Any], make: Callable[[], Any]) -> Any:
    """The context for *key*, which tells all options; *make* makes it of *files* (paths; what is no
    path counts for nothing).

    Raises what *make* raises, for the first of its kind. While files are being replaced, a
    certificate may not fit its key yet: then the last context serves, with a warning, until they
    can be read.
    """
    paths = [path for path in (*files, *_defaults()) if isinstance(path, (str, bytes, os.PathLike))]
    with _loading:
        stamp = [_stamp(path) for path in paths]
        known = _kept.get(key)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, make())
            except Exception as error:
                if known is None or any(
                    before and not now for before, now in zip(known[0], stamp, strict=True)
                ):
                    raise  # a file that was taken away is not about to be renewed
                log.warning(
                    "TLS files not read",
                    TLS_FILES(
                        f"cannot read renewed TLS files ({error}); the last ones serve until they"
                        " can be read"
                    ),
                )
                return known[1]
            _kept[key] = known
        _kept.move_to_end(key)
        while len(_kept) > MOST:
            _kept.popitem(last=False)
        return known[1]


def context(options: Mapping[str, Any]) -> Any:
    """A context of PyMySQL's *options* (``ca``, ``capath``, ``cert``, ``key``, ``cipher``,
    ``check_hostname``), as PyMySQL makes it.

    Without a CA nothing is verified.
    """
    import ssl

    ca, capath = options.get("ca"), options.get("capath")
    made = ssl.create_default_context(cafile=ca, capath=capath)
    # which certificates that MySQL made by itself do not pass
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    verifies = ca is not None or capath is not None
    made.check_hostname = verifies and options.get("check_hostname", True)
    made.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if "cert" in options:
        made.load_cert_chain(options["cert"], keyfile=options.get("key"))
    if "cipher" in options:
        made.set_ciphers(options["cipher"])
    return made


def _stamp(path: Any) -> tuple[int, int, int] | None:
    """What changes when the file at *path* does; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _defaults() -> tuple[str, ...]:
    """Where this system keeps its CA store."""
    import ssl

    paths = ssl.get_default_verify_paths()
    return tuple(path for path in (paths.cafile, paths.capath) if path is not None)


def _after_fork_in_child() -> None:
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
