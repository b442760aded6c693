"""A request of one SELECT behind a network that takes its time: a proxy between the pool and the
server adds 0 to 2 ms each way.

The whole request counts: take a connection, SELECT, end the transaction, give the connection back.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape

from contenders import MYSQL, POSTGRESQL, Contenders
from measure import Effort, Result, Row, Table, Target
from requesting import Apart

import unbroken
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

DELAYS = (0.0, 0.0005, 0.001, 0.002)  #: seconds each way
PROMISED = 0.001  #: the delay of which the promises speak
#: (threads or tasks, connections of the pool)
CROWDS = ((1, 1), (8, 4), (32, 8))
#: What is measured: round_trips counts for all.
_LEFT_OUT = frozenset({
    "unbroken, psycopg2", "unbroken, pg8000", "psycopg_pool", "unbroken.django, atomic",
    "Django, health checks, atomic", "Django, persistent, atomic", "unbroken.peewee, atomic",
    "playhouse.pool, atomic", "SQLAlchemy, aiomysql", "SQLAlchemy, asyncpg",
})  # fmt: skip
#: Ours, a peer with the same driver, and the share of its time that ours may take.
_MYSQL = (
    ("unbroken, pymysql", "SQLAlchemy, pymysql", 0.55),
    ("unbroken's plugin, pymysql", "SQLAlchemy, pymysql", 0.55),
    ("unbroken, pymysql", "SQLAlchemy, pymysql, pre_ping", 0.4),
    ("unbroken's plugin, pymysql", "SQLAlchemy, pymysql, pre_ping", 0.4),
)
_POSTGRESQL = (
    ("unbroken, psycopg", "psycopg_pool, check", 0.4),
    ("unbroken, psycopg", "SQLAlchemy, psycopg, pre_ping", 0.4),
    ("unbroken's plugin, psycopg", "SQLAlchemy, psycopg, pre_ping", 0.4),
)
_NOTE = (
    "The columns: the network's milliseconds each way, median and 99 % of a request. The last one"
    f" is the time for one request of all, at {PROMISED * 1e3:g} ms."
)
_FAIR = (
    "With more threads than connections a median says little. unbroken lets a"
    " running thread overtake for 10 ms at most, so all threads share the connections. SQLAlchemy's"
    " pool sets no bound. So a few threads never wait, and the others wait long (99 %)."
    " "
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one contender took with one delay and one crowd, in seconds."""

    middle: float
    late: float  #: 99 of 100 took less
    each: float  #: of the crowd's time, for one request


#: By contender, crowd and delay.
Cells = dict[tuple[str, tuple[int, int], float], Cell]


def run(effort: Effort) -> Result:
    """All contenders of one kind of server, in turns, with each delay and each crowd."""
    result = Result()
    seconds = 0.25 if effort.repeats == 1 else 1.0
    for kind, contenders, promises in (
        (MariaDB, MYSQL, _MYSQL),
        (PostgreSQL, POSTGRESQL, _POSTGRESQL),
    ):
        chosen = {name: each for name, each in contenders.items() if name not in _LEFT_OUT}
        with kind({"max_connections": 300}) as server:
            _measure(result, server, chosen, promises, seconds)
    return result


def _measure(
    result: Result,
    server: Server,
    contenders: Contenders,
    promises: tuple[tuple[str, str, float], ...],
    seconds: float,
) -> None:
    make_table(server)
    name = type(server).__name__
    cells: Cells = {}
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy((server.host, server.port)))
        apart = {
            one: stack.enter_context(Apart(opener, is_async))
            for one, (opener, is_async, _) in contenders.items()
        }
        url = proxy.url(server.url(None))
        for crowd in CROWDS:
            for one, process in apart.items():
                proxy.heal()
                process.open(url, crowd[1])
                for delay in DELAYS:
                    proxy.latency(delay)
                    cells[one, crowd, delay] = _cell(process.times(crowd[0], seconds), crowd[0])
                proxy.heal()
                process.close()
    for crowd in CROWDS:
        result.tables.append(_table(name, contenders, cells, crowd))
        if crowd[0] <= 8:
            result.targets += _targets(name, cells, crowd, promises)
    curves = {one: [cells[one, CROWDS[0], delay].middle for delay in DELAYS] for one in contenders}
    result.plots[f"latency-{name.lower()}"] = draw(curves, f"{name}: one SELECT, one thread")


def make_table(server: Server) -> None:
    """An empty one, to select from."""
    driver = "psycopg" if server.backend == "postgresql" else "pymysql"
    with unbroken.Pool(server.url(driver)) as pool, pool.connection() as conn:
        conn.cursor().execute("CREATE TABLE stock (n INT)")


def _cell(found: list[float], workers: int) -> Cell:
    ordered = sorted(found)
    middle, late = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return Cell(middle, late, sum(ordered) / workers / len(ordered))


def _table(name: str, contenders: Contenders, cells: Cells, crowd: tuple[int, int]) -> Table:
    rows = []
    for one in contenders:
        found = [cells[one, crowd, delay] for delay in DELAYS]
        first, *rest = [figure for cell in found for figure in (cell.middle, cell.late)]
        each = cells[one, crowd, PROMISED].each
        rows.append(Row(one, first, rest[0], None, (*rest[1:], each)))
    order = {row.name: cells[row.name, crowd, PROMISED].middle for row in rows}
    rows.sort(key=lambda row: order[row.name])
    columns = [f"{delay * 1e3:g} ms {which}" for delay in DELAYS[1:] for which in ("50 %", "99 %")]
    workers = "one thread" if crowd[0] == 1 else f"{crowd[0]} threads or tasks"
    return Table(
        f"One SELECT behind a network, {name}: {workers}, pool of {crowd[1]}",
        "ms",
        rows,
        note=f"{_NOTE} {_FAIR if crowd[0] > crowd[1] else ''}{_losses(contenders, cells, crowd)}",
        labels=("0: 50 %", "99 %"),
        columns=(*columns, f"{PROMISED * 1e3:g} ms, each"),
    )


def _losses(contenders: Contenders, cells: Cells, crowd: tuple[int, int]) -> str:
    """Where a peer is quicker: what one request costs of the crowd's time, as a share of its."""
    lost = []
    for one, (*_, group) in contenders.items():
        peers = [p for p, (*_, g) in contenders.items() if g == group and not _is_ours(p)]
        if not _is_ours(one) or not peers:
            continue
        for delay in DELAYS:
            best = min(peers, key=lambda peer: cells[peer, crowd, delay].each)
            ratio = cells[one, crowd, delay].each / cells[best, crowd, delay].each
            if ratio > 1:
                lost.append(f"- {one}, at {delay * 1e3:g} ms: {ratio:.2f} of {best}")
    if not lost:
        return "No peer takes less time for one request of all."
    return "\n".join(["Slower than a peer, by the time for one request of all:\n", *lost])


def _is_ours(name: str) -> bool:
    return name.startswith("unbroken")


def _targets(
    name: str,
    cells: Cells,
    crowd: tuple[int, int],
    promises: tuple[tuple[str, str, float], ...],
) -> list[Target]:
    found = []
    for ours, peer, limit in promises:
        mine, theirs = cells[ours, crowd, PROMISED], cells[peer, crowd, PROMISED]
        what = f"{name}, 1 ms each way, {crowd[0]} at once on {crowd[1]}: {ours} beside {peer}"
        if crowd[0] == 1:
            found.append(Target(f"{what}, median", mine.middle / theirs.middle, limit))
        else:  # throughput
            found.append(Target(f"{what}, time for one of all", mine.each / theirs.each, limit))
    return found


# -- the picture -----------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 400, 60, 560, 40, 350
_SHADES = (
    "#0b7a4b", "#16a085", "#2980b9", "#8e44ad", "#27ae60", "#1f618d", "#6c3483", "#117864",
    "#2e86c1",
)  # fmt: skip
_PEERS = ("#c0392b", "#e67e22", "#7f6000", "#34495e", "#7f8c8d")


def draw(curves: dict[str, list[float]], title: str) -> str:
    """Milliseconds of a request (the median) by the network's delay; others' pools are dashed."""
    top, last = max(map(max, curves.values())), DELAYS[-1]

    def x(delay: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * delay / last

    def y(seconds: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * seconds / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<path d="M{_LEFT},{_TOP} V{_BOTTOM} H{_RIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{_LEFT - 8}" y="{_TOP + 4}" text-anchor="end">{top * 1e3:.0f} ms</text>',
        *(
            f'<text x="{x(delay):.0f}" y="{_BOTTOM + 18}" text-anchor="middle">{delay * 1e3:g}'
            "</text>"
            for delay in DELAYS
        ),
        f'<text x="{_LEFT}" y="{_BOTTOM + 40}">ms of the network, each way</text>',
    ]
    ours, peers = iter(_SHADES), iter(_PEERS)
    ordered = sorted(curves.items(), key=lambda item: -item[1][-1])
    for number, (name, curve) in enumerate(ordered):
        is_ours = _is_ours(name)
        shade = next(ours if is_ours else peers, "#7f8c8d")
        points = " ".join(f"{x(d):.1f},{y(v):.1f}" for d, v in zip(DELAYS, curve, strict=True))
        dashes = "" if is_ours else ' stroke-dasharray="6 4"'
        line = _TOP + 14 + number * 22
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{shade}" stroke-width="2"{dashes}/>',
            f'<path d="M{_RIGHT + 20},{line - 4} h24" stroke="{shade}" stroke-width="2"{dashes}/>'
            f'<text x="{_RIGHT + 50}" y="{line}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
