"""Turns options from any source into an :class:`Order`. All errors in them are reported here."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unbroken.errors import ConfigurationError
from unbroken_drill.drill import contenders, given_alone, scenarios, topologies
from unbroken_drill.drill.apps.plan import (
    BACKENDS,
    AppPlan,
    Variant,
    command,
    database_variable,
    header,
    target,
    variant,
)
from unbroken_drill.drill.contest import Contender
from unbroken_drill.drill.given_alone import SCHEMES
from unbroken_drill.drill.project import names_of
from unbroken_drill.drill.report import SERVERS
from unbroken_drill.drill.run import Drill
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.steps import nearest
from unbroken_drill.drill.topologies import Topology
from unbroken_drill.drill.values import check_ports, jobs, judged, positive
from unbroken_drill.drill.verdict import Judge
from unbroken_drill.drill.worker.actor import Small
from unbroken_drill.messages import (
    BAD_OPTION_VALUE,
    DRILL_NEEDS,
    HARM,
    OPTION_MISSING,
    OPTIONS_EXCLUDE,
    UNKNOWN_NAME,
)
from unbroken_drill.servers import available

#: Kinds of servers for which the small apps have drivers.
_SMALL_ON: Final = ("postgresql", "mariadb")

#: Options that choose among the small apps.
_OF_SMALL: Final = ("all", "contenders", "gevent")

#: Options for starting and querying the user's app.
_OF_APPS: Final = (
    "url", "env", "compare", "db", "harm", "driver", "setup", "setup_sql", "rate", "concurrency",
    "timeout", "start_timeout", "method", "header", "body", "html", "max_errors", "judge", "folder",
    "arguments", "command",
)  # fmt: skip


@dataclass(slots=True)
class Order:
    """A whole drill, checked. *left_out* are lines for people: the omitted parts, and why."""

    drill: Drill
    judge: Judge
    app: AppPlan | None = None  #: of the user's app
    packages: tuple[str, ...] = ()  #: packages whose versions matter
    left_out: list[str] = field(default_factory=list)


def chooses_small(given: Mapping[str, Any]) -> bool:
    """Return whether *given*, a command line, chooses among the small apps.

    Raises ConfigurationError if it also has options of the user's app.
    """
    small = [name for name in _OF_SMALL if given.get(name)]
    own = [name for name in _OF_APPS if given.get(name)]
    if small and own:
        raise ConfigurationError(
            OPTIONS_EXCLUDE(
                f"--{small[0]} is for the drill's own small apps, but {_spelled(own[0])} is for"
                " your own app; remove one of the two"
            )
        )
    return bool(small)


def _spelled(name: str) -> str:
    return "a command" if name == "arguments" else f"--{name.replace('_', '-')}"


def order(given: Mapping[str, Any]) -> Order:
    """Return the drill for *given*: options by name, without absent ones. ``arguments`` are the
    words after them.

    Raises ConfigurationError for options that cannot work.
    """
    return of_apps(given) if any(given.get(name) for name in _OF_APPS) else of_small(given)


def _drill(
    given: Mapping[str, Any], who: Sequence[Contender], acts: Sequence[Scenario], lanes: int
) -> Drill:
    seed = secrets.randbelow(1_000_000) if given.get("seed") is None else given["seed"]
    return Drill(who, acts, seed, given.get("repeat") or 1, lanes, _topology(given))


def _topology(given: Mapping[str, Any]) -> Topology | None:
    name: str | None = given.get("topology")
    if name is None:
        return None
    for other in ("servers", "db"):
        if given.get(other):
            raise ConfigurationError(
                OPTIONS_EXCLUDE(f"--topology starts its own servers; remove --{other}")
            )
    return topologies.find(name)


# ----------------------------------------------------------------------------------------------
# the small apps


def of_small(given: Mapping[str, Any]) -> Order:
    """Return the drill of the small apps."""
    left_out: list[str] = []
    backends = _servers(given, left_out)
    entrants = _entrants(given, backends, left_out)
    backend = "postgresql" if _topology(given) is None else backends[0]
    usual = scenarios.SMALL if _topology(given) is None else scenarios.CLUSTERS
    known = scenarios.choose(given.get("scenarios"), usual=usual)
    acts, strange = _playable(given, known, backend)
    left_out += strange
    if given.get("scenarios") is None and not given.get("all"):
        acts = [act for act in acts if not act.needs_proxy]
    green = bool(given.get("gevent"))
    who = [Small(entrant, green) for entrant in entrants]
    packages = {name for entrant in entrants for name in entrant.needs} | (
        {"gevent"} if green else set()
    )
    drill = _drill(given, who, acts, given.get("jobs") or min(2, os.cpu_count() or 1))
    return Order(drill, Judge(acts), packages=tuple(sorted(packages)), left_out=left_out)


def _servers(given: Mapping[str, Any], left_out: list[str]) -> list[str]:
    topology = _topology(given)
    if topology is not None:
        if topology.backend not in _SMALL_ON:
            raise ConfigurationError(
                OPTIONS_EXCLUDE(
                    f"--topology {topology.name} is for your own app: no small app supports"
                    f" {SERVERS[topology.backend]}"
                )
            )
        return [topology.backend]
    text = given.get("servers")
    names = (
        list(dict.fromkeys(names_of(text)))
        if text is not None
        else list(_SMALL_ON)
        if given.get("all")
        else ["postgresql"]
    )
    for name in names:
        if name not in _SMALL_ON:
            raise ConfigurationError(
                UNKNOWN_NAME(
                    f"unknown server {name!r}{nearest(name, _SMALL_ON)}; known:"
                    f" {', '.join(_SMALL_ON)}"
                )
            )
    found = []
    for name in names:
        reason = available(name)
        if reason is None:
            found.append(name)
        elif text or not given.get("all"):
            raise ConfigurationError(DRILL_NEEDS(reason))
        else:
            left_out.append(f"{SERVERS[name]} is skipped: {reason}")
    if not found:
        raise ConfigurationError(
            OPTION_MISSING("no server was selected; name one with --servers, such as postgresql")
        )
    return found


def _entrants(
    given: Mapping[str, Any], backends: Sequence[str], left_out: list[str]
) -> list[contenders.Entrant]:
    text, green = given.get("contenders"), bool(given.get("gevent"))
    if green and importlib.util.find_spec("gevent") is None:
        raise ConfigurationError(DRILL_NEEDS("--gevent needs gevent; pip install gevent"))
    usual = contenders.USUAL if _topology(given) is None else contenders.ON_TOPOLOGIES
    everyone = [e.key for e in contenders.ENTRANTS] if given.get("all") else list(usual)
    names = names_of(text) if text is not None else everyone
    there = []
    for entrant in contenders.choose(names, backends):
        if entrant.missing:
            todo = " ".join(entrant.missing)
            left_out.append(
                f"{entrant.title} is skipped on {SERVERS[entrant.backend]}: pip install {todo}"
            )
        elif green and not entrant.is_green:
            left_out.append(f"{entrant.title} is skipped: it does not support gevent")
        else:
            there.append(entrant)
    if not there:
        also = "".join(f"; {line}" for line in left_out)
        raise ConfigurationError(
            DRILL_NEEDS(
                f"no contender is available: none of {', '.join(names)} is installed for"
                f" {', '.join(backends)}{also}"
            )
        )
    return there


# ----------------------------------------------------------------------------------------------
# the user's app


def of_apps(given: Mapping[str, Any]) -> Order:
    """Return the drill of the user's app, or of several variants."""
    try:
        from unbroken_drill.drill.apps.actor import OwnApp
    except ImportError:
        raise ConfigurationError(
            DRILL_NEEDS('the drill of an app needs another package: pip install "unbroken[drill]"')
        ) from None
    variants = _variants(given)
    backend = _backend(given)
    folder = Path(given.get("folder") or ".").resolve()
    if not folder.is_dir():
        raise ConfigurationError(BAD_OPTION_VALUE(f"--folder {folder}: no such folder"))
    chosen, left_out = _scenarios(given, backend)
    made = AppPlan(
        targets=tuple(_targets(given)),
        environment=tuple(
            database_variable(text)
            for text in given.get("env")
            or _missing("--env NAME: the variable from which the app reads its URL")
        ),
        backend=backend,
        db=given.get("db"),
        driver=given_alone.driver(given.get("driver")),
        setup=given_alone.setup(given.get("setup"), folder),
        setup_sql=_sql(given, backend),
        rate=positive(given, "rate", 50.0, 10_000.0),
        concurrency=int(positive(given, "concurrency", 256, 10_000)),
        timeout=positive(given, "timeout", 10.0, 600.0),
        start_timeout=positive(given, "start_timeout", 30.0, 3600.0),
        folder=folder,
    )
    check_ports(made)
    who = [OwnApp(given_alone.runnable(each, folder), made) for each in variants]
    judge = Judge(chosen, given.get("max_errors") or 0, judged(given, variants))
    return Order(_drill(given, who, chosen, jobs(given)), judge, made, left_out=left_out)


def _missing(what: str) -> Any:
    raise ConfigurationError(OPTION_MISSING(f"the drill of an app needs {what}"))


def _variants(given: Mapping[str, Any]) -> list[Variant]:
    arguments: Sequence[str] = given.get("arguments") or ()
    if given.get("compare") is True:
        found = [variant(text, at) for at, text in enumerate(arguments)]
        if len(found) < 2:
            raise ConfigurationError(
                OPTION_MISSING(
                    '--compare needs two commands or more, each quoted: --compare "gunicorn a:app"'
                    ' "gunicorn b:app"'
                )
            )
    elif arguments:
        found = [command(arguments, "app")]
    elif given.get("compare"):
        found = [command(text, name[:20]) for name, text in given["compare"].items()]
    elif given.get("command"):
        found = [command(given["command"], "app")]
    else:
        _missing("the app's command, as in: … -- gunicorn app:app")
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                BAD_OPTION_VALUE(
                    f"two apps have the name {name!r}; name each, as in --compare 'plain: gunicorn"
                    " a:app' 'pooled: gunicorn b:app'"
                )
            )
    return found


def _targets(given: Mapping[str, Any]) -> list[Any]:
    body = given.get("body")
    method = given.get("method") or ("POST" if body is not None else "GET")
    headers = dict(header(text) for text in given.get("header") or ())
    urls = given.get("url") or _missing(
        "--url: the address of the app, such as http://127.0.0.1:8000/items"
    )
    return [target(url, method.upper(), body, headers) for url in urls]


def _backend(given: Mapping[str, Any]) -> str:
    db: str | None = given.get("db")
    name: str | None = given.get("servers")
    if db is not None:
        scheme = given_alone.scheme_of(db)
        if not given.get("harm"):
            raise ConfigurationError(
                HARM(
                    "--db: the app will write to that server, and the drill will cut its"
                    " connections; add --harm to allow that"
                )
            )
        return SCHEMES[scheme]
    topology = _topology(given)
    if topology is not None:
        return topology.backend
    if given.get("harm"):
        raise ConfigurationError(
            OPTIONS_EXCLUDE("--harm allows harm to the server of --db; remove it, or add --db")
        )
    if name is None:
        return _guessed(given)
    if name not in BACKENDS:
        raise ConfigurationError(
            UNKNOWN_NAME(
                f"unknown server {name!r} for an app{nearest(name, BACKENDS)}; known:"
                f" {', '.join(BACKENDS)}"
            )
        )
    reason = available(name)
    if reason is not None:
        raise ConfigurationError(DRILL_NEEDS(reason))
    return name


def _guessed(given: Mapping[str, Any]) -> str:
    """Return the kind of server of a template with a URL; otherwise PostgreSQL, the default."""
    for text in given.get("env") or ():
        scheme = text.partition("=")[2].partition("://")[0].partition("+")[0]
        if scheme in SCHEMES:
            return (
                "mariadb" if scheme == "mysql" and available("mariadb") is None else SCHEMES[scheme]
            )
    return "postgresql"


def _scenarios(given: Mapping[str, Any], backend: str) -> tuple[list[Scenario], list[str]]:
    usual = scenarios.SCENARIOS if _topology(given) is None else scenarios.CLUSTERS
    chosen = scenarios.choose(given.get("scenarios"), given.get("own") or (), usual)
    return _playable(given, chosen, backend, small=False)


def _playable(
    given: Mapping[str, Any], chosen: Sequence[Scenario], backend: str, *, small: bool = True
) -> tuple[list[Scenario], list[str]]:
    """Return the scenarios of *chosen* that can be played there, and a line for each of the others.
    A scenario that was requested by name is an error instead.
    """
    topology, private = _topology(given), given.get("db") is None
    obstacles = {
        each.name: each.obstacle(backend, private=private, small=small, topology=topology)
        for each in chosen
    }
    left_out = [f"{name} is skipped: {reason}" for name, reason in obstacles.items() if reason]
    if left_out and given.get("scenarios") is not None:
        raise ConfigurationError(DRILL_NEEDS("; ".join(left_out)))
    playable = [each for each in chosen if not obstacles[each.name]]
    return playable or _missing("a scenario that this server supports"), left_out


def _sql(given: Mapping[str, Any], backend: str) -> str | None:
    text: str | None = given.get("setup_sql")
    if text is None:
        return None
    if given.get("db") is not None or backend == "mongodb":
        raise ConfigurationError(
            OPTIONS_EXCLUDE("--setup-sql is for a private SQL server; use --setup COMMAND instead")
        )
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(BAD_OPTION_VALUE(f"--setup-sql {text}: {error}")) from None
    return text


def without_password(text: str) -> str:
    """Return *text*, a word of a command line, without the password of any URL in it."""
    return re.sub(r"(://[^/:@\s]*:)[^@\s]*@", r"\1***@", text)
