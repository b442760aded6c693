"""PyMongo's own client, in two forms: as it lives in one process (and loop), and as far as it can
be without making anything.
"""

from __future__ import annotations

from typing import Any

from pymongo.common import MIN_HEARTBEAT_INTERVAL

from unbroken.abc import FaultKind
from unbroken.integrations.mongo.faults import fault_of
from unbroken.integrations.mongo.per_process import PerProcess, UnopenedTopology

#: Seconds between two looks at least, while callers wait and nobody listens: a look costs nothing
#: then, and the half second of PyMongo would be a good part of what they wait in all.
LOOK_AGAIN = 0.1


class OneProcessMixin:
    """Mixed into PyMongo's client: it belongs to one process. *pool*: the class of its pools;
    *monitor*: that of its monitors.
    """

    _topology: Any

    def __init__(
        self, per_process: PerProcess, arguments: dict[str, Any], pool: Any, monitor: Any
    ) -> None:
        self._per_process = per_process
        listeners = [*(arguments.get("event_listeners") or ()), per_process.heartbeats]
        given: dict[str, Any] = {
            **arguments,
            "connect": False,
            "_pool_class": pool,
            "_monitor_class": arguments.get("_monitor_class") or monitor,
            "event_listeners": listeners,
        }
        super().__init__(**given)

    def _init_background(self, *args: Any) -> None:
        super()._init_background(*args)  # type: ignore[misc] # PyMongo's
        self._per_process.settle_sessions(self._topology)

    def _after_fork(self) -> None:
        """PyMongo's fork hook, in the child: what was inherited is cut off, and never used
        again.
        """
        self._per_process.sockets.sever()

    def __del__(self) -> None:
        per_process = vars(self).get("_per_process")
        if per_process is not None and per_process.here[0]:
            super().__del__()  # type: ignore[misc]


class LookAgainMixin:
    """Mixed into PyMongo's monitor: where nobody listens it looks again sooner, if asked to."""

    _executor: Any

    def _paced(self, seen: Any) -> Any:
        """*seen* is what a look has shown."""
        is_refused = seen.error is not None and fault_of(seen.error).kind is FaultKind.REFUSED
        self._executor._min_interval = LOOK_AGAIN if is_refused else MIN_HEARTBEAT_INTERVAL
        return seen


class UnopenedMixin:
    """Mixed into PyMongo's client: the options are read and checked, and that is all."""

    _topology_settings: Any

    def _init_background(self, *_: Any) -> None:
        vars(self).update(
            _topology=UnopenedTopology(self._topology_settings, _never),
            _kill_cursors_executor=None,
            _opened=False,
        )

    def _get_topology(self) -> Any:
        """Nothing is connected to, whatever connect= says."""

    def _after_fork(self) -> None:
        """Nothing was made, so nothing was inherited."""

    def __del__(self) -> None:
        """Nothing was opened, so nothing is left open."""


def _never() -> Any:
    raise NotImplementedError  # a unopened is only read
