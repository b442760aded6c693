"""The drill on several servers: each topology plays its scenarios, and says who noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import ConfigurationError
from unbroken_drill.drill import options, scenarios, topologies


def drilled(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What the drill found out, as JSON."""
    file = tmp_path / "drill.json"
    done = subprocess.run(
        [sys.executable, "-m", "unbroken", "drill", *arguments, "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return {**found, "said": done.stdout}


@pytest.mark.parametrize(
    ("topology", "chosen", "contenders", "behind"),
    [
        ("standby", "promote,rotate", "unbroken/psycopg,pre_ping", "standby behind HAProxy"),
        ("replica", "switchover,reject", "unbroken/pymysql,pre_ping", "replica behind HAProxy"),
        ("galera", "promote", "unbroken/pymysql,pre_ping", "Galera of three nodes behind HAProxy"),
        ("pgbouncer", "pooler-restart", "unbroken/psycopg,pre_ping", "behind PgBouncer"),
    ],
)
def test_a_short_drill_of_a_topology_shows_who_noticed(
    topology: str, chosen: str, contenders: str, behind: str, tmp_path: Path
) -> None:
    found = drilled(
        tmp_path, "--topology", topology, "--scenarios", chosen, "--contenders", contenders
    )
    assert found["topology"] == topology
    assert behind in found["said"]
    for row in found["results"]:
        assert row["failure"] is None
        assert row["requests"] > 100
        assert row["wrong"] == 0
        assert row["left"] == 0
        if row["key"].startswith("unbroken"):
            assert (row["errors"], row["hung"], row["unwell"]) == (0, 0, 0)
    assert found["breaches"] == []


def test_every_scenario_of_the_clusters_is_for_some_topology() -> None:
    known = topologies.TOPOLOGIES.values()
    for scenario in scenarios.CLUSTERS:
        fitting = [t for t in known if scenario.obstacle(t.backend, small=True, topology=t) is None]
        assert fitting
    verbs = {step.verb.name for scenario in scenarios.CLUSTERS for step in scenario.steps}
    assert all(topology.verbs <= verbs | {"kill"} for topology in known)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"topology": "standbi"}, r"unknown topology 'standbi' \(did you mean 'standby'\?\)"),
        ({"topology": "standby", "servers": "mariadb"}, "remove --servers"),
        ({"topology": "replicaset"}, "is for your own app"),
        ({"topology": "pgbouncer", "scenarios": ["promote"]}, "pgbouncer does not support promote"),
        ({"topology": "standby", "scenarios": ["idle"]}, "unknown scenario 'idle'"),
        ({"scenarios": ["promote"]}, "it needs several servers: --topology standby, replica"),
    ],
)
def test_what_cannot_be_played_is_said_in_a_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        options.order(given)


def test_a_topology_brings_its_own_scenarios_and_contenders() -> None:
    made = options.order({"topology": "galera"})
    names = [scenario.name for scenario in made.drill.scenarios]
    assert names == ["promote", "switchover", "rolling", "reject", "pooler-restart", "rotate"]
    assert {contender.backend for contender in made.drill.contenders} == {"mariadb"}
    assert [line.partition(":")[0] for line in made.left_out] == ["demote is skipped"]
