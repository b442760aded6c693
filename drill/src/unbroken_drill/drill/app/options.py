"""From options, wherever they were given, to a :class:`~unbroken_drill.drill.app.plan.Plan`;
everything wrong is said here.
"""

from __future__ import annotations

import math
import re
import secrets
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.app import scenarios
from unbroken_drill.drill.app.plan import (
    BACKENDS,
    Plan,
    Variant,
    command,
    database_variable,
    header,
    target,
    variant,
)
from unbroken_drill.drill.app.scenarios import Scenario
from unbroken_drill.drill.app.steps import nearest
from unbroken_drill.servers import available

#: What a database URL's scheme says of the server.
_SCHEMES = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mariadb",
    "mongodb": "mongodb",
}


def plan(given: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """The plan, and a line for each scenario that is left out. Raises ConfigurationError for what
    cannot work.

    *given* are options by name, ``None`` or absent where there is none; ``arguments`` is what stood
    after the options.
    """
    variants = _variants(given)
    backend = _backend(given)
    folder = Path(given.get("folder") or ".").resolve()
    if not folder.is_dir():
        raise ConfigurationError(f"folder {folder}: there is no such folder")
    chosen, left_out = _scenarios(given, backend)
    made = Plan(
        variants=tuple(_runnable(each, folder) for each in variants),
        targets=tuple(_targets(given)),
        scenarios=tuple(chosen),
        environment=tuple(
            database_variable(text)
            for text in given.get("env")
            or _missing("--env NAME: what does the app read its URL from?")
        ),
        backend=backend,
        db=given.get("db"),
        driver=given.get("driver"),
        setup=tuple(shlex.split(given.get("setup") or "")),
        setup_sql=_sql(given, backend),
        rate=_positive(given, "rate", 50.0, 10_000.0),
        concurrency=int(_positive(given, "concurrency", 256, 10_000)),
        timeout=_positive(given, "timeout", 10.0, 600.0),
        start_timeout=_positive(given, "start_timeout", 30.0, 3600.0),
        folder=folder,
        seed=secrets.randbelow(1_000_000) if given.get("seed") is None else given["seed"],
        jobs=_jobs(given),
        max_errors=given.get("max_errors") or 0,
        judge=_judged(given, variants),
    )
    _check_ports(made)
    return made, left_out


def _missing(what: str) -> Any:
    raise ConfigurationError(f"an app's drill needs {what}")


def _variants(given: Mapping[str, Any]) -> list[Variant]:
    arguments: Sequence[str] = given.get("arguments") or ()
    if given.get("compare") is True:
        found = [variant(text, at) for at, text in enumerate(arguments)]
        if len(found) < 2:
            raise ConfigurationError(
                '--compare needs two commands or more, each quoted: --compare "gunicorn a:app"'
                ' "gunicorn b:app"'
            )
    elif arguments:
        found = [command(arguments, "app")]
    elif given.get("compare"):
        found = [command(text, name[:20]) for name, text in given["compare"].items()]
    elif given.get("command"):
        found = [command(given["command"], "app")]
    else:
        _missing("the app's command: … -- gunicorn app:app")
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"two apps are called {name!r}: name each, as in --compare 'plain: gunicorn a:app'"
                " 'pooled: gunicorn b:app'"
            )
    return found


def _runnable(each: Variant, folder: Path) -> Variant:
    program = each.argv[0]
    there = shutil.which(program) if "/" not in program else shutil.which(str(folder / program))
    if there is None:
        raise ConfigurationError(
            f"{program}: no such program; the app's command is {shlex.join(each.argv)}"
        )
    return each


def _targets(given: Mapping[str, Any]) -> list[Any]:
    body = given.get("body")
    method = given.get("method") or ("POST" if body is not None else "GET")
    headers = dict(header(text) for text in given.get("header") or ())
    urls = given.get("url") or _missing(
        "--url: where does the app answer, as in http://127.0.0.1:8000/items?"
    )
    return [target(url, method.upper(), body, headers) for url in urls]


def _backend(given: Mapping[str, Any]) -> str:
    db: str | None = given.get("db")
    name: str | None = given.get("servers")
    if db is not None:
        scheme = urlsplit(db).scheme.partition("+")[0]
        if scheme not in _SCHEMES or not urlsplit(db).hostname:
            raise ConfigurationError(
                "--db: not a database URL with a host, such as"
                " mysql://user:password@db.example/shop"
            )
        if not given.get("harm"):
            raise ConfigurationError(
                "--db: the app will write to that server, and its connections will be cut; if that"
                " is all right, add --harm"
            )
        return _SCHEMES[scheme]
    if given.get("harm"):
        raise ConfigurationError(
            "--harm says that a server given by --db may be harmed; there is none"
        )
    if name is None:
        return _guessed(given)
    if name not in BACKENDS:
        raise ConfigurationError(
            f"there is no server {name!r} for an app{nearest(name, BACKENDS)}; one of"
            f" {', '.join(BACKENDS)}"
        )
    reason = available(name)
    if reason is not None:
        raise ConfigurationError(reason)
    return name


def _guessed(given: Mapping[str, Any]) -> str:
    """From a template with a URL in it; else PostgreSQL, as everywhere in the drill."""
    for text in given.get("env") or ():
        scheme = text.partition("=")[2].partition("://")[0].partition("+")[0]
        if scheme in _SCHEMES:
            return (
                "mariadb"
                if scheme == "mysql" and available("mariadb") is None
                else _SCHEMES[scheme]
            )
    return "postgresql"


def _scenarios(given: Mapping[str, Any], backend: str) -> tuple[list[Scenario], list[str]]:
    names = given.get("scenarios")
    chosen = scenarios.choose(names, given.get("own") or ())
    obstacles = {
        each.name: each.obstacle(backend, private=given.get("db") is None) for each in chosen
    }
    left_out = [f"{name} is left out: {reason}" for name, reason in obstacles.items() if reason]
    if left_out and names is not None:
        raise ConfigurationError("; ".join(left_out))
    playable = [each for each in chosen if not obstacles[each.name]]
    return playable or _missing("a scenario that can be played here"), left_out


def _sql(given: Mapping[str, Any], backend: str) -> str | None:
    text: str | None = given.get("setup_sql")
    if text is None:
        return None
    if given.get("db") is not None or backend == "mongodb":
        raise ConfigurationError(
            "--setup-sql is for a private SQL server: use --setup COMMAND here"
        )
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--setup-sql {text}: {error}") from None
    return text


def _positive(given: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    if not (math.isfinite(value) and 0 < value <= most):
        raise ConfigurationError(
            f"{name} is {value:g}: more than 0 is wanted, and no more than {most:g}"
        )
    return float(value)


def _jobs(given: Mapping[str, Any]) -> int:
    jobs = given.get("jobs") or 1
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}: 1 or more")
    if jobs > 1 and not any("{port}" in url for url in given.get("url") or ()):
        raise ConfigurationError(
            "--jobs above 1 runs apps side by side: write {port} for the port, in --url and in the"
            " command"
        )
    return int(jobs)


def _judged(given: Mapping[str, Any], variants: Sequence[Variant]) -> tuple[str, ...]:
    names = [each.name for each in variants]
    for name in given.get("judge") or ():
        if name not in names:
            raise ConfigurationError(
                f"--judge {name}: there is no app of that name{nearest(name, names)}; there are"
                f" {', '.join(names)}"
            )
    return tuple(given.get("judge") or ())


def _check_ports(made: Plan) -> None:
    """Nobody else may answer where the app will: its answers would be taken for the app's."""
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
            f"something listens on {parts.hostname}:{port} already: end it, or the drill would"
            " measure it and not your app"
        )


def without_password(text: str) -> str:
    """*text*, a word of a command line, with the password of any URL in it left out."""
    return re.sub(r"(://[^/:@\s]*:)[^@\s]*@", r"\1***@", text)
