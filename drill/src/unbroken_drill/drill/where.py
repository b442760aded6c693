"""Where a contender finds its database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Where:
    """An address, as a URL and in parts."""

    url: str
    host: str
    port: int
    user: str
    password: str
    database: str
    backend: str = ""
    secret: str = ""  #: a file with the password, which may change; empty: it does not change

    def password_now(self) -> str:
        """Return the server's current password, as far as the application can know it."""
        return Path(self.secret).read_text() if self.secret else self.password

    @classmethod
    def of(cls, url: str, backend: str = "", secret: str = "") -> Where:
        """Return an address from a database URL. *backend* is the kind of server, *secret* a file
        with the password.
        """
        parts = urlsplit(url)
        return cls(
            url,
            parts.hostname or "",
            parts.port or 0,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            parts.path.strip("/"),
            backend,
            secret,
        )
