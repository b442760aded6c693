"""The scenarios that every app can be put through, written as a project writes its own in
drill.toml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.app.steps import Step, nearest, read_all

#: The option by which each server is told how long sessions may be idle, as :meth:`Server.set`
#: takes it.
IDLE_OPTION: Final[Mapping[str, str]] = {
    "mariadb": "wait_timeout",
    "mysql": "wait_timeout",
    "postgresql": "idle_session_timeout",
}

#: What a server cannot do by itself: MongoDB has no command that ends a client's session.
_CANNOT: Final[Mapping[str, frozenset[str]]] = {"mongodb": frozenset({"kill"})}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One story: *steps*, and what is set before the app starts. *server_idle_limit*: in seconds,
    the server's own.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    server_idle_limit: int | None = None

    def options(self, backend: str) -> dict[str, int | str]:
        """What a server of this kind is set to meanwhile."""
        if self.server_idle_limit is None:
            return {}
        seconds = self.server_idle_limit
        return {IDLE_OPTION[backend]: f"{seconds}s" if backend == "postgresql" else seconds}

    def obstacle(self, backend: str, *, private: bool) -> str | None:
        """Why it cannot be played on a server of this kind; None when it can."""
        verbs = [step.verb for step in self.steps]
        if not private and (
            self.server_idle_limit is not None or any(verb.actor == "server" for verb in verbs)
        ):
            return "it needs a private server, not --db"
        if self.server_idle_limit is not None and backend not in IDLE_OPTION:
            return f"{backend} has no idle limit"
        impossible = [verb.name for verb in verbs if verb.name in _CANNOT.get(backend, ())]
        return f"{backend} cannot {impossible[0]} sessions" if impossible else None


def scenario(
    name: str, title: str, steps: Sequence[str], server_idle_limit: int | None = None
) -> Scenario:
    """A scenario from texts.

    Raises ConfigurationError, with the scenario's name, for what cannot be meant.
    """
    try:
        return Scenario(name, title, read_all(steps), server_idle_limit)
    except ConfigurationError as error:
        raise ConfigurationError(f"scenario {name!r}: {error}") from None


SCENARIOS: Final[tuple[Scenario, ...]] = (
    scenario(
        "idle",
        "the server ends sessions idle for 2 s; then traffic again",
        ["run 2", "quiet 3.5", "run 3"],
        2,
    ),
    scenario(
        "kill",
        "an administrator kills all sessions, three times",
        ["run 2", "kill", "run 1", "kill", "run 1", "kill", "run 3"],
    ),
    scenario(
        "restart", "the server restarts, 2 s down", ["run 2", "stop", "run 2", "start", "run 4"]
    ),
    scenario("crash", "kill -9 the server, start it again", ["run 2", "crash", "start", "run 4"]),
    scenario(
        "freeze",
        "the server does not answer for 3 s, then it goes on",
        ["run 2", "freeze", "run 3", "thaw", "run 3"],
    ),
    scenario(
        "reset",
        "the network resets all connections, three times",
        ["run 2", "rst", "run 1", "rst", "run 1", "rst", "run 3"],
    ),
    scenario(
        "nat",
        "a NAT or balancer resets connections idle for 1 s",
        ["idle_limit 1 reset=yes", "run 2", "quiet 2.5", "run 3"],
    ),
    scenario(
        "mute",
        "nothing gets through for 3 s, then all that was sent",
        ["run 2", "blackhole hold", "run 3", "heal", "run 3"],
    ),
    scenario(
        "refuse",
        "connections reset, new ones refused for 2 s",
        ["run 2", "refuse", "rst", "run 2", "heal", "run 4"],
    ),
    scenario(
        "slow",
        "each packet takes 0.1 s longer for 3 s",
        ["run 2", "latency 0.1 jitter=0.02", "run 3", "heal", "run 3"],
    ),
)


def choose(names: Sequence[str] | None, own: Sequence[Scenario] = ()) -> list[Scenario]:
    """The scenarios of these names, in the usual order and then the project's *own*; None: all.

    ConfigurationError otherwise.
    """
    mine = {each.name for each in own}
    known = [each for each in SCENARIOS if each.name not in mine] + list(own)
    if names is None:
        return known
    for name in names:
        if name not in {each.name for each in known}:
            raise ConfigurationError(
                f"there is no scenario {name!r}{nearest(name, [each.name for each in known])};"
                f" known are {', '.join(s.name for s in known)}"
            )
    return [each for each in known if each.name in names]
