"""What MongoDB's client costs through the layer: one find_one, and the question which process this is."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from measure import Effort, Result, Slice, Table, Target, best_of, interleaved, repeated

from unbroken.testing.servers import MongoDB

OURS, THEIRS = "unbroken.mongo.MongoClient", "pymongo.MongoClient, the same timeouts"


def run(effort: Effort) -> Result:
    """Both clients on one server, a replica set of one, over loopback."""
    from pymongo import MongoClient

    import unbroken.mongo
    from unbroken.integrations.mongo.plan import DEFAULTS

    result = Result()
    finding: dict[str, Slice] = {}
    asking: dict[str, Slice] = {}
    with MongoDB(replica_set="one") as server, contextlib.ExitStack() as stack:
        for label, kind in ((OURS, unbroken.mongo.MongoClient), (THEIRS, MongoClient), ("pymongo.MongoClient, as it comes", MongoClient)):
            given: dict[str, Any] = {} if label.endswith("comes") else dict(DEFAULTS)
            client = stack.enter_context(kind(server.url(), **given))
            items = client.bench.items
            items.replace_one({"_id": 1}, {"name": "lamp"}, upsert=True)
            finding[label] = repeated(lambda items=items: items.find_one({"_id": 1}))
            asking[label] = repeated(lambda client=client: client._get_topology())
        found = interleaved(finding, replace(effort, rounds=effort.rounds * 4), THEIRS)
        asked = interleaved(asking, effort, THEIRS)
    result.tables.append(Table("MongoDB: find_one of a small document", "µs", found, THEIRS))
    result.tables.append(Table("MongoDB: which process's topology is this, asked at each operation", "µs", asked, THEIRS))
    result.targets.append(
        Target("MongoDB: find_one at most 2 % above the plain client", best_of(found, OURS) / best_of(found, THEIRS), 1.02)
    )
    result.targets.append(Target("MongoDB: one access at most 0.5 µs", best_of(asked, OURS) * 1e6, 0.5, "µs"))
    return result
