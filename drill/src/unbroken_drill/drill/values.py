"""Values of an app's drill, each checked by itself. Raises ConfigurationError for invalid ones."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.apps.plan import AppPlan, Variant
from unbroken_drill.drill.steps import nearest
from unbroken_drill.messages import BAD_OPTION_VALUE, PORT_TAKEN, UNKNOWN_NAME


def positive(given: Mapping[str, Any], name: str, default: float, most: float) -> float:
    """Return the number *name*, above 0 and at most *most*; *default* if it is not given."""
    value = given.get(name)
    if value is None:
        return default
    if not (math.isfinite(value) and 0 < value <= most):
        raise ConfigurationError(
            BAD_OPTION_VALUE(f"{name} is {value:g}, but must be more than 0 and at most {most:g}")
        )
    return float(value)


def jobs(given: Mapping[str, Any]) -> int:
    """Return how many apps are drilled side by side."""
    many = given.get("jobs") or 1
    if many < 1:
        raise ConfigurationError(BAD_OPTION_VALUE(f"jobs is {many}, but must be at least 1"))
    if many > 1 and not any("{port}" in url for url in given.get("url") or ()):
        raise ConfigurationError(
            BAD_OPTION_VALUE(
                "--jobs above 1 runs apps side by side; write {port} instead of the port, in --url"
                " and in the command"
            )
        )
    return int(many)


def judged(given: Mapping[str, Any], variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return the names of the apps that are judged."""
    names = [each.name for each in variants]
    for name in given.get("judge") or ():
        if name not in names:
            raise ConfigurationError(
                UNKNOWN_NAME(
                    f"--judge {name}: no app has that name{nearest(name, names)}; known:"
                    f" {', '.join(names)}"
                )
            )
    return tuple(given.get("judge") or ())


def check_ports(made: AppPlan) -> None:
    """Check that the app's port is free: another server's answers would count as the app's."""
    for each in made.targets:
        parts = urlsplit(each.url.replace("{port}", "1"))
        if "{port}" in each.url or parts.hostname is None:
            continue
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), 2.0).close()
        except OSError:
            continue
        raise ConfigurationError(
            PORT_TAKEN(
                f"another program already listens on {parts.hostname}:{port}; stop it, because the"
                " drill would measure it instead of your app"
            )
        )
