"""A small fleet before one server, in simulated time: it neither storms a server that is away nor
is late when it is back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PROCESSES = 40


@pytest.fixture(scope="module")
def fleet() -> Iterator[ModuleType]:
    bench = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, bench)
    try:
        import fleet

        yield fleet
    finally:
        sys.path.remove(bench)


@pytest.mark.parametrize("scene", ["restart", "crash recovery", "failover"])
def test_all_users_of_a_fleet_are_served_sooner_and_with_fewer_attempts_than_if_each_tried_for_itself(  # noqa: E501
    fleet, scene
):
    ours, naive = (
        fleet.play(fleet.KINDS[kind], fleet.SCENES[scene], PROCESSES)
        for kind in ("unbroken", "again after 20 ms")
    )
    assert len(ours.served) == ours.users == 10 * PROCESSES
    assert ours.until(1.0) < naive.until(1.0)
    assert ours.per_second < naive.per_second
    assert len(ours.attempts) < len(naive.attempts)


def test_attempts_are_as_many_as_processes_make_at_their_pace_and_not_as_many_as_users_wait(fleet):
    few, many = (
        fleet.play(fleet.KINDS["unbroken"], fleet.SCENES["crash recovery"], number)
        for number in (PROCESSES // 2, PROCESSES)
    )
    assert many.per_second <= 2.5 * few.per_second
    assert many.per_second <= PROCESSES / 0.050 * 1.2  # one prober each, 50 ms apart at the least


def test_processes_that_lost_their_connections_at_one_moment_do_not_ask_in_step(fleet):
    """Pools too small for their users: somebody waits in each at that moment."""
    found = fleet.play(
        lambda server, random: fleet.Process(server, 4, random),
        fleet.SCENES["crash recovery"],
        PROCESSES,
    )
    later = [when for when, _ in found.attempts if 1.0 <= when < found.away]
    at_once = max(sum(when <= other < when + 0.005 for other in later) for when in later)
    assert at_once < PROCESSES / 2


def test_a_full_server_is_not_hammered_and_everybody_is_served_by_those_who_have_a_place(fleet):
    """Room for two connections of each process, where ten are wanted."""
    events_to_come = (("refusing", 2.0),)
    found = fleet.play(fleet.KINDS["unbroken"], events_to_come, PROCESSES, places=2)
    assert len(found.served) == found.users
    assert (
        sum(what == "full" for _, what in found.attempts) / max(found.served)
        <= PROCESSES / 0.050 * 1.2
    )
