"""The whole drill: every variant of the app through every scenario, each lane with a server and a
proxy of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from unbroken.errors import UnbrokenError
from unbroken_drill import FaultProxy
from unbroken_drill.drill.app.launch import App, AppError
from unbroken_drill.drill.app.plan import Plan, Variant, Where, fill
from unbroken_drill.drill.app.results import AppResult
from unbroken_drill.drill.app.scenarios import Scenario
from unbroken_drill.drill.app.stage import Scene, perform, seeded
from unbroken_drill.drill.app.traffic import Traffic
from unbroken_drill.drill.campaign import Campaign, Watcher
from unbroken_drill.drill.measure import sessions_left, version
from unbroken_drill.drill.results import one_line
from unbroken_drill.servers import Server, ServerError
from unbroken_drill.servers.folders import free_port

_HOST = "127.0.0.1"
_STANDARD_PORTS = {
    "postgresql": 5432,
    "postgres": 5432,
    "mysql": 3306,
    "mariadb": 3306,
    "mongodb": 27017,
}


@dataclass(frozen=True, slots=True)
class Player:
    """A variant as the tables know contenders."""

    key: str
    backend: str

    @property
    def title(self) -> str:
        """What the tables show."""
        return self.key

    @property
    def is_ours(self) -> bool:
        """Never: an app is held to its own limits, not to unbroken's contract."""
        return False


@dataclass(slots=True)
class AppJob:
    """One variant in one scenario."""

    variant: Variant
    scenario: Scenario
    entrant: Player
    detail: str = ""  #: the step that it is at

    def tell(self, detail: str) -> None:
        """Note the step that it is at."""
        self.detail = detail

    @property
    def cell(self) -> tuple[str, str, str]:
        """Where its result belongs: server, scenario, variant."""
        return self.entrant.backend, self.scenario.name, self.variant.name


@dataclass(slots=True)
class AppDrill:
    """Runs *plan*. :meth:`run` gives one row per variant and scenario, in the plan's order."""

    plan: Plan
    version: str = ""  #: of the server that ran
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def players(self) -> list[Player]:
        """The variants, as the tables know them."""
        return [Player(variant.name, self.plan.backend) for variant in self.plan.variants]

    def jobs(self) -> list[AppJob]:
        """Every variant in every scenario; those of one scenario follow each other, so that the
        machine's mood is the same for them.
        """
        pairs = [
            (variant, scenario)
            for scenario in self.plan.scenarios
            for variant in self.plan.variants
        ]
        return [
            AppJob(variant, scenario, Player(variant.name, self.plan.backend))
            for variant, scenario in pairs
        ]

    def run(self, watcher: Watcher) -> list[AppResult]:
        """Run it all. A KeyboardInterrupt, or an app that does not start, ends everything first."""
        wanted = self.jobs()
        found = {
            job.cell: result
            for job, result in Campaign(wanted, self._lane, self._stop).run(self.plan.jobs, watcher)
        }
        return [found[job.cell] for job in wanted if job.cell in found]

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Callable[[AppJob], AppResult]]:
        with Lane(self.plan, self._stop) as lane:
            self.version = self.version or lane.version
            yield partial(self._one, lane)

    def _one(self, lane: Lane, job: AppJob) -> AppResult:
        result = AppResult(*job.cell, job.variant.name, is_ours=False)
        try:
            lane.play(job, result)
        except (
            UnbrokenError
        ) as error:  # the app, the server or the proxy: this row alone cannot be measured
            result.failure = one_line(error).partition(": ")[2]
        return result


class Lane:
    """A server, a proxy before it, and a folder for what the apps print; a context manager that
    ends them.
    """

    def __init__(self, plan: Plan, stop: threading.Event) -> None:
        self._plan, self._stop = plan, stop
        self._exits = contextlib.ExitStack()
        self._set_up: set[str] = set()  #: variants whose setup has run on this server
        self.server: Server | None = None
        self.version = ""

    def __enter__(self) -> Lane:
        with contextlib.ExitStack() as exits:
            self._folder = Path(tempfile.mkdtemp(prefix="unbroken-drill-"))
            exits.callback(shutil.rmtree, self._folder, ignore_errors=True)
            if self._plan.db is None:
                self.server = exits.enter_context(Server.kinds[self._plan.backend]())
                self.version = version(self.server)
                upstream, url = (
                    (self.server.host, self.server.port),
                    self.server.url(self._plan.driver),
                )
                if self._plan.setup_sql:
                    self._run_sql(self.server, self._plan.setup_sql)
            else:
                url = self._plan.db
                found = Where.of(url)
                upstream = (found.host, found.port or _STANDARD_PORTS.get(self._plan.backend, 0))
            self.proxy = exits.enter_context(
                FaultProxy(upstream, listen=(_HOST, 0), protocol=_protocol(self._plan.backend))
            )
            self.where = Where.of(self.proxy.url(url))
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exits.close()

    def _run_sql(self, server: Server, sql: str) -> None:
        if server.backend == "postgresql":  # what is made belongs to who made it
            name = '"' + server.user.replace('"', '""') + '"'
            sql = f"SET ROLE {name}; {sql}"
        try:
            server.admin(sql)
        except ServerError as error:
            raise AppError(f"--setup-sql: {one_line(error).partition(': ')[2]}") from None

    def play(self, job: AppJob, result: AppResult) -> None:
        """Put a freshly started app through a scenario."""
        server, scenario = self.server, job.scenario
        with contextlib.ExitStack() as exits:
            if server is not None:
                server.start()
                options = scenario.options(server.backend)
                if options:
                    exits.enter_context(server.temporarily(**options))
            app, traffic = self._make(job)
            exits.enter_context(app)
            exits.enter_context(traffic)
            scene = Scene(
                server, self.proxy, app, traffic, self._stop, self._plan.start_timeout, job.tell
            )
            exits.callback(scene.make_well)
            self._prepare(job.variant, app, scene)
            perform(scene, scenario.steps, result)
        if server is not None:
            result.left = sessions_left(server)

    def _make(self, job: AppJob) -> tuple[App, Traffic]:
        plan = self._plan
        port = str(free_port(_HOST)) if plan.port_is_free else ""
        targets = [
            replace(target, url=target.url.replace("{port}", port)) for target in plan.targets
        ]
        found = {name: fill(template, self.where) for name, template in plan.environment}
        environment = {**found, **({"PORT": port} if port else {}), **job.variant.environment}
        argv = [word.replace("{port}", port) if port else word for word in job.variant.argv]
        log = self._folder / "app.log"
        log.unlink(missing_ok=True)
        app = App(argv, environment, log, plan.folder)
        return app, Traffic(
            targets, plan.rate, plan.concurrency, plan.timeout, seeded(plan.seed, job.scenario.name)
        )

    def _prepare(self, variant: Variant, app: App, scene: Scene) -> None:
        """Run the setup command, once for each variant on this server."""
        if self._plan.setup and variant.name not in self._set_up:
            app.run_once(self._plan.setup, self._plan.start_timeout, scene.wait)
            self._set_up.add(variant.name)


def _protocol(backend: str) -> str | None:
    return {"mariadb": "mysql", "mysql": "mysql", "postgresql": "postgresql"}.get(backend)
