"""The small language of scenarios: ``run 2``, ``stop``, ``latency 0.2
jitter=0.05``.

A step is a verb, values in the verb's order, and ``name=value`` for the others. Seconds are plain
numbers. Everything is checked on reading, before anything is started.
"""

from __future__ import annotations

import contextlib
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
    with contextlib.suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value >= 0:
            return value
    raise ValueError("must be a number of at least 0")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        value = int(text)
        if value >= 1:
            return value
    raise ValueError("must be a whole number of at least 1")


def _flag(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


def _scope(text: str) -> str | int:
    return text if text in ("all", "existing", "new") else _count(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {' or '.join(words)}")
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
            "send requests for *seconds*, and up to *jitter* seconds more",
            (*_SECONDS, Value("jitter", _number, 0.0)),
            is_traffic=True,
        ),
        Verb(
            "quiet",
            "traffic",
            "send no requests for *seconds*: every connection is idle",
            _SECONDS,
            begins=True,
            ends=True,
        ),
        Verb(
            "look",
            "drill",
            "count the sockets in CLOSE_WAIT after *seconds*; traffic continues",
            _SECONDS,
        ),
        _own(
            "users",
            "send steady traffic from *threads* threads, each with a request every *every* seconds",
            Value("threads", _count),
            Value("every", _number, 0.25),
        ),
        _own(
            "burst",
            "send *threads* requests at the same time, *each* times",
            Value("threads", _count),
            Value("each", _count, 1),
            is_traffic=True,
        ),
        _own(
            "fork",
            "fork *children* children from a warm process; each asks *asks* times for its session",
            Value("children", _count),
            Value("asks", _count, 200),
            is_traffic=True,
        ),
        _own(
            "forget",
            "*requests* requests drop their connection without releasing it",
            Value("requests", _count),
            is_traffic=True,
        ),
        _own(
            "hold",
            "as `forget`, but a reference keeps the connections alive",
            Value("requests", _count),
            is_traffic=True,
        ),
        Verb("stop", "server", "shut the server down cleanly", begins=True),
        Verb("crash", "server", "kill -9 the server", begins=True),
        Verb("start", "server", "start the server again, and wait until it answers", ends=True),
        Verb(
            "freeze",
            "server",
            "suspend the server: connections stay open, and it does not answer",
            begins=True,
        ),
        Verb("thaw", "server", "resume the server", ends=True),
        Verb("kill", "server", "end all sessions, as an administrator would", strikes=True),
        _site("promote", "kill -9 the primary, and promote another server"),
        _site("switchover", "make another server the primary, cleanly"),
        _site(
            "demote",
            "make the primary read-only for *seconds*, then make another server the primary",
            *_SECONDS,
        ),
        _site("rolling", "restart every server, the primary last"),
        Verb("repair", "site", "start the servers that are down; they follow the primary"),
        Verb("reject", "site", "make the primary answer clients with a refusal", begins=True),
        Verb("accept", "site", "make the primary serve clients again", ends=True),
        _site(
            "restart_pooler",
            "restart the pooler or balancer in front of the servers, *seconds* down",
            *_SECONDS,
        ),
        _site(
            "rotate",
            "change the password and end all sessions; the app gets it *seconds* later",
            *_SECONDS,
        ),
        _strike("rst", "reset connections"),
        _strike("fin", "close connections with FIN"),
        _strike(
            "half_close",
            "close one direction: the client sees the end of the stream, but can still send",
        ),
        _fault(
            "blackhole",
            "pass no data; hold: it arrives later; drop: it never arrives",
            Value("mode", _one_of("hold", "drop"), "hold"),
        ),
        _fault("stall", "hold the server's answers back"),
        _fault(
            "latency", "delay each packet by *seconds*", *_SECONDS, Value("jitter", _number, 0.0)
        ),
        _fault("throttle", "limit the bytes per second", Value("bytes_per_second", _count)),
        _fault("slice", "send data in packets of *bytes* bytes", Value("bytes", _count)),
        _fault("cut_after", "cut each connection after *seconds*", *_SECONDS),
        Verb("refuse", "proxy", "refuse new connections", begins=True),
        Verb("hang_connect", "proxy", "do not answer new connections", begins=True),
        Verb(
            "fail_next",
            "proxy",
            "make the next *connections* connections fail",
            (Value("connections", _count, 1),),
            strikes=True,
        ),
        Verb(
            "idle_limit",
            "proxy",
            "drop connections that were idle for *seconds*, silently or with a reset",
            (*_SECONDS, Value("reset", _flag, False)),
        ),
        Verb(
            "cut_at",
            "proxy",
            "let the next matching statement run, and lose its answer",
            (Value("statement", str),),
            strikes=True,
        ),
        Verb("heal", "proxy", "make the network work again", ends=True),
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
                f"step {text!r}: unknown step {word!r}{nearest(word, VERBS)}; known:"
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
                BAD_SCENARIO(f"step {text!r}: unexpected {part!r}; {verb.name} takes {wanted}")
            )
        try:
            values[value.name] = value.read(given if named else part)
        except ValueError as error:
            raise ConfigurationError(BAD_SCENARIO(f"step {text!r}: {value.name} {error}")) from None
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
                        f"step {step.text!r}: the server is already down, because of {stopped!r}"
                    )
                )
            stopped = name
        elif name in ("start", "thaw"):
            if stopped is None or (name == "thaw") != (stopped == "freeze"):
                raise ConfigurationError(
                    BAD_SCENARIO(f"step {step.text!r}: no earlier step that it could end")
                )
            stopped = None
        elif name in ("reject", "accept"):
            if (name == "reject") == refusing:
                raise ConfigurationError(
                    BAD_SCENARIO(f"step {step.text!r}: the primary is already in that state")
                )
            refusing = name == "reject"
    if refusing:
        raise ConfigurationError(
            BAD_SCENARIO("no 'accept' follows 'reject': the server would never serve again")
        )
    if stopped is not None:
        raise ConfigurationError(
            BAD_SCENARIO(
                f"no {'thaw' if stopped == 'freeze' else 'start'!r} follows {stopped!r}: the server"
                " would stay down"
            )
        )
    if not any(step.verb.is_traffic for step in steps):
        raise ConfigurationError(
            BAD_SCENARIO(
                "the scenario has no traffic, so nothing would be measured: add 'run SECONDS'"
            )
        )
    if not (steps[-1].verb.is_traffic or steps[-1].verb.name == "look"):
        raise ConfigurationError(
            BAD_SCENARIO(
                f"the last step is {steps[-1].text!r}, so recovery would not be measured: end with"
                " 'run SECONDS'"
            )
        )
    return steps


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'latency'?)``, or an empty text."""
    found = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""
