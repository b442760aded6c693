"""Whether a statement may leave something on its PostgreSQL session: a setting, an advisory lock, a LISTEN.

For a driver that knows nothing of that for free, and cleans a session only when it must. The careful answer is yes: it
costs one round trip. A trigger's, a view's or an operator's function is beyond a text's reach.
"""

from __future__ import annotations

from functools import lru_cache

from unbroken.core.purity import PURE, RESERVED
from unbroken.core.tokens import QUOTED, Refusal, readings, words

#: Texts longer than this are not read: reading costs more than the round trip.
LONGEST_READ = 8_000

_FIRST = words(
    "SELECT WITH VALUES TABLE INSERT UPDATE DELETE MERGE COPY BEGIN START COMMIT END ROLLBACK ABORT SAVEPOINT RELEASE SHOW "
    "EXPLAIN FETCH MOVE CLOSE NOTIFY LOCK SET"
)
#: These SETs end with the transaction.
_UNTIL_THE_END = frozenset({"LOCAL", "TRANSACTION", "CONSTRAINTS"})
#: Functions that are not free of effects, but leave nothing on the session that another could notice.
_LEAVE_NOTHING = words(
    "NEXTVAL SETVAL CURRVAL LASTVAL PG_ADVISORY_XACT_LOCK PG_ADVISORY_XACT_LOCK_SHARED PG_TRY_ADVISORY_XACT_LOCK "
    "PG_TRY_ADVISORY_XACT_LOCK_SHARED PG_NOTIFY PG_LISTENING_CHANNELS TXID_CURRENT PG_CURRENT_XACT_ID SET_BIT GET_BIT"
)
#: Words that no function can be named after, so that a parenthesis behind them only groups.
_GROUPS = RESERVED | words("ANY SOME GROUP LATERAL RETURNING INTO WITH TO TABLE WHEN UNIQUE ONLY ARRAY ROW GROUPING")
#: As above, but only behind these words.
_AFTER = {
    **dict.fromkeys(("OVER", "FILTER"), frozenset({")"})), "BY": words("ORDER GROUP PARTITION"), "CONFLICT": words("ON"),
    "SETS": words("GROUPING"), "MATERIALIZED": words("AS NOT"), "JOIN": words("INNER LEFT RIGHT OUTER CROSS FULL"),
    "INSERT": words("THEN"), "UPDATE": words("FOR KEY"), "OF": words("UPDATE SHARE"), "ROLLUP": words("BY ,"), "CUBE": words("BY ,"),
}  # fmt: skip
_OPENS = words("EXPLAIN COPY")  # at the beginning
_NAMES_A_TABLE = words("AS INTO COPY RECURSIVE UPDATE")


def may_stay(sql: str) -> bool:
    """Whether *sql* may leave something on its session. 0.1 µs for a text seen before; never raises."""
    return _cached(sql) if len(sql) <= LONGEST_READ else True


def _judged(sql: str) -> bool:
    return any(tokens is not Refusal.REJECTED and _one(tokens) for tokens in readings(sql))


_cached = lru_cache(maxsize=2000)(_judged)


def _one(tokens: list[str] | Refusal) -> bool:
    if isinstance(tokens, Refusal):
        return True
    while tokens and tokens[-1] == ";":
        tokens.pop()
    if ";" in tokens:
        return True
    first = next((t for t in tokens if t != "("), "").rstrip("(")
    if first not in _FIRST:
        return bool(tokens)  # nothing but blanks and comments leaves nothing
    if first == "SET":
        return tokens[1:2] == [] or tokens[1] not in _UNTIL_THE_END
    if first == "COPY" and "PROGRAM" in tokens:
        return True
    return any(t.endswith("(") and not _is_harmless(tokens, at) for at, t in enumerate(tokens))


def _is_harmless(tokens: list[str], at: int) -> bool:
    """Whether the parenthesis that opens at *at* only groups, lists columns, or calls a function that leaves nothing."""
    if tokens[at] == "(":
        if at == 0 or not _could_be_called(tokens[at - 1]):
            return True
        name, before = tokens[at - 1].rstrip("("), at - 2
    else:
        name, before = tokens[at][:-1], at - 1
    previous = tokens[before] if before >= 0 else ""
    if previous in _AFTER.get(name, ()) or (before < 0 and name in _OPENS) or (name == "SET" and "UPDATE" in tokens[:at]):
        return True
    if name in _GROUPS or name in PURE or name in _LEAVE_NOTHING:
        return previous != "." or tokens[before - 1] == "PG_CATALOG"
    while previous == ".":  # shop.orders (id, …)
        before -= 2
        previous = tokens[before] if before >= 0 else ""
    if previous in _NAMES_A_TABLE:
        return True
    return previous == ":" and before > 0 and tokens[before - 1] == ":"  # ::varchar(20)


def _could_be_called(token: str) -> bool:
    return token.isidentifier() or token == QUOTED
