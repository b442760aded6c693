"""The scenarios, written in the same way as a project's own ones in drill.toml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.contenders.base import Settings
from unbroken_drill.drill.steps import Step, nearest, read_all
from unbroken_drill.drill.topologies import TOPOLOGIES, Topology
from unbroken_drill.messages import BAD_SCENARIO, UNKNOWN_NAME

#: Each server's option for its idle limit of sessions, as :meth:`Server.set`
#: takes it.
IDLE_OPTION: Final[Mapping[str, str]] = {
    "mariadb": "wait_timeout", "mysql": "wait_timeout", "postgresql": "idle_session_timeout",
}  # fmt: skip

#: Steps that a server does not support: MongoDB has no command that ends a client's session.
_CANNOT: Final[Mapping[str, frozenset[str]]] = {"mongodb": frozenset({"kill"})}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario: its *steps*, and the settings before the contender starts.

    *server_idle_limit* is the server's own limit, in seconds. *pool* is the setting of the small
    apps' pools.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    server_idle_limit: int | None = None
    pool: Settings = field(default_factory=Settings)

    @property
    def is_outage(self) -> bool:
        """Whether the server is down for a time, so that the recovery is bounded."""
        return any(step.verb.name in ("stop", "crash") for step in self.steps)

    @property
    def length(self) -> float:
        """How many seconds its steps wait."""
        total: float = sum(
            step.values.get("seconds", 0.0) + step.values.get("jitter", 0.0) / 2
            for step in self.steps
            if step.verb.actor != "proxy"
        )
        return total

    @property
    def processes(self) -> int:
        """How many processes can have a pool of their own."""
        return 1 + sum(
            int(step.values["children"]) for step in self.steps if step.verb.name == "fork"
        )

    @property
    def needs_proxy(self) -> bool:
        """Whether a step changes the network."""
        return any(step.verb.actor == "proxy" for step in self.steps)

    def options(self, backend: str) -> dict[str, int | str]:
        """Return the settings of a server of this kind during the scenario."""
        if self.server_idle_limit is None:
            return {}
        seconds = self.server_idle_limit
        return {IDLE_OPTION[backend]: f"{seconds}s" if backend == "postgresql" else seconds}

    def obstacle(
        self,
        backend: str,
        *,
        private: bool = True,
        small: bool = False,
        topology: Topology | None = None,
    ) -> str | None:
        """Return why it cannot be played on a server of this kind, or on a site of *topology*; None
        if it can. *small*: by a small app of the drill's own.
        """
        verbs = [step.verb for step in self.steps]
        if topology is not None:
            idle = self.server_idle_limit is not None
            strange = [v.name for v in verbs if v.actor in ("server", "site")]
            strange = [name for name in strange if name not in topology.verbs]
            if strange or idle:
                return (
                    f"{topology.name} does not support {strange[0] if strange else 'an idle limit'}"
                )
        elif any(verb.actor == "site" for verb in verbs):
            return f"it needs several servers: --topology {', '.join(_with(self.steps))}"
        if not small and any(verb.name == "rotate" for verb in verbs):
            return "only the drill's own small apps read the password at each connect"
        own = next((verb.name for verb in verbs if verb.actor == "contender"), None)
        if own is not None and not small:
            return f"only the drill's own small apps support {own}"
        if not private and (
            self.server_idle_limit is not None or any(verb.actor == "server" for verb in verbs)
        ):
            return "it needs a private server, not --db"
        if self.server_idle_limit is not None and backend not in IDLE_OPTION:
            return f"{backend} has no idle limit"
        impossible = [verb.name for verb in verbs if verb.name in _CANNOT.get(backend, ())]
        return f"{backend} cannot {impossible[0]} sessions" if impossible else None


def scenario(
    name: str,
    title: str,
    steps: Sequence[str],
    server_idle_limit: int | None = None,
    pool: Settings | None = None,
) -> Scenario:
    """Return a scenario from texts. Raises ConfigurationError, with the scenario's name, for an
    invalid one.
    """
    try:
        return Scenario(name, title, read_all(steps), server_idle_limit, pool or Settings())
    except ConfigurationError as error:
        raise ConfigurationError(BAD_SCENARIO(f"scenario {name!r}: {error}")) from None


def _with(steps: Sequence[Step]) -> list[str]:
    """Return the topologies that can play *steps*."""
    wanted = {step.verb.name for step in steps if step.verb.actor == "site"}
    return [each.name for each in TOPOLOGIES.values() if wanted <= each.verbs]


_RST: Final = ["rst", "run 1"] * 2 + ["rst", "run 3"]

#: For the user's app, which may be slow to start and to answer.
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
        "the server does not answer for 3 s, then continues",
        ["run 2", "freeze", "run 3", "thaw", "run 3"],
    ),
    scenario("reset", "the network resets all connections, three times", ["run 2", *_RST]),
    scenario(
        "nat",
        "a NAT or balancer resets connections idle for 1 s",
        ["idle_limit 1 reset=yes", "run 2", "quiet 2.5", "run 3"],
    ),
    scenario(
        "mute",
        "no data passes for 3 s, then all of it",
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

#: No request meets two of the five kills. A unit of work that loses two connections which had just
#: worked, at the same statement, is not run a third time.
_KILLS: Final = ["run 0.5 jitter=0.3", "kill"] * 5
_RESTART: Final = ["run 0.4", "stop", "look 1", "run 0.5", "start", "run 1"]
_CARELESS: Final = ["burst 12", "look 1"]

#: For the drill's own small apps, which start immediately: shorter, and with faults that only they
#: can have.
SMALL: Final[tuple[Scenario, ...]] = (
    scenario(
        "idle",
        "the server ends sessions idle for 2 s, then a burst",
        ["run 0.4", "quiet 3", "look 0", "burst 10 each=4"],
        2,
    ),
    scenario(
        "kill",
        "an administrator kills all sessions, 5 times",
        ["run 0.4", *_KILLS, "look 1"],
    ),
    scenario("restart", "the server restarts, 1.5 s down", _RESTART),
    scenario(
        "crash",
        "kill -9 the server, start it again",
        ["run 0.4", "crash", "start", "look 1"],
    ),
    scenario(
        "freeze",
        "no answer for 4 s, then it continues (unbroken: deadline=2)",
        ["run 0.4", "freeze", "run 4", "thaw", "look 1"],
        pool=Settings(deadline=2.0),
    ),
    scenario(
        "fork",
        "a warm parent, 3 children, each asks 200 times",
        ["run 0.4", "fork 3 asks=200", "look 1"],
    ),
    scenario(
        "forget",
        "8 requests never return their connection, pool of 5, then 12 ordinary ones",
        ["forget 8", *_CARELESS],
        pool=Settings(size=5),
    ),
    scenario(
        "hold",
        "the same, connections kept alive (unbroken: leak_after=1, reclaim)",
        ["hold 8", *_CARELESS],
        pool=Settings(size=5, leak_after=1.0, reclaim=True),
    ),
    scenario("storm", "100 threads, pool of 10, restart", ["users 100 every=0.25", *_RESTART]),
    *(each for each in SCENARIOS if each.needs_proxy),
)


#: For several servers with the balancer or pooler before them.
CLUSTERS: Final[tuple[Scenario, ...]] = (
    scenario(
        "promote",
        "kill -9 the server that takes writes; another is promoted; the old one comes back",
        ["run 1", "promote", "run 3", "repair", "run 2", "look 1"],
    ),
    scenario(
        "switchover",
        "an orderly switch to another server that takes writes; and back",
        ["run 1", "switchover", "run 2", "switchover", "run 2", "look 1"],
    ),
    scenario(
        "demote",
        "the server that takes writes is read-only for 1 s, then another takes writes",
        ["run 1", "demote 1", "run 3", "look 1"],
    ),
    scenario(
        "rolling",
        "every server restarts cleanly, the one that takes writes last",
        ["run 1", "rolling", "run 2", "look 1"],
    ),
    scenario(
        "reject",
        "the server that takes writes rejects clients for 2 s",
        ["run 1", "reject", "run 2", "accept", "run 2", "look 1"],
    ),
    scenario(
        "pooler-restart",
        "the pooler or balancer restarts, 1 s down",
        ["run 1", "restart_pooler 1", "run 2", "look 1"],
    ),
    scenario(
        "rotate",
        "the server requires another password and ends all sessions; 1 s later the app has it",
        ["run 1", "rotate 1", "run 2", "look 1"],
    ),
)


def choose(
    names: Sequence[str] | None, own: Sequence[Scenario] = (), usual: Sequence[Scenario] = SCENARIOS
) -> list[Scenario]:
    """Return the scenarios of these names, in the usual order and then the project's *own*; None:
    all.

    A name can also be one of :data:`CLUSTERS`, which define their own requirements. Raises
    ConfigurationError for an unknown name.
    """
    mine = {each.name for each in own}
    known = [each for each in usual if each.name not in mine] + list(own)
    if names is None:
        return known
    known += [each for each in CLUSTERS if each not in known]
    for name in names:
        if name not in {each.name for each in known}:
            hint = nearest(name, [each.name for each in known])
            raise ConfigurationError(
                UNKNOWN_NAME(
                    f"unknown scenario {name!r}{hint}; known: {', '.join(s.name for s in known)}"
                )
            )
    return [each for each in known if each.name in names]
