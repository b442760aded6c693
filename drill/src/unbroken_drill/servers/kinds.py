"""The kinds of servers that are available here."""

from __future__ import annotations

from unbroken_drill.servers.base import Server
from unbroken_drill.servers.errors import ServerUnavailable


def available(kind: str) -> str | None:
    """Return None if a server of *kind* (``mariadb``, ``postgresql``) is available here, otherwise
    one line with the remedy.
    """
    if kind not in Server.kinds:
        return f"unknown kind of server {kind!r}; known: {', '.join(sorted(Server.kinds))}"
    try:
        Server.kinds[kind].find()
    except ServerUnavailable as error:
        return str(error)
    return None
