"""Translates a URL into asyncpg's keyword arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from unbroken.abc import Target
from unbroken.drivers._shared import (
    boolean,
    coerce,
    number,
    seconds,
    whole,
)

# Parameters that asyncpg reads from a DSN's query only, by libpq's names.
_DSN = (
    "ssl", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version",
)  # fmt: skip


_SERVER_SETTINGS = (
    "application_name", "options", "search_path", "timezone", "statement_timeout", "lock_timeout",
    "idle_in_transaction_session_timeout",
)  # fmt: skip


_OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys((*_DSN, *_SERVER_SETTINGS), str), "command_timeout": seconds,
    "connect_timeout": seconds, "timeout": seconds, "statement_cache_size": whole,
    "prepared_statement_cache_size": whole, "max_cached_statement_lifetime": number,
    "max_cacheable_statement_size": whole, "target_session_attrs": str, "direct_tls": boolean,
    "passfile": str, "krbsrvname": str, "gsslib": str,
}  # fmt: skip


def arguments(target: Target) -> tuple[dict[str, Any], float | None]:
    """Return the keyword arguments for ``asyncpg.connect``, and the user's own limit for
    connecting.
    """
    out = coerce(target.options, _OPTIONS, "asyncpg")
    limits = [out.pop(name) for name in ("connect_timeout", "timeout") if name in out]
    if "prepared_statement_cache_size" in out:  # SQLAlchemy's name
        out.setdefault("statement_cache_size", out.pop("prepared_statement_cache_size"))
    if "ssl" in out:  # the name that SQLAlchemy and asyncpg use for libpq's sslmode
        out["sslmode"] = {"true": "require", "false": "disable"}.get(out["ssl"].lower(), out["ssl"])
        del out["ssl"]
    settings = {name: out.pop(name) for name in _SERVER_SETTINGS if name in out}
    if settings:
        out["server_settings"] = settings
    dsn = "&".join(f"{name}={quote(out.pop(name), safe='')}" for name in _DSN if name in out)
    if dsn:
        out["dsn"] = f"postgresql://?{dsn}"
    given = {
        "host": target.unix_socket or target.host,
        "port": target.port,
        "user": target.user,
        "password": target.password,
        "database": target.database,
    }
    out.update({name: value for name, value in given.items() if value is not None})
    return out, min(limits) if limits else None
