"""The parts of the fault proxy that have no sockets: lanes, plans, addresses."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.drivers.url import parse
from unbroken.errors import ConfigurationError
from unbroken_drill import FaultProxy, ProxyError
from unbroken_drill.proxy.addresses import Address, address, of_url, through
from unbroken_drill.proxy.direction import FULL, Direction
from unbroken_drill.proxy.plan import PLAIN, UNTOUCHED, Conduct, Rules, Standing

# -- lanes -----------------------------------------------------------------------------------------


def drained(lane: Direction, now: float) -> bytes:
    """All that *lane* gives at one moment."""
    out = b""
    while data := lane.give(now):
        lane.gone(len(data), now)
        out += data
    return out


def run(lane: Direction, now: float = 0.0) -> tuple[bytes, float, list[int]]:
    """Let time pass until *lane* has given all: what, when it was done, and in which pieces."""
    out, pieces = b"", []
    while (when := lane.wake_at()) is not None:
        now = max(now, when)
        data = lane.give(now)
        assert data, "it said that it would have something"
        lane.gone(len(data), now)
        pieces.append(len(data))
        out += data
    return out, now, pieces


CHUNKS = st.lists(st.binary(min_size=1, max_size=200), max_size=8)
RULES = st.builds(
    Rules,
    latency=st.floats(0, 2),
    jitter=st.floats(0, 2),
    rate=st.one_of(st.just(math.inf), st.floats(1, 1e6)),
    piece=st.one_of(st.none(), st.integers(1, 300)),
    gap=st.floats(0, 0.1),
)


@given(chunks=CHUNKS, rules=RULES, seed=st.integers(0, 9))
def test_whatever_the_rules_everything_arrives_once_and_in_order(
    chunks: list[bytes], rules: Rules, seed: int
) -> None:
    lane = Direction(Random(seed), rules)
    for at, chunk in enumerate(chunks):
        lane.take(chunk, at * 0.01)
    out, done, pieces = run(lane)
    assert out == b"".join(chunks)
    assert lane.queued == 0
    assert all(size <= (rules.piece or math.inf) for size in pieces)
    if rules.rate != math.inf and len(pieces) > 1:
        assert done >= (len(out) - pieces[-1]) / rules.rate * 0.999


@given(chunks=CHUNKS, before=RULES, after=RULES)
def test_rules_may_change_at_any_time_and_nothing_is_lost(
    chunks: list[bytes], before: Rules, after: Rules
) -> None:
    lane = Direction(Random(1), before)
    out = b""
    for at, chunk in enumerate(chunks):
        lane.take(chunk, float(at))
        out += drained(lane, float(at))
        lane.obey(after if at % 2 else before)
    lane.obey(PLAIN)
    assert out + drained(lane, 1e9) == b"".join(chunks)


def test_latency_delays_each_chunk_and_jitter_is_repeatable() -> None:
    def arrivals(seed: int) -> list[float]:
        lane = Direction(Random(seed), Rules(latency=1.0, jitter=0.5))
        times = []
        for at in range(20):
            lane.take(b"x", float(10 * at))
            times.append(run(lane)[1] - 10 * at)
        return times

    assert arrivals(7) == arrivals(7) != arrivals(8)
    assert all(0.5 <= time <= 1.5 for time in arrivals(7))
    assert max(arrivals(7)) - min(arrivals(7)) > 0.2


def test_a_hole_that_holds_gives_all_when_healed_and_one_that_drops_counts() -> None:
    lane = Direction(Random(0), Rules(hole="hold"))
    lane.take(b"kept", 0.0)
    assert (lane.give(9.0), lane.wake_at()) == (b"", None)
    lane.obey(PLAIN)
    assert drained(lane, 9.0) == b"kept"
    lane.obey(Rules(hole="drop"))
    lane.take(b"gone", 10.0)
    lane.obey(PLAIN)
    assert (drained(lane, 10.0), lane.dropped) == (b"", 4)


def test_a_full_lane_and_a_stalled_one_want_no_more() -> None:
    lane = Direction(Random(0), Rules(hole="hold"))
    lane.take(bytes(FULL - 1), 0.0)
    assert lane.wants_more
    lane.take(b"x", 0.0)
    assert not lane.wants_more
    assert not Direction(Random(0), Rules(stalled=True)).wants_more


# -- plans -----------------------------------------------------------------------------------------


def test_what_was_said_of_new_connections_adds_up_in_order_and_a_number_means_one() -> None:
    standing = Standing()

    def latency(seconds: float) -> Any:
        return lambda conduct: conduct.on_way(
            "both", lambda rules: Rules(latency=seconds, rate=rules.rate)
        )

    standing.add("existing", latency(9.0))
    standing.add("all", lambda conduct: conduct.on_way("up", lambda rules: Rules(rate=5.0)))
    standing.add("new", latency(1.0))
    standing.add(3, latency(2.0))
    assert standing.conduct(1) == Conduct(up=Rules(latency=1.0, rate=5.0), down=Rules(latency=1.0))
    assert standing.conduct(3) == Conduct(up=Rules(latency=2.0, rate=5.0), down=Rules(latency=2.0))
    standing.clear()
    assert standing.conduct(3) == UNTOUCHED


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("rst", {"on": "both"}, "on='both' must be"),
    ("rst", {"on": 0}, "on=0 must be"),
    ("rst", {"on": True}, "on=True must be"),
    ("blackhole", {"mode": "swallow"}, "mode='swallow' must be one of 'drop', 'hold'"),
    ("stall", {"way": "left"}, "way='left' must be one of"),
    ("latency", {"seconds": -1}, "seconds=-1 must be a number of seconds, at least 0"),
    ("latency", {"seconds": "1"}, "seconds='1' must be"),
    ("latency", {"seconds": 1, "jitter": math.nan}, "jitter=nan must be"),
    ("throttle", {"bytes_per_second": 0}, "must be a number of bytes, more than 0"),
    ("slice", {"bytes": 0}, "bytes=0 must be a whole number of at least 1"),
    ("slice", {"bytes": 1.5}, "bytes=1.5 must be"),
    ("cut_after", {}, "takes either bytes= or seconds="),
    ("cut_after", {"bytes": 1, "seconds": 1}, "takes either bytes= or seconds="),
    ("cut_after", {"bytes": 1, "how": "hard"}, "how='hard' must be one of 'fin', 'rst'"),
    ("fail_next", {"n": -1}, "n=-1 must be"),
    ("idle_limit", {"seconds": 0}, "seconds=0 must be a number of seconds, more than 0"),
    ("idle_limit", {"seconds": 1, "reset": "yes"}, "reset='yes' must be True or False"),
    ("idle_limit", {"seconds": 10**400}, "must be a number of seconds"),
    ("cut_at", {"statement": "COMMIT"}, "cut_at needs the protocol"),
]


@pytest.fixture(scope="module")
def idle_proxy() -> Any:
    with FaultProxy(("127.0.0.1", 9)) as proxy:
        yield proxy


@pytest.mark.parametrize(("verb", "arguments", "said"), WRONG)
def test_what_cannot_be_meant_is_said_at_once(
    idle_proxy: FaultProxy, verb: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        getattr(idle_proxy, verb)(**arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("statement", ["", "  ", 7, None, b"COMMIT"])
def test_a_statement_that_is_none_is_refused(statement: Any) -> None:
    with (
        FaultProxy(("127.0.0.1", 9), protocol="mysql") as proxy,
        pytest.raises(ConfigurationError, match="beginning of a statement"),
    ):
        proxy.cut_at(statement)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("db", 3306), Address("db", 3306)),
        (["db", 3306], Address("db", 3306)),
        ("db:3306", Address("db", 3306)),
        ("[::1]:5432", Address("::1", 5432)),
        ("/run/mysqld.sock", Address(path="/run/mysqld.sock")),
        ("./s", Address(path="./s")),
    ],
)
def test_addresses_are_read_as_people_write_them(given: Any, found: Address) -> None:
    assert address(given, "upstream") == found


@pytest.mark.parametrize(
    "given",
    [
        "db",
        "db:",
        ":1",
        "db:x",
        "a:b:1",
        ("db",),
        ("db", "1"),
        ("", 1),
        7,
        None,
        "mysql://db/x",
        ("a\0b", 1),
        "/a\0b",
    ],
)
def test_what_is_no_address_is_said(given: Any) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"upstream=.* is not an address",
    ):
        address(given, "upstream")


@pytest.mark.parametrize("port", ["99999", "0"])
def test_a_port_that_cannot_be_is_said_with_its_number(port: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"upstream: the port {port} is not a number from 1"
    ):
        address(f"db:{port}", "upstream")


@pytest.mark.parametrize(
    "given", ["x" * 300 + ":1", "\ud800:1", "a b:1", "/" + "x" * 300, Path("x" * 300)]
)
def test_an_address_that_cannot_be_is_a_clear_error_when_it_is_listened_on(given: Any) -> None:
    with pytest.raises(ProxyError) as caught:
        FaultProxy(("127.0.0.1", 9), given).start()
    assert str(caught.value).startswith(("cannot listen on", "cannot resolve"))
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        found = address(text, "upstream")
        assert found.path is not None or 0 < found.port < 65536


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("mysql+pymysql://app:s@db/shop", (Address("db", 3306), "mysql")),
        ("mariadb://app:s@db:33/shop", (Address("db", 33), "mysql")),
        ("postgresql://app:s@[::1]/shop", (Address("::1", 5432), "postgresql")),
        ("mysql://app:s@/shop?unix_socket=/run/s", (Address(path="/run/s"), "mysql")),
        ("postgresql://app:s@/shop?host=/run", (Address(path="/run/.s.PGSQL.5432"), "postgresql")),
        (
            "postgresql+pg8000://app:s@/shop?unix_sock=/run/.s.PGSQL.7",
            (Address(path="/run/.s.PGSQL.7"), "postgresql"),
        ),
        ("mongodb://app:s@db/shop", (Address("db", 27017), None)),
        ("redis://db:6379/0", (Address("db", 6379), None)),
    ],
)
def test_a_url_names_the_server_and_its_protocol(url: str, found: Any) -> None:
    assert of_url(url) == found


@given(st.text(), st.sampled_from(["mysql", "postgresql", "sqlite", "mongodb", "x"]))
def test_any_url_names_a_server_or_is_refused_without_its_password(text: str, scheme: str) -> None:
    for url in (f"{scheme}://{text}", f"{scheme}://app:geheim@{text}", text + "://"):
        with contextlib.suppress(ConfigurationError):
            found, _ = of_url(url)
            assert found.path is not None or 0 < found.port < 65536
    with pytest.raises(ConfigurationError) as caught:
        of_url(f"{scheme}x://app:geheim@a b c")
    assert "geheim" not in str(caught.value)


HERE = Address("127.0.0.1", 4000)


@pytest.mark.parametrize(
    ("url", "leads"),
    [
        ("mysql+pymysql://app:secret@db/shop", "mysql+pymysql://app:secret@127.0.0.1:4000/shop"),
        (
            "mysql+pymysql://app:s%40cret@db:3306/shop?ssl_ca=%2Fca.pem",
            "mysql+pymysql://app:s%40cret@127.0.0.1:4000/shop?ssl_ca=%2Fca.pem",
        ),
        ("mysql://app@/shop?unix_socket=/run/s", "mysql://app@127.0.0.1:4000/shop"),
        ("postgresql://app@/shop?host=/run", "postgresql://app@127.0.0.1:4000/shop"),
        (
            "postgres://app:x@[::1]:5432/shop?sslmode=disable",
            "postgres://app:x@127.0.0.1:4000/shop?sslmode=disable",
        ),
        (
            "mongodb://app:x@a:1,b:2/shop?replicaSet=r",
            "mongodb://app:x@127.0.0.1:4000/shop?replicaSet=r",
        ),
        ("jdbc:postgresql://db:5432/shop", "jdbc:postgresql://127.0.0.1:4000/shop"),
        ("redis://db:6379/0", "redis://127.0.0.1:4000/0"),
    ],
)
def test_a_url_leads_through_the_proxy_and_is_else_the_same(url: str, leads: str) -> None:
    assert through(url, HERE) == leads


@pytest.mark.parametrize(
    "url", ["", "db:3306", "sqlite:///file.db", "mongodb+srv://db/shop", "mysql+pymysqll"]
)
def test_what_is_no_servers_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        through(url, HERE)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("mysql+pymysql://app:x@db:3306/shop", "/tmp/s"),
        ("postgresql+psycopg://app:x@db:1/shop?sslmode=disable", "/tmp/.s.PGSQL.5432"),
        ("postgresql+pg8000://app:x@db:1/shop", "/tmp/.s.PGSQL.5432"),
    ],
)
def test_a_url_leads_through_a_unix_socket(url: str, path: str) -> None:
    before, after = parse(url), parse(through(url, Address(path=path)))
    assert after.unix_socket in (path, "/tmp")
    assert (after.host, after.user, after.password, after.database) == (
        None,
        before.user,
        before.password,
        before.database,
    )


def test_postgresqls_sockets_have_names_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match=r"\.s\.PGSQL\.5432"):
        through("postgresql://app@db/shop", Address(path="/tmp/s"))
