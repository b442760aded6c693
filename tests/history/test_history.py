"""No acknowledged write is lost, none is stored twice, none that was refused is stored, whatever
happens meanwhile.

Eight clients of each kind run units of work while the server, the way to it and their own process
suffer faults; then what they were told is compared with what is stored. ``make test`` gives each
kind a second or two, ``make soak`` 600 to each family of them. ``UNBROKEN_SECONDS=60`` changes
both, ``UNBROKEN_SEED=7`` the history.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from unbroken_drill.servers import Server

from .cases import CARELESS, CASES, CLUSTERS, FAMILIES, Case
from .faults import DECKS
from .run import play, play_family

SECONDS = float(os.environ.get("UNBROKEN_SECONDS", "0"))
SEED = int(os.environ.get("UNBROKEN_SEED", "1"))
LONG = SECONDS or 600.0


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[Case], Server]]:
    """A server of each kind, for these tests alone."""
    made: dict[str, Server] = {}
    with ExitStack() as stack:

        def server(case: Case) -> Server:
            kind = f"{case.backend} {case.tls} {case.topology} {case.may_lose}"
            if kind not in made:
                made[kind] = stack.enter_context(case.server())
            return made[kind]

        yield server


#: MySQL and MongoDB start slowly; one driver in C by TLS stands for all, and one of MongoDB's sets.
#: ``make soak`` plays them all.
LONG_ONLY = (
    {case.name for case in CASES.values() if case.backend == "mysql" or case.tls}
    | {"pymongo_async", "set-pymongo", "set-pymongo_async"}
    | {case.name for case in CLUSTERS[1:3] + CLUSTERS[4:]}
)
SHORT = [
    name
    for name in CASES
    if name not in LONG_ONLY - {"tls-mysqldb", "tls-psycopg", "set-tls-pymongo"}
]


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("name", SHORT)
def test_what_clients_were_told_is_what_is_stored(
    server_of: Callable[[Case], Server], name: str
) -> None:
    case = CASES[name]
    report = play(case, server_of(case), SECONDS or 1.0, SEED)
    print(report)
    assert report.wrongs == {}
    assert report.acknowledged > 20
    assert set(report.faults) >= set(DECKS[case.deck][1])
    assert report.children[:1] == [0]
    if case.deck == "plain":
        assert report.cuts >= 1
        assert report.unknown >= 1


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("careless", 1.0), pytest.param("careless-pymongo", 20.0, marks=pytest.mark.soak)],
)
def test_a_client_that_tries_again_whatever_was_lost_is_caught(
    server_of: Callable[[Case], Server], name: str, seconds: float
) -> None:
    case, seeds = CARELESS[name], range(SEED, SEED + 5)
    # On a busy machine so short a history may hold no commit whose answer was lost.
    assert any(
        {"doubled", "counters"} & set(play(case, server_of(case), seconds, seed).wrongs)
        for seed in seeds
    )


@pytest.mark.parametrize("name", ["lossy-standby-psycopg", "lossy-replica-pymysql"])
def test_what_asynchronous_replication_loses_is_counted_apart(name: str) -> None:
    case = CASES[name]
    with case.server() as site:
        report = play(case, site, SECONDS or 1.0, SEED)
    print(report)
    assert report.wrongs == {}
    assert report.lost_by_replication > 0


@pytest.mark.soak
@pytest.mark.timeout(LONG + 1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_for_long(family: str) -> None:
    report = play_family(family, LONG, SEED)
    assert report.wrongs == {}
    assert report.acknowledged > LONG
    decks = {case.deck for case in FAMILIES[family]}
    assert report.cuts >= LONG / 6 or decks != {"plain"}
    assert report.unknown >= LONG / 60
    # replayable() counts none, nor does PyMongo
    assert family in ("frameworks", "healing", "mongodb") or report.replays > 0
    assert (family == "healing") <= (report.healed > 0)
