"""PyMongo's own client, in two forms: the one that runs in one process (and loop), and one with
options only, without connections or threads.
"""

from __future__ import annotations

from typing import Any

from pymongo.common import MIN_HEARTBEAT_INTERVAL

from unbroken.abc import FaultKind
from unbroken.integrations.mongo.faults import fault_of
from unbroken.integrations.mongo.per_process import PerProcess, UnopenedTopology

#: The minimum interval, in seconds, between two checks while callers wait and no server listens. A
#: check costs nothing then, and PyMongo's half second would be a large part of their whole wait.
LOOK_AGAIN = 0.1


class OneProcessMixin:
    """Mixed into PyMongo's client: it belongs to one process. *pool* is the class of its pools,
    *monitor* that of its monitors.
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
        """PyMongo's fork hook, in the child: inherited sockets are cut off, and never used
        again.
        """
        self._per_process.sockets.sever()

    def __del__(self) -> None:
        per_process = vars(self).get("_per_process")
        if per_process is not None and per_process.here[0]:
            super().__del__()  # type: ignore[misc]


class LookAgainMixin:
    """Mixed into PyMongo's monitor: if no server listens, it checks again sooner on request."""

    _executor: Any

    def _paced(self, seen: Any) -> Any:
        """Return *seen*, the result of a check."""
        is_refused = seen.error is not None and fault_of(seen.error).kind is FaultKind.REFUSED
        self._executor._min_interval = LOOK_AGAIN if is_refused else MIN_HEARTBEAT_INTERVAL
        return seen


class UnopenedMixin:
    """Mixed into PyMongo's client: it only reads and checks the options."""

    _topology_settings: Any

    def _init_background(self, *_: Any) -> None:
        vars(self).update(
            _topology=UnopenedTopology(self._topology_settings, _never),
            _kill_cursors_executor=None,
            _opened=False,
        )

    def _get_topology(self) -> Any:
        """Connect to nothing, for any value of connect=."""

    def _after_fork(self) -> None:
        """Do nothing: nothing was created, so nothing was inherited."""

    def __del__(self) -> None:
        """Do nothing: nothing was opened, so nothing is left open."""


def _never() -> Any:
    raise NotImplementedError  # an unopened client is only read
