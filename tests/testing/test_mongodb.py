"""MongoDB for tests: alone, as a set of one, and as a set of three that elects."""

from __future__ import annotations

import json
import socket

import pytest

from unbroken_drill.servers import MongoDB, MongoReplicaSet, ServerError
from unbroken_drill.servers.wire_mongo import decode, encode


def store(server: MongoDB, number: int) -> None:
    server.command(
        {"insert": "numbers", "documents": [{"n": number}], "writeConcern": {"w": "majority"}},
        "shop",
    )


def stored(server: MongoDB) -> list[int]:
    batch = server.command({"find": "numbers", "filter": {}}, "shop")["cursor"]["firstBatch"]
    return [document["n"] for document in batch]


def test_what_is_encoded_is_decoded() -> None:
    document = {
        "text": "é",
        "number": -5,
        "large": 1 << 40,
        "real": 1.5,
        "yes": True,
        "nothing": None,
        "list": [1, {"a": "b"}],
        "empty": {},
    }
    assert decode(encode(document), 0)[0] == document


def test_a_server_alone_keeps_what_it_stored_through_restart_and_crash() -> None:
    with MongoDB({"cursorTimeoutMillis": 5000}) as server:
        assert server.url() == f"mongodb://127.0.0.1:{server.port}/shop"
        assert (
            json.loads(server.admin('{"getParameter": 1, "cursorTimeoutMillis": 1}')[0][0])[
                "cursorTimeoutMillis"
            ]
            == 5000
        )
        store(server, 1)
        server.restart()
        store(server, 2)
        server.crash()
        assert stored(server) == [1, 2]
        with server.temporarily(cursorTimeoutMillis=6000):
            assert server._present("cursorTimeoutMillis") == 6000
        assert server._present("cursorTimeoutMillis") == 5000
        with pytest.raises(ServerError, match="no such command"):
            server.command({"nonsense": 1})
        with pytest.raises(ServerError, match="cannot end a client's session"):
            server.kill_sessions()


def test_its_clients_are_its_sessions() -> None:
    with MongoDB() as server, socket.create_connection((server.host, server.port)) as client:
        hello = encode({"hello": 1, "$db": "admin"})
        client.sendall(
            (16 + 5 + len(hello)).to_bytes(4, "little")
            + b"\1\0\0\0"
            + b"\0" * 4
            + b"\xdd\7\0\0"
            + b"\0" * 5
            + hello
        )
        assert client.recv(10)
        mine = "{}:{}".format(*client.getsockname())
        # and not the one that asks
        assert [session.peer for session in server.sessions()] == [mine]


def test_a_frozen_server_answers_when_it_is_thawed() -> None:
    with MongoDB() as server:
        server.freeze()
        with pytest.raises(ServerError, match="no answer"):
            server.command({"ping": 1}, timeout=0.3)
        server.thaw()
        assert server.command({"ping": 1})["ok"]


def test_a_set_of_one_takes_transactions() -> None:
    with MongoDB(replica_set="one") as server:
        assert server.url().endswith("/shop?replicaSet=one")
        assert server.is_primary
        store(server, 1)
        server.crash()
        server.wait_primary()
        assert stored(server) == [1]


def test_a_set_of_three_elects_another_primary() -> None:
    with MongoReplicaSet(3) as group:
        first = group.wait_primary()
        assert group.url().count(",") == 2
        store(first, 1)
        second = group.step_down()
        assert second is not first
        store(second, 2)
        second.kill()
        third = group.wait_primary(but=second)
        assert sorted(stored(third)) == [1, 2]
