"""The user's app as a contender: a command before a fault proxy, queried over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from unbroken_drill.drill.apps.launch import App, AppError
from unbroken_drill.drill.apps.plan import AppPlan, Variant, fill
from unbroken_drill.drill.apps.replies import OK, Reply
from unbroken_drill.drill.apps.results import AppResult, said
from unbroken_drill.drill.apps.traffic import Traffic
from unbroken_drill.drill.contest import HOST, Ground
from unbroken_drill.drill.measure import sessions_left
from unbroken_drill.drill.results import Result, one_line
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.stage import Stage
from unbroken_drill.drill.steps import Step
from unbroken_drill.drill.topologies import Site
from unbroken_drill.messages import APP_FAILED
from unbroken_drill.servers import Server, ServerError
from unbroken_drill.servers.ports import free_port

#: Seconds for a request while the app starts. A late answer is no error: the app is asked again.
_GLANCE: Final = 2.0
_PACE: Final = 0.05
#: After the last step the app gets this many health requests, one after another.
CHECKS: Final = 20
_ENOUGH: Final = 5  #: failures of these are enough for a verdict


@dataclass(frozen=True, slots=True)
class OwnApp:
    """A :class:`~unbroken_drill.drill.contest.Contender`."""

    variant: Variant
    plan: AppPlan

    @property
    def key(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def title(self) -> str:
        """Its name in the tables."""
        return self.variant.name

    @property
    def backend(self) -> str:
        """The kind of its server."""
        return self.plan.backend

    @property
    def is_ours(self) -> bool:
        """Always false: an app has its own limits, not unbroken's contract."""
        return False

    @property
    def db(self) -> str | None:
        """The existing server, if there is one."""
        return self.plan.db

    @property
    def is_proxied(self) -> bool:
        """Always true: a port on which nobody listens must refuse, and the proxy's port identifies
        the app's sockets.
        """
        return True

    def result(self, scenario: str) -> AppResult:
        """Return an empty row."""
        return AppResult(self.backend, scenario, self.key, self.title, is_ours=False)

    @contextmanager
    def enter(self, ground: Ground, scenario: Scenario, seed: int) -> Iterator[AppActor]:
        """Yield the app, not started yet, and its traffic. The server is set up once for each
        variant.
        """
        del scenario
        plan = self.plan
        _set_up_server(ground, plan)
        port = str(free_port(HOST)) if plan.port_is_free else ""
        where = ground.where(plan.driver, proxied=ground.has_one_address)
        found = {name: fill(template, where) for name, template in plan.environment}
        environment = {**found, **({"PORT": port} if port else {}), **self.variant.environment}
        argv = [word.replace("{port}", port) if port else word for word in self.variant.argv]
        targets = [
            replace(target, url=target.url.replace("{port}", port)) for target in plan.targets
        ]
        log = ground.folder / "app.log"
        log.unlink(missing_ok=True)
        with ExitStack() as exits:
            app = exits.enter_context(App(argv, environment, log, plan.folder))
            traffic = exits.enter_context(
                Traffic(targets, plan.rate, plan.concurrency, plan.timeout, seed)
            )
            yield AppActor(self, ground, app, traffic)


def _set_up_server(ground: Ground, plan: AppPlan) -> None:
    if ground.server is None or not plan.setup_sql or "" in ground.prepared:
        return
    _run_sql(ground.server, plan.setup_sql)
    ground.prepared.add("")


def _run_sql(server: Server | Site, sql: str) -> None:
    if server.backend == "postgresql":  # objects belong to the role that created them
        name = '"' + server.user.replace('"', '""') + '"'
        sql = f"SET ROLE {name}; {sql}"
    try:
        server.admin(sql)
    except ServerError as error:
        raise AppError(APP_FAILED(f"--setup-sql: {one_line(error).partition(': ')[2]}")) from None


@dataclass(slots=True)
class AppActor:
    """An :class:`~unbroken_drill.drill.stage.Actor`: one app with its traffic."""

    contender: OwnApp
    ground: Ground
    app: App
    traffic: Traffic

    @property
    def pids(self) -> list[int]:
        """The app's processes."""
        return self.app.pids

    @property
    def port(self) -> int | None:
        """The proxy's port. None: there is no proxy, because clients learn several addresses."""
        return self.ground.proxy.port if self.ground.has_one_address else None

    def prepare(self, stage: Stage) -> None:
        """Run the setup command, once for each variant on this server."""
        plan, name = self.contender.plan, self.contender.key
        if plan.setup and name not in self.ground.prepared:
            self.app.run_once(plan.setup, plan.start_timeout, stage.wait)
            self.ground.prepared.add(name)

    def bring_up(self, stage: Stage) -> None:
        """Start it and wait until every URL answers well. Raises AppError with the app's output
        otherwise.
        """
        stage.tell("start of the app")
        self.app.start()
        deadline = time.monotonic() + self.contender.plan.start_timeout
        while True:
            bad = [reply for reply in self.traffic.ask(1, _GLANCE) if reply.outcome != OK]
            if not bad:
                return
            if not self.app.is_running:
                raise AppError(
                    APP_FAILED(
                        f"the app ended with status {self.app.status} while starting:"
                        f" {self.app.said()}"
                    )
                )
            if time.monotonic() > deadline:
                raise AppError(APP_FAILED(f"{self._refusal(bad[0])}; {self.app.said()}"))
            stage.wait(_PACE)

    def _refusal(self, reply: Reply) -> str:
        target = self.traffic.targets[reply.target]
        answer = f"status {said(reply)}" if reply.status else reply.line
        within = f"within {self.contender.plan.start_timeout:.0f} s"
        return f"before any fault, {target.method} {target.url} does not work {within}: {answer}"

    def start(self) -> None:
        """Begin to send requests."""
        self.traffic.start()

    def settle(self, stage: Stage) -> None:
        """End the traffic, and wait for the requests in progress."""
        self.traffic.pause()
        while self.traffic.is_busy:
            stage.wait(_PACE)

    def do(self, step: Step, stage: Stage) -> None:
        """Never called: such a scenario is omitted."""
        raise NotImplementedError(step.text)

    def conclude(self, stage: Stage, result: Result, began: float) -> None:
        """Count the replies and the connections, and check whether the app works."""
        assert isinstance(result, AppResult)
        names = [each.name for each in self.traffic.targets]
        several = names if len(names) > 1 else ()
        result.take(self.traffic.replies, stage.marks, began, several)
        result.close_wait = stage.count_stuck()
        if stage.server is not None:
            result.sessions = len(stage.server.sessions())
        else:
            result.sessions = sum(each.state == "open" for each in self.ground.proxy.connections)
        self._see_health(stage, result)
        self.app.stop(quickly=True)
        if stage.server is not None:
            result.left = sessions_left(stage.server)

    def _see_health(self, stage: Stage, result: AppResult) -> None:
        """Check whether all URLs work. If not, restart the app as an administrator would, and note
        whether that helped.
        """
        stage.tell("check of the app")
        if not self.app.is_running:
            result.ended = f"status {self.app.status}: {self.app.said()}"
        for _ in range(CHECKS):
            stage.wait(0.0)
            result.unwell += sum(reply.outcome != OK for reply in self.traffic.ask(1, _GLANCE))
            if result.unwell >= _ENOUGH:
                break
        if result.unwell:
            result.needed_restart = True
            self.app.stop()
            try:
                self.bring_up(stage)
            except AppError:
                result.restart_helped = False
            else:
                result.restart_helped = True

    def kill(self) -> None:
        """Do nothing: its lane checks continually whether it must end, and then ends the app."""
