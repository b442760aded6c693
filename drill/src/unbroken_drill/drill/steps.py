"""The small language of scenarios: ``run 2``, ``stop``, ``latency 0.2
jitter=0.05``.

A step is a verb, values in the verb's order, and ``name=value`` for the others. Seconds are plain
numbers. Everything is checked on reading, before anything is started.
"""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from unbroken.errors import ConfigurationError
from unbroken_drill.messages import BAD_SCENARIO


@dataclass(frozen=True, slots=True)
class Value:
    """A value that a verb takes: by position in the given order, or by name. *default* None: it is
    required.
    """

    name: str
    read: Callable[[str], Any]
    default: Any = None


@dataclass(frozen=True, slots=True)
class Verb:
    """A kind of step. *actor* does it: ``traffic``, ``contender``, ``server``, ``site``,
    ``proxy`` or ``drill``.
    """

    name: str
    actor: str
    help: str
    values: tuple[Value, ...] = ()
    begins: bool = False  #: a fault lasts from here …
    ends: bool = False  #: … to here
    strikes: bool = False  #: a fault of one moment
    is_traffic: bool = False  #: requests are sent meanwhile


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a scenario, read and checked."""

    verb: Verb
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError("a number from 0 on is wanted")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("a whole number from 1 on is wanted")
    return value


def _flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("yes or no is wanted")
    return text == "yes"


def _scope(text: str) -> str | int:
    return text if text in ("all", "existing", "new") else _count(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"{' or '.join(words)} is wanted")
        return text

    return read


_ON: Final = Value("on", _scope, "all")
_EXISTING: Final = Value("on", _scope, "existing")
_SECONDS: Final = (Value("seconds", _number),)


def _fault(name: str, help_: str, *values: Value) -> Verb:
    return Verb(name, "proxy", help_, (*values, _ON), begins=True)


def _strike(name: str, help_: str, *values: Value) -> Verb:
    return Verb(name, "proxy", help_, (*values, _EXISTING), strikes=True)


def _own(name: str, help_: str, *values: Value, is_traffic: bool = False) -> Verb:
    """Return a verb that only the drill's own small apps support: it happens inside them."""
    return Verb(name, "contender", help_, values, is_traffic=is_traffic)


def _site(name: str, help_: str, *values: Value) -> Verb:
    """Return a verb for a topology's servers; its effect is over when the step ends."""
    return Verb(name, "site", help_, values, begins=True, ends=True)


#: Every verb, in the order of the help.
VERBS: Final[Mapping[str, Verb]] = {
    verb.name: verb
    for verb in (
        Verb(
            "run",
            "traffic",
            "traffic for so long, and up to *jitter* seconds longer",
            (*_SECONDS, Value("jitter", _number, 0.0)),
            is_traffic=True,
        ),
        Verb(
            "quiet",
            "traffic",
            "no traffic for so long: every connection is idle",
            _SECONDS,
            begins=True,
            ends=True,
        ),
        Verb(
            "look",
            "drill",
            "after so long, count the sockets in CLOSE_WAIT; traffic goes on",
            _SECONDS,
        ),
        _own(
            "users",
            "steady traffic comes from so many threads, a request each *every* seconds",
            Value("threads", _count),
            Value("every", _number, 0.25),
        ),
        _own(
            "burst",
            "so many requests at once, *each* times",
            Value("threads", _count),
            Value("each", _count, 1),
            is_traffic=True,
        ),
        _own(
            "fork",
            "a warm process forks so many children, and each asks *asks* times who it talks to",
            Value("children", _count),
            Value("asks", _count, 200),
            is_traffic=True,
        ),
        _own(
            "forget",
            "so many requests drop their connection without giving it back",
            Value("requests", _count),
            is_traffic=True,
        ),
        _own(
            "hold",
            "the same, but something keeps the connections alive",
            Value("requests", _count),
            is_traffic=True,
        ),
        Verb("stop", "server", "stop the server in order", begins=True),
        Verb("crash", "server", "kill -9 the server", begins=True),
        Verb("start", "server", "start it again, and wait until it answers", ends=True),
        Verb(
            "freeze",
            "server",
            "the server stands still: connections stay open, nothing answers",
            begins=True,
        ),
        Verb("thaw", "server", "it goes on", ends=True),
        Verb("kill", "server", "end all sessions, as an administrator would", strikes=True),
        _site("promote", "kill -9 the server that takes writes, and promote another"),
        _site("switchover", "another server takes writes, in order"),
        _site(
            "demote",
            "the server that takes writes is read-only for so long, then another takes writes",
            *_SECONDS,
        ),
        _site("rolling", "restart every server in order, the one that takes writes last"),
        Verb("repair", "site", "servers that are away come back, and follow"),
        Verb("reject", "site", "the server that takes writes answers, and refuses", begins=True),
        Verb("accept", "site", "it takes writes again", ends=True),
        _site(
            "restart_pooler",
            "the pooler or balancer before the servers restarts, away for so long",
            *_SECONDS,
        ),
        _site(
            "rotate",
            "the server wants another password, ends all sessions; so much later the app knows it",
            *_SECONDS,
        ),
        _strike("rst", "reset connections"),
        _strike("fin", "close connections in order"),
        _strike("half_close", "close one direction: the client is told, and may still send"),
        _fault(
            "blackhole",
            "nothing gets through; hold: it arrives after heal, drop: never",
            Value("mode", _one_of("hold", "drop"), "hold"),
        ),
        _fault("stall", "the server's answers stay out"),
        _fault(
            "latency", "each packet takes so much longer", *_SECONDS, Value("jitter", _number, 0.0)
        ),
        _fault("throttle", "so many bytes a second", Value("bytes_per_second", _count)),
        _fault("slice", "packets of so many bytes", Value("bytes", _count)),
        _fault("cut_after", "cut each connection after so many seconds", *_SECONDS),
        Verb("refuse", "proxy", "refuse new connections", begins=True),
        Verb("hang_connect", "proxy", "new connections get no answer at all", begins=True),
        Verb(
            "fail_next",
            "proxy",
            "the next so many connections fail",
            (Value("connections", _count, 1),),
            strikes=True,
        ),
        Verb(
            "idle_limit",
            "proxy",
            "a balancer forgets connections idle for so long: silently, or with a reset",
            (*_SECONDS, Value("reset", _flag, False)),
        ),
        Verb(
            "cut_at",
            "proxy",
            "the next such statement is executed, and its answer is lost",
            (Value("statement", str),),
            strikes=True,
        ),
        Verb("heal", "proxy", "the network is well again", ends=True),
    )
}


def read(text: str) -> Step:
    """Return a step from its text. Raises ConfigurationError in one line for an invalid one."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigurationError(BAD_SCENARIO(f"step {text!r}: {error}")) from None
    if not words:
        raise ConfigurationError(BAD_SCENARIO(f"step {text!r}: it is empty"))
    word, *rest = words
    verb = VERBS.get(word)
    if verb is None:
        raise ConfigurationError(
            BAD_SCENARIO(
                f"step {text!r}: there is no {word!r}{nearest(word, VERBS)}; known are"
                f" {', '.join(VERBS)}"
            )
        )
    values: dict[str, Any] = {}
    places = iter(verb.values)
    for part in rest:
        name, equals, given = part.partition("=")
        named = next((value for value in verb.values if equals and value.name == name), None)
        value = named or next(places, None)
        if value is None or value.name in values:
            wanted = (
                " ".join(f"[{v.name}]" if v.default is not None else v.name for v in verb.values)
                or "nothing"
            )
            raise ConfigurationError(
                BAD_SCENARIO(f"step {text!r}: {part!r} is too much; {verb.name} takes {wanted}")
            )
        try:
            values[value.name] = value.read(given if named else part)
        except ValueError as error:
            raise ConfigurationError(
                BAD_SCENARIO(f"step {text!r}: {value.name}: {error}")
            ) from None
    for value in verb.values:
        if value.name not in values:
            if value.default is None:
                raise ConfigurationError(BAD_SCENARIO(f"step {text!r}: {value.name} is missing"))
            values[value.name] = value.default
    return Step(verb, text, values)


def read_all(texts: Sequence[str]) -> tuple[Step, ...]:
    """Return the steps of a scenario. Refuses a scenario that ends with a fault or has no point."""
    steps = tuple(read(text) for text in texts)
    stopped: str | None = None
    refusing = False
    for step in steps:
        name = step.verb.name
        if name in ("stop", "crash", "freeze"):
            if stopped is not None:
                raise ConfigurationError(
                    BAD_SCENARIO(
                        f"step {step.text!r}: the server is away already, since {stopped!r}"
                    )
                )
            stopped = name
        elif name in ("start", "thaw"):
            if stopped is None or (name == "thaw") != (stopped == "freeze"):
                raise ConfigurationError(
                    BAD_SCENARIO(f"step {step.text!r}: nothing before it that it would end")
                )
            stopped = None
        elif name in ("reject", "accept"):
            if (name == "reject") == refusing:
                raise ConfigurationError(
                    BAD_SCENARIO(f"step {step.text!r}: nothing before it that it changes")
                )
            refusing = name == "reject"
    if refusing:
        raise ConfigurationError(
            BAD_SCENARIO("after 'reject' there is no 'accept': the server would refuse on")
        )
    if stopped is not None:
        raise ConfigurationError(
            BAD_SCENARIO(
                f"after {stopped!r} there is no {'thaw' if stopped == 'freeze' else 'start'!r}: the"
                " server would stay away"
            )
        )
    if not any(step.verb.is_traffic for step in steps):
        raise ConfigurationError(
            BAD_SCENARIO(
                "a scenario without 'run SECONDS' has no traffic: nothing would be measured"
            )
        )
    if not (steps[-1].verb.is_traffic or steps[-1].verb.name == "look"):
        raise ConfigurationError(
            BAD_SCENARIO(
                f"the last step is {steps[-1].text!r}: end with 'run SECONDS', or recovery cannot"
                " be seen"
            )
        )
    return steps


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``: did you mean 'latency'?``, or an empty text."""
    found = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""
