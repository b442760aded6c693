"""In which order ``pytest -n 4`` runs the tests: files beside each other, and what must run alone
when they are done.

A file stays together, so that what its tests share is made once, and the files that take longest
begin first. One worker begins with the files whose tests mostly wait for servers, so that four
workers keep two cores busy and do not crowd them.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

#: What measures time, counts attempts to connect, or looks at what all processes of the machine do.
#: Beginnings of tests' names.
ALONE = (
    "tests/perf/", "tests/bounds/", "tests/drill/test_drill.py",
    "tests/strikes/test_signals.py",
    "tests/testing/proxy/test_verbs.py::test_it_works_where_gevent_has_patched_everything",
)  # fmt: skip
#: What takes minutes.
LONG = (
    "tests/history/", "tests/testing/test_servers.py", "tests/simulated/test_pool_machine.py",
    "tests/pool/test_every_driver.py", "tests/pool/test_fork_wire.py",
    "tests/drivers/test_seams.py", "tests/testing/test_pytest_plugin.py", "tests/integrations/web/",
    "tests/integrations/mongo/",
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


class Order(LoadScopeScheduling):
    """Gives files to workers.

    When none is left, all workers but one end, and the last one gets what must run alone.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(ALONE):
            return "alone"
        return nodeid.partition("[" if nodeid.startswith(APART) else "::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if not self._is_waiting(node):
            rank = _rank_of_waiting if node is self.nodes[-1] and len(self.nodes) > 1 else _rank
            self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)
            super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if node.shutting_down:
            return
        if not self._is_waiting(node):
            super()._reschedule(node)
        elif any(not each.shutting_down for each in self.nodes if each is not node):
            node.shutdown()  # it ends what it has

    def _is_waiting(self, node: Any) -> bool:
        """Whether only what must run alone is left, and another worker still works."""
        others = [each for each in self.nodes if each is not node]
        works = any(
            not each.shutting_down or self._pending_of(self.assigned_work[each]) for each in others
        )
        return list(self.workqueue) == ["alone"] and works

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        for each in self.nodes:
            if each is not node:
                self._reschedule(each)

    def remove_node(self, node: Any) -> str | None:
        """*node* has ended.

        Gives the test in which it crashed; all others that it had are run elsewhere.
        """
        units = self.assigned_work.pop(node)
        left = [
            (unit, nodeid) for unit in units.values() for nodeid, done in unit.items() if not done
        ]
        crashed = None
        if left:
            unit, crashed = left[0]
            unit[crashed] = True
            self.workqueue.update(
                {scope: unit for scope, unit in units.items() if not all(unit.values())}
            )
        for each in self.nodes:
            self._reschedule(each)
        return crashed


def _rank(scope: str) -> int:
    """The rank of a file for most workers: long files first, files that wait last."""
    if scope == "alone":
        return len(LONG) + 2
    if scope.startswith(WAITING):
        return len(LONG) + 1
    return next((rank for rank, long in enumerate(LONG) if scope.startswith(long)), len(LONG))


def _rank_of_waiting(scope: str) -> int:
    """The rank of a file for the worker that begins with files that wait."""
    others = len(WAITING) + _rank(scope)
    return next((rank for rank, file in enumerate(WAITING) if scope.startswith(file)), others)
