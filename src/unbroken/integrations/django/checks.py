"""System checks: everything that ``manage.py check`` (``--deploy``) can find about pools before it
fails in production.
"""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core import checks
from django.db import connections

from unbroken.errors import ConfigurationError
from unbroken.integrations.django import pools, where

_ENGINES = ("unbroken.django.mysql", "unbroken.django.postgresql")


def register() -> None:
    """Register the checks once per process, from the first of our modules that Django loads."""
    checks.register(check_settings, "unbroken")
    checks.register(check_deployment, "unbroken", deploy=True)


def _ours() -> list[tuple[str, dict[str, Any]]]:
    return [
        (alias, given)
        for alias, given in connections.settings.items()
        if given["ENGINE"] in _ENGINES
    ]


def check_settings(**_kwargs: Any) -> list[Any]:
    """Check the settings of our databases, without connecting."""
    found: list[Any] = []
    for alias, given in _ours():
        try:
            pools.settings_of(given)
            where.hosts_of(given, given["ENGINE"].rpartition(".")[2])
        except (ConfigurationError, TypeError, ValueError) as exc:
            found.append(
                checks.Error(
                    f"DATABASES[{alias!r}]: {exc}",
                    hint="docs/settings.md lists all settings.",
                    id="unbroken.E001",
                )
            )
            continue
        if given["OPTIONS"].get("pool"):
            found.append(
                checks.Error(
                    f'DATABASES[{alias!r}] configures two pools: OPTIONS["pool"] is for'
                    " Django's own pool.",
                    hint=(
                        'Remove OPTIONS["pool"]. Limit unbroken\'s pool with OPTIONS["unbroken"] ='
                        ' {"max_size": …}.'
                    ),
                    id="unbroken.E002",
                )
            )
        if given.get("CONN_HEALTH_CHECKS"):
            found.append(
                checks.Info(
                    f"DATABASES[{alias!r}]: CONN_HEALTH_CHECKS has no effect. The pool checks each"
                    " connection when it is acquired, without a round trip.",
                    hint="Remove CONN_HEALTH_CHECKS.",
                    id="unbroken.I003",
                )
            )
    return found


def processes() -> tuple[int, str]:
    """Return the configured number of processes of this site, and the source of that number."""
    given = getattr(settings, "UNBROKEN_PROCESSES", None)
    if given is not None:
        return int(given), "UNBROKEN_PROCESSES"
    text = os.environ.get("WEB_CONCURRENCY", "")
    return (
        (int(text), "WEB_CONCURRENCY")
        if text.isdigit() and int(text)
        else (1, "assumed; set UNBROKEN_PROCESSES")
    )


def check_deployment(**_kwargs: Any) -> list[Any]:
    """Check everything that needs the server's answer, or matters only in production."""
    found: list[Any] = []
    for alias, _given in _ours():
        pool = pools.pools().get(alias)
        if pool is not None and pool.stats().opened:
            found.append(
                checks.Warning(
                    f"DATABASES[{alias!r}] was used while the apps were loaded. Under a server that"
                    " forks (gunicorn --preload, uWSGI), each child drops its inherited connections"
                    " and opens its own.",
                    hint="Query in a request first, not at import or in AppConfig.ready().",
                    id="unbroken.W004",
                )
            )
        found += _check_room(alias)
    if getattr(settings, "ASGI_APPLICATION", None):
        found += [
            checks.Warning(
                f"DATABASES[{alias!r}]: ASGI_APPLICATION is set, and"
                f" CONN_MAX_AGE={given['CONN_MAX_AGE']} keeps one connection for each thread, even"
                " if the thread is short-lived.",
                hint="Set CONN_MAX_AGE=0, or use an unbroken ENGINE: all threads share its pool.",
                id="unbroken.W006",
            )
            for alias, given in connections.settings.items()
            if given["ENGINE"] not in _ENGINES and given["CONN_MAX_AGE"] != 0
        ]
    return found


def _check_room(alias: str) -> list[Any]:
    """Compare pool size times processes with the server's max_connections."""
    connection: Any = connections[alias]
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT @@max_connections"
                if connection.vendor == "mysql"
                else "SHOW max_connections"
            )
            limit = int(cursor.fetchone()[0])
        pool = connection.unbroken_pool.settings
    except Exception as exc:
        return [
            checks.Warning(
                f"DATABASES[{alias!r}]: the server could not be asked for max_connections"
                f" ({' '.join(str(exc).split())}).",
                id="unbroken.W007",
            )
        ]
    finally:
        connection.close()
    number, who = processes()
    size = pool.max_size
    if pool.share is not None or size * number <= limit:
        return []
    plural = "process" if number == 1 else "processes"
    return [
        checks.Warning(
            f"DATABASES[{alias!r}]: max_size {size} × {number} {plural} ({who}) = {size * number},"
            f" which exceeds the server's max_connections {limit}. Under load, processes will wait"
            " for each other's connections.",
            hint=(
                f'Set OPTIONS["unbroken"]["max_size"] to {max(1, limit // number)} at most, or'
                " raise max_connections, or let the processes share the server's connections:"
                ' OPTIONS["unbroken"]["share"] = "auto".'
            ),
            id="unbroken.W005",
        )
    ]
