"""The faults, each under traffic.

A scenario drives a :class:`~unbroken_drill.drill.pools.stage.Stage` and marks when it hurt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.pools.contenders.base import Plan
from unbroken_drill.drill.pools.stage import AFTER, WARM, Stage
from unbroken_drill.servers.base import Value

IDLE_LIMIT: Final = 2.0  #: the server's, in *idle*
DOWN: Final = 1.5  #: how long a restart takes
FROZEN: Final = 4.0
DEADLINE: Final = 2.0  #: unbroken's, in *freeze*
KILLS: Final = 5
CHILDREN: Final = 3
QUESTIONS: Final = 200
CARELESS: Final = 8
ORDINARY: Final = 12
STORM: Final = 100


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault: what is done, what the pools are given, and what the server is set to
    meanwhile.
    """

    name: str
    title: str
    act: Callable[[Stage], None]
    plan: Plan = field(default_factory=Plan)
    options: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)  #: by backend
    processes: int = 1  #: that may hold a pool of their own
    #: the server was away, so the time from its accepting to the first success is bounded
    is_outage: bool = False


def idle(stage: Stage) -> None:
    """Warm up, let the server end the idle sessions, then many requests at once."""
    stage.traffic()
    stage.wait(WARM)
    stage.pause()
    stage.wait(IDLE_LIMIT + AFTER)
    stage.count_close_wait()
    now = time.monotonic()
    stage.fault(now, now)
    stage.worker.ask("burst", 60.0, threads=10, each=4)


def kill(stage: Stage) -> None:
    """End all sessions, five times, as an administrator would.

    The kills are so far apart that no request meets two of them: a unit of work that loses two
    connections which had just worked, at the same statement, is not run a third time.
    """
    stage.traffic()
    stage.wait(WARM)
    for _ in range(KILLS):
        stage.wait(stage.random.uniform(0.5, 0.8))
        stage.server.kill_sessions()
        now = time.monotonic()
        stage.fault(now, now)
    stage.wait(AFTER)
    stage.count_close_wait()
    stage.pause()


def restart(stage: Stage) -> None:
    """Stop in order, stay away, start again."""
    stage.traffic()
    stage.wait(WARM)
    _restart(stage)
    stage.wait(AFTER)
    stage.pause()


def _restart(stage: Stage) -> None:
    stage.server.stop()
    down = time.monotonic()
    stage.wait_until(down + AFTER)
    stage.count_close_wait()
    stage.wait_until(down + DOWN)
    stage.come_back(down)


def crash(stage: Stage) -> None:
    """SIGKILL, and start again at once: the server recovers from its log first."""
    stage.traffic()
    stage.wait(WARM)
    stage.server.kill()
    down = time.monotonic()
    stage.come_back(down)
    stage.wait(AFTER)
    stage.count_close_wait()
    stage.pause()


def freeze(stage: Stage) -> None:
    """Every process of the server stands still: connections stay open, nothing answers.

    Then it goes on.
    """
    stage.traffic()
    stage.wait(WARM)
    stage.server.freeze()
    try:
        stage.wait(FROZEN)
    finally:
        stage.server.thaw()
    now = time.monotonic()
    stage.fault(now, now)
    stage.wait(AFTER)
    stage.count_close_wait()
    stage.pause()


def fork(stage: Stage) -> None:
    """A warm parent forks three children; all four ask for their own session 200 times."""
    stage.traffic()
    stage.wait(WARM)
    stage.pause()
    stage.worker.ask("fork", 90.0, children=CHILDREN, times=QUESTIONS)
    stage.wait(AFTER)
    stage.count_close_wait()


def forget(stage: Stage) -> None:
    """Eight requests raise and drop their connection without giving it back; twelve ordinary ones
    follow.
    """
    _careless(stage, keep=False)


def hold(stage: Stage) -> None:
    """The same, but something keeps the connections alive."""
    _careless(stage, keep=True)


def _careless(stage: Stage, *, keep: bool) -> None:
    stage.worker.ask("careless", requests=CARELESS, keep=keep)
    stage.wait(0.3)
    stage.worker.ask("collect")
    stage.worker.ask("burst", 60.0, threads=ORDINARY, each=1)
    stage.wait(AFTER)
    stage.count_close_wait()


def storm(stage: Stage) -> None:
    """A hundred threads on a pool of ten, and a restart."""
    stage.traffic(readers=STORM - 1, writers=1, every=0.25)
    stage.wait(WARM)
    _restart(stage)
    stage.wait(AFTER)
    stage.pause()


SCENARIOS: Final[tuple[Scenario, ...]] = (
    Scenario(
        "idle",
        f"the server ends sessions idle for {IDLE_LIMIT:.0f} s, then a burst",
        idle,
        options={
            "postgresql": {"idle_session_timeout": f"{IDLE_LIMIT:.0f}s"},
            "mariadb": {"wait_timeout": int(IDLE_LIMIT)},
        },
    ),
    Scenario("kill", f"an administrator kills all sessions, {KILLS} times", kill),
    Scenario("restart", f"the server restarts, {DOWN} s down", restart, is_outage=True),
    Scenario("crash", "kill -9 the server, start it again", crash, is_outage=True),
    Scenario(
        "freeze",
        f"no answer for {FROZEN:.0f} s, then it goes on (unbroken: deadline={DEADLINE:.0f})",
        freeze,
        Plan(deadline=DEADLINE),
    ),
    Scenario(
        "fork",
        f"a warm parent, {CHILDREN} children, each asks {QUESTIONS} times",
        fork,
        processes=CHILDREN + 1,
    ),
    Scenario(
        "forget",
        f"{CARELESS} requests never give back, pool of 5, then {ORDINARY} ordinary ones",
        forget,
        Plan(size=5),
    ),
    Scenario(
        "hold",
        "the same, connections kept alive (unbroken: leak_after=1, reclaim)",
        hold,
        Plan(size=5, leak_after=1.0, reclaim=True),
    ),
    Scenario("storm", f"{STORM} threads, pool of 10, restart", storm, is_outage=True),
)


def choose(names: Sequence[str]) -> list[Scenario]:
    """The scenarios of these names, in the usual order.

    Raises ConfigurationError for a name there is not.
    """
    known = {scenario.name for scenario in SCENARIOS}
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"there is no scenario {name!r}; known are {', '.join(s.name for s in SCENARIOS)}"
            )
    return [scenario for scenario in SCENARIOS if scenario.name in names]
