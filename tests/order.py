"""In which order ``pytest -n 4`` runs the tests: files beside each other, then what needs a quiet
machine.

A file stays together, so that what its tests share is made once, and the files that take longest
begin first. One worker begins with the files whose tests mostly wait for servers, so that four
workers keep two cores busy and do not crowd them. When no such file is left, two workers go on
with what a full machine could make late, and at last one worker runs what must run alone.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

#: What compares times that a contract states. Beginnings of tests' names.
ALONE = (
    "tests/drill/test_drill.py",
    "tests/testing/proxy/test_verbs.py::test_it_works_where_gevent_has_patched_everything",
)  # fmt: skip
#: What measures time but allows for a busy machine, and what counts calls of the moment. At most
#: AT_ONCE workers run beside each other then: nearly all of this waits. The longest first.
FEW = (
    "tests/bounds/test_connects.py", "tests/strikes/test_signals.py", "tests/bounds/",
    "tests/perf/test_call_counts.py",
)  # fmt: skip
AT_ONCE = 2
#: What takes minutes.
LONG = (
    "tests/history/", "tests/testing/test_servers.py", "tests/simulated/test_pool_machine.py",
    "tests/pool/test_every_driver.py", "tests/pool/test_fork_wire.py",
    "tests/drivers/test_seams.py", "tests/testing/test_pytest_plugin.py", "tests/integrations/web/",
    "tests/integrations/mongo/", "tests/drivers/test_strikes.py", "tests/strikes/test_sweeps.py",
    "tests/integrations/test_django_test_databases.py", "tests/drill/test_app_drill.py",
    "tests/pool/test_answers", "tests/testing/proxy/",
)  # fmt: skip
#: What mostly waits: for elections, restarts, limits, names that move. The longest first.
WAITING = (
    "tests/integrations/mongo/test_waiting.py", "tests/pool/test_idle_limit.py",
    "tests/integrations/mongo/test_long_work.py", "tests/pool/test_left_behind.py",
    "tests/pool/test_names.py", "tests/integrations/web/test_mongo_http.py",
    "tests/testing/test_clusters.py", "tests/integrations/sqlalchemy/test_clusters.py",
    "tests/bodies/test_clusters.py", "tests/pool/test_passwords.py",
    "tests/drill/test_topologies.py", "tests/clusters/",
    "tests/integrations/test_django_clusters.py",
    "tests/pool/test_pooler_faults.py", "tests/pool/test_scouting.py", "tests/pool/test_outage.py",
)  # fmt: skip
#: Files whose tests share nothing that takes long to make: their tests need not stay together.
APART = (
    "tests/testing/test_servers.py", "tests/testing/test_pytest_plugin.py",
    "tests/simulated/test_pool_machine.py",
)  # fmt: skip
#: Likewise, and each of their tests takes many seconds.
ONE_BY_ONE = ("tests/strikes/test_signals.py",)

#: The scope of all that must run alone: one worker runs it in one piece.
LAST = "alone"


class Order(LoadScopeScheduling):
    """Gives files to workers, and ends the workers that are not needed any more."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(ALONE):
            return LAST
        if nodeid.startswith(ONE_BY_ONE):
            return nodeid
        return nodeid.partition("[" if nodeid.startswith(APART) else "::")[0]

    def schedule(self) -> None:
        super().schedule()
        for node in self.nodes:  # a file of one test is not begun before its worker has another
            self._reschedule(node)

    def _assign_work_unit(self, node: Any) -> None:
        scope = self._next(node)
        most = _most(scope)
        if self._open_beside(node) < most and self._busy_beside(node) < most:
            self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if node.shutting_down or self._pending_of(self.assigned_work[node]) > 2:
            return
        if self.workqueue and self._open_beside(node) >= _most(self._next(node)):
            node.shutdown()  # it ends what it has; the others are enough for the rest
        else:
            super()._reschedule(node)

    def _next(self, node: Any) -> str:
        """The file that *node* gets next."""
        is_for_waiting = node is self.nodes[-1] and len(self.nodes) > 1
        return min(self.workqueue, key=_rank_of_waiting if is_for_waiting else _rank)

    def _open_beside(self, node: Any) -> int:
        """How many other workers may be given more."""
        return sum(each is not node and not each.shutting_down for each in self.nodes)

    def _busy_beside(self, node: Any) -> int:
        """How many other workers work, or will though they get nothing more.

        A worker runs the last test that it has when it gets more, or is told to end.
        """
        return sum(
            self._pending_of(self.assigned_work[each]) > (0 if each.shutting_down else 1)
            for each in self.nodes
            if each is not node
        )

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Forget the test: what is left is counted after each one, for every worker."""
        nodeid = self.registered_collections[node][item_index]
        units, scope = self.assigned_work[node], self._split_scope(nodeid)
        del units[scope][nodeid]
        if not units[scope]:
            del units[scope]
        for each in self.nodes:
            self._reschedule(each)

    def remove_node(self, node: Any) -> str | None:
        """*node* has ended.

        Gives the test in which it crashed; all others that it had are run elsewhere.
        """
        units = self.assigned_work.pop(node)
        crashed = None
        if units:
            unit = next(iter(units.values()))
            crashed = next(iter(unit))
            del unit[crashed]
            self.workqueue.update({scope: unit for scope, unit in units.items() if unit})
        for each in self.nodes:
            self._reschedule(each)
        return crashed


def _most(scope: str) -> int:
    """How many workers may work while *scope* is run."""
    return 1 if scope == LAST else AT_ONCE if scope.startswith(FEW) else 1000


def _rank(scope: str) -> int:
    """The rank of a file for most workers: long files first, then those that wait, then those that
    need a quiet machine.
    """
    rest = len(LONG)
    if scope == LAST:
        return rest + 2 + len(FEW)
    if scope.startswith(FEW):
        return rest + 2 + _place(scope, FEW)
    return rest + 1 if scope.startswith(WAITING) else _place(scope, LONG)


def _rank_of_waiting(scope: str) -> int:
    """The rank of a file for the worker that begins with files that wait."""
    return _place(scope, WAITING) if scope.startswith(WAITING) else len(WAITING) + _rank(scope)


def _place(scope: str, beginnings: tuple[str, ...]) -> int:
    """The place of the first of *beginnings* that is one of *scope*; their number, if none is."""
    return next(
        (place for place, each in enumerate(beginnings) if scope.startswith(each)),
        len(beginnings),
    )
