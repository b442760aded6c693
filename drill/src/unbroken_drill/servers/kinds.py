"""Which kinds of server can be had here."""

from __future__ import annotations

from unbroken_drill.servers.base import Server
from unbroken_drill.servers.errors import ServerUnavailable


def available(kind: str) -> str | None:
    """None when a server of *kind* (``mariadb``, ``postgresql``) can be had here; else one line
    that says what to do.
    """
    if kind not in Server.kinds:
        return f"there is no server of kind {kind!r}; known are {', '.join(sorted(Server.kinds))}"
    try:
        Server.kinds[kind].find()
    except ServerUnavailable as error:
        return str(error)
    return None
