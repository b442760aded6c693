"""The user's app: its commands, its URLs, its variables, checked before anything is started."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.apps.replies import Target
from unbroken_drill.drill.where import Where
from unbroken_drill.messages import BAD_OPTION_VALUE, OPTION_MISSING

#: Servers that can be started for an app.
BACKENDS: Final = ("postgresql", "mariadb", "mysql", "mongodb")

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_NAMED: Final = re.compile(r"(?P<name>[\w .+-]{1,30}): +(?P<command>\S.*)", re.DOTALL)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE: Final = re.compile(r"\{(\w+)\}")
_METHOD: Final = re.compile(r"[A-Z]+")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLACES: Final = ("url", "host", "port", "user", "password", "database")


@dataclass(frozen=True, slots=True)
class Variant:
    """One app, or one of several to compare: its name in the tables, its command, and its own
    environment variables.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AppPlan:
    """The plan to start and query an app, or each of several variants. Times are seconds."""

    targets: tuple[Target, ...]
    environment: tuple[
        tuple[str, str], ...
    ]  #: name and template of each variable that holds the database's address
    backend: str
    db: str | None = None  #: the URL of an existing server, which the drill may harm
    driver: str | None = None
    setup: tuple[str, ...] = ()
    setup_sql: str | None = None
    rate: float = 50.0
    concurrency: int = 256
    timeout: float = 10.0
    start_timeout: float = 30.0
    folder: Path = field(default_factory=Path.cwd)

    @property
    def port_is_free(self) -> bool:
        """Whether the drill chooses the app's port: ``{port}`` in a URL."""
        return any("{port}" in target.url for target in self.targets)


def variant(text: str, at: int) -> Variant:
    """Return a command, read as a shell would read it: ``name: VARIABLE=value program argument``.
    Name and variables are optional.
    """
    named = _NAMED.fullmatch(text.strip())
    return command(
        named["command"] if named else text, named["name"].strip() if named else None, at
    )


def command(text: str | Sequence[str], name: str | None, at: int = 0) -> Variant:
    """Return the same with the *name* known; *at* numbers commands without a name."""
    try:
        words = shlex.split(text) if isinstance(text, str) else list(text)
    except ValueError as error:
        raise ConfigurationError(BAD_OPTION_VALUE(f"command {text!r}: {error}")) from None
    own = {}
    while words and _ASSIGNMENT.match(words[0]):
        variable, _, value = words.pop(0).partition("=")
        own[variable] = value
    if not words:
        raise ConfigurationError(
            OPTION_MISSING(
                f"command {text!r} is empty; give the app's command, such as gunicorn app:app"
            )
        )
    return Variant(
        name or f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[at % 26]} {os.path.basename(words[0])}"[:20],
        tuple(words),
        own,
    )


def database_variable(text: str) -> tuple[str, str]:
    """Return the name and template of ``NAME``, which takes the URL, or of ``NAME=template`` with
    ``{host}``, ``{port}`` and so on.
    """
    name, equals, template = text.partition("=")
    if not _VARIABLE.fullmatch(name):
        raise ConfigurationError(
            BAD_OPTION_VALUE(f"--env {text}: {name!r} is not the name of an environment variable")
        )
    for place in _PLACE.findall(template):
        if place not in _PLACES:
            raise ConfigurationError(
                BAD_OPTION_VALUE(
                    f"--env {text}: unknown part {{{place}}}; known:"
                    f" {', '.join(f'{{{p}}}' for p in _PLACES)}"
                )
            )
    return name, template if equals else "{url}"


def fill(template: str, where: Where) -> str:
    """Return a variable's value.

    In a template that is a URL itself, user and password are percent-encoded.
    """
    values = {name: str(getattr(where, name)) for name in _PLACES}
    if "://" in template:
        values.update(user=quote(where.user, safe=""), password=quote(where.password, safe=""))
    return _PLACE.sub(lambda match: values[match[1]], template)


def target(url: str, method: str, body: str | None, headers: Mapping[str, str]) -> Target:
    """Return one URL of the app, checked. *url* can begin with a method of its own: ``POST
    http://…``.
    """
    word, _, rest = url.partition(" ")
    if rest:
        method, url = word, rest.strip()
    try:
        parts = urlsplit(url.replace("{port}", "80"))
        good = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(
            BAD_OPTION_VALUE(
                f"--url {url} is not an http:// URL with a host, such as http://127.0.0.1:8000/items"
            )
        )
    if not _METHOD.fullmatch(method):
        raise ConfigurationError(
            BAD_OPTION_VALUE(f"method {method!r} is not an HTTP method such as GET or POST")
        )
    return Target(url, method, body if method not in ("GET", "HEAD") else None, dict(headers))


def header(text: str) -> tuple[str, str]:
    """Return name and value of ``Name: value``."""
    name, colon, value = text.partition(":")
    if (
        not colon
        or not _HEADER.fullmatch(name.strip())
        or any(ord(char) < 32 for char in value.strip())
    ):
        raise ConfigurationError(
            BAD_OPTION_VALUE(f"--header {text!r} must have the form 'Name: value'")
        )
    return name.strip(), value.strip()
