"""What clients do to the database: units of work, each made of a seed and its number alone, so that
the checker knows them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Self

ACCOUNTS = 12
COUNTERS = 3
START = 1000  #: what each account holds at first

Kind = Literal["insert", "insert many", "transfer", "increment", "look"]
Manner = Literal["unit", "plain", "impatient", "fickle", "forgotten"]
KINDS: tuple[Kind, ...] = ("insert", "insert many", "transfer", "increment", "look")
MANNERS: tuple[Manner, ...] = ("unit", "plain", "impatient", "fickle", "forgotten")


class Statement(str):
    """A statement in SQL; ``means`` is the same for a database that has none: collection, what is
    done to it, and its arguments. ``answer`` is the only right one, where there is but one.
    """

    __slots__ = ("answer", "means")
    means: tuple[str, str, tuple[dict[str, Any], ...]]
    answer: int | None

    def __new__(cls, sql: str, collection: str, method: str, *arguments: dict[str, Any]) -> Self:
        made = super().__new__(cls, sql)
        made.means, made.answer = (collection, method, arguments), None
        return made


#: A statement to be executed, or seconds to be waited.
Step = Statement | float


class ChangedMindError(Exception):
    """The application's own error, at the end of a unit's work."""


class MixedAnswersError(Exception):
    """A statement got the answer to another one."""


def heard(step: Statement, rows: Any) -> None:
    """Hold what *step* was answered against what it asked, where its rows are known."""
    if step.answer is not None and isinstance(rows, list):
        found = [tuple(row) for row in rows]
        if found != [(step.answer,)]:
            raise MixedAnswersError(f"asked for {step.answer}, and got {found[:3]}")


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of work.

    *manner* says how it is to be run. ``unit``: replayed where that is safe, with time enough, so
    that its client has to see either success or a COMMIT in doubt. ``plain``: a transaction that
    nobody replays. ``impatient``: replayed, with a deadline. ``fickle``: it raises an error of its
    own when all is done, and must leave nothing. ``forgotten``: its connection is given back
    without a COMMIT, where a client can do that, and it must leave nothing either.
    """

    number: int
    kind: Kind
    manner: Manner = "unit"
    parts: int = 1  #: rows (number, 0), (number, 1) …; an increment and a look leave none
    source: int = 0
    target: int = 1
    amount: int = 1
    counter: int = 0
    reads: bool = False  #: looks before it writes
    pause: float = 0.0  #: seconds between its statements
    deadline: float | None = None

    @property
    def again(self) -> bool:
        """Whether it is to be replayed where that is safe."""
        return self.manner not in ("plain", "forgotten")

    def steps(self, *, is_forgotten: bool = False) -> Iterator[Step]:
        """Its statements and pauses, anew for each attempt. *is_forgotten*: its client will not
        commit.
        """
        if self.reads:
            where = {"_id": self.source}
            yield Statement(
                f"SELECT balance FROM accounts WHERE id = {self.source}",
                "accounts",
                "find_one",
                where,
            )
        for statement in self._writes():
            yield statement
            yield self.pause
        if self.manner == "fickle" or (self.manner == "forgotten" and not is_forgotten):
            raise ChangedMindError(f"unit {self.number} changed its mind")

    def _writes(self) -> Iterator[Statement]:
        if self.kind == "look":
            yield self._asks(self.number)
            yield Statement("SELECT COUNT(*) FROM counters", "counters", "find_one", {"_id": 0})
            yield self._asks(self.number + 1)
        elif self.kind == "increment":
            yield _add("counters", "value", self.counter, 1)
        elif self.kind == "transfer":
            yield _add("accounts", "balance", self.source, -self.amount)
            yield self._insert(0)
            yield _add("accounts", "balance", self.target, self.amount)
        elif self.parts > 2:  # one statement of two rows, then a statement for each other
            yield self._insert(0, 1)
            yield from (self._insert(part) for part in range(2, self.parts))
        else:
            yield from (self._insert(part) for part in range(self.parts))

    def _asks(self, answer: int) -> Statement:
        """A question that nobody else asks just now."""
        asked = Statement(f"SELECT {answer}", "accounts", "find_one", {"_id": self.source})
        asked.answer = answer
        return asked

    def _insert(self, *parts: int) -> Statement:
        rows = ", ".join(f"({self.number}, {part})" for part in parts)
        return Statement(
            f"INSERT INTO numbers VALUES {rows}",
            "numbers",
            "insert",
            *({"n": self.number, "part": part} for part in parts),
        )


def _add(table: str, column: str, which: int, amount: int) -> Statement:
    sql = (
        f"UPDATE {table} SET {column} = {column} {'-' if amount < 0 else '+'} {abs(amount)} WHERE"
        f" id = {which}"
    )
    return Statement(sql, table, "update_one", {"_id": which}, {"$inc": {column: amount}})


class Workload:
    """All units of one *seed*, by number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def unit(self, number: int) -> Unit:
        """The unit with that number: always the same."""
        rng = Random(f"{self.seed}:{number}")
        kind = rng.choices(KINDS, [30, 17, 26, 12, 15])[0]
        manner = rng.choices(MANNERS, [62, 12, 8, 9, 9])[0]
        source, target = rng.sample(range(ACCOUNTS), 2)
        return Unit(
            number, kind, manner,
            parts={"insert": 1, "insert many": rng.randint(2, 4), "transfer": 1, "increment": 0, "look": 0}[kind],  # noqa: E501
            source=source, target=target, amount=rng.randint(1, 50),
            counter=rng.randrange(COUNTERS), reads=rng.random() < 0.3, pause=rng.random() * 0.003,
            deadline=rng.uniform(0.1, 0.5) if manner == "impatient" else None,
        )  # fmt: skip


def schema(is_mysql: bool, user: str) -> Iterable[str]:
    """Statements that make the tables, empty and at their beginnings.

    ``numbers`` has no key: what is stored twice is there twice.
    """
    engine = " ENGINE=InnoDB" if is_mysql else ""
    columns = {
        "numbers": "n BIGINT, part INT",
        "accounts": "id INT PRIMARY KEY, balance BIGINT",
        "counters": "id INT PRIMARY KEY, value BIGINT",
    }
    for table, described in columns.items():
        yield f"DROP TABLE IF EXISTS {table}"
        yield f"CREATE TABLE {table} ({described}){engine}"
        if not is_mysql:
            yield f'GRANT ALL ON {table} TO "{user}"'
    yield f"INSERT INTO accounts VALUES {', '.join(f'({n}, {START})' for n in range(ACCOUNTS))}"
    yield f"INSERT INTO counters VALUES {', '.join(f'({n}, 0)' for n in range(COUNTERS))}"
