"""What MongoDB's client costs through the layer: one find_one, and the question which process this
is.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from measure import Effort, Result, Row, Slice, Table, Target, best_of, interleaved, repeated
from paired import Found, compare

from unbroken_drill.servers import MongoDB

OURS, THEIRS = "unbroken.mongo.MongoClient", "pymongo.MongoClient, the same timeouts"
AGAIN, BARE = "pymongo.MongoClient, the same once more", "pymongo.MongoClient, as it comes"


def run(effort: Effort) -> Result:
    """Both clients on one server, a replica set of one, over loopback."""
    result = Result()
    legs, seconds = (6, 0.5) if effort.repeats == 1 else (24, 2.0)
    with MongoDB(replica_set="one") as server:
        found, busy = compare(
            lambda label: finding(server, label), (OURS, AGAIN, BARE), THEIRS, legs, seconds
        )
        with clients(server, OURS, THEIRS) as made:
            asking = {
                label: repeated(lambda client=client: client._get_topology())
                for label, client in made.items()
            }
            asked = interleaved(asking, replace(effort, rounds=effort.rounds * 5), THEIRS)
    result.tables.append(
        Table("MongoDB: find_one of a small document", "µs", rows(found), THEIRS, said(found))
    )
    result.tables.append(
        Table(
            "MongoDB: the same, processor time of the calling thread only",
            "µs",
            rows(busy),
            THEIRS,
            said(busy),
        )
    )
    result.tables.append(
        Table(
            "MongoDB: which process's topology is this, asked at each operation",
            "µs",
            asked,
            THEIRS,
        )
    )
    ratio, control = found.ratios[OURS], found.ratios[AGAIN]
    promise = (
        f"MongoDB: find_one at most 2 % above the plain client: {ratio}; the plain client beside"
        f" itself: {control}"
    )
    result.targets.append(Target(f"{promise}. Judged by the upper end", ratio.high, 1.02))
    result.targets.append(
        Target("MongoDB: one access at most 0.5 µs", best_of(asked, OURS) * 1e6, 0.5, "µs")
    )
    return result


@contextlib.contextmanager
def clients(server: MongoDB, *labels: str) -> Iterator[dict[str, Any]]:
    """A new client for each of *labels*."""
    from pymongo import MongoClient

    import unbroken.mongo
    from unbroken.integrations.mongo.client_options import DEFAULTS

    with contextlib.ExitStack() as stack:
        kinds: dict[str, Any] = {OURS: unbroken.mongo.MongoClient}
        given = {label: {} if label == BARE else dict(DEFAULTS) for label in labels}
        yield {
            label: stack.enter_context(kinds.get(label, MongoClient)(server.url(), **given[label]))
            for label in labels
        }


@contextlib.contextmanager
def finding(server: MongoDB, label: str) -> Iterator[Slice]:
    """find_one with a new client."""
    with clients(server, label) as made:
        items = made[label].bench.items
        items.replace_one({"_id": 1}, {"name": "lamp"}, upsert=True)
        yield repeated(lambda: items.find_one({"_id": 1}))


def rows(found: Found) -> list[Row]:
    """One for each client; the ratio is that of the pairs."""
    ratios = {name: ratio.middle for name, ratio in found.ratios.items()}
    made = [
        Row(name, min(times), statistics.median(times), ratios.get(name, 1.0))
        for name, times in found.times.items()
    ]
    return sorted(made, key=lambda row: row.ratio or 0)


def said(found: Found) -> str:
    """How sure the ratios are."""
    sure = "\n".join(f"- {name}: {ratio}" for name, ratio in found.ratios.items())
    return (
        'The ratio is the median of neighbouring blocks\' ratios. The row "once more" shows the'
        f" resolution of the method.\n\n{sure}"
    )
