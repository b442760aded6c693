"""Where a contender finds its database."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Where:
    """An address, in one piece as a URL and in parts."""

    url: str
    host: str
    port: int
    user: str
    password: str
    database: str
    backend: str = ""

    @classmethod
    def of(cls, url: str, backend: str = "") -> Where:
        """From a database URL; *backend* is the kind of server."""
        parts = urlsplit(url)
        return cls(
            url,
            parts.hostname or "",
            parts.port or 0,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            parts.path.strip("/"),
            backend,
        )
