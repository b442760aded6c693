"""All bodies by their names, and what does not apply to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .bodies import AsyncPoolBody, AsyncSQLAlchemyBody, Body, PoolBody, SQLAlchemyBody
from .frameworks import AsyncPeeweeBody, DjangoBody, MongoBody, PeeweeBody

BODIES: dict[str, type[Body]] = {
    kind.name: kind
    for kind in (
        PoolBody, AsyncPoolBody, SQLAlchemyBody, AsyncSQLAlchemyBody, DjangoBody, PeeweeBody,
        AsyncPeeweeBody, MongoBody,
    )
}  # fmt: skip

_OWN_LINE = (
    "PyMongo's own pool has the connections: callers wait in its line, and it closes what ended"
)
_OWN_WORDS = "SQLAlchemy's own TimeoutError says so, in the words that its users know"
_NO_KILL = "MongoDB cannot end a client's session"
#: What does not apply to a body, by the name of the test, and why.
EXCEPT: dict[str, dict[str, str]] = {
    "mongodb": {
        "test_while_the_server_is_full_returned_connections_serve_those_who_wait": _OWN_LINE,
        "test_a_returned_connection_wakes_one_that_waits": _OWN_LINE,
        "test_a_full_pool_says_the_same_in_every_body": _OWN_LINE,
        "test_connections_that_end_while_idle_are_replaced_and_lose_no_place": _NO_KILL,
        "test_a_connection_that_ended_while_idle_never_reaches_the_application": _NO_KILL,
        "test_an_outage_is_told_in_the_same_words_by_every_body": "it tells of whole clusters",
        "test_a_deadline_bounds_work_and_says_so": "PyMongo's timeoutMS is its deadline",
    },
    "sqlalchemy": {"test_a_full_pool_says_the_same_in_every_body": _OWN_WORDS},
    "async sqlalchemy": {"test_a_full_pool_says_the_same_in_every_body": _OWN_WORDS},
}


def those_with(test: str) -> list[str]:
    """The names of the bodies to which *test* applies."""
    return [name for name in BODIES if test not in EXCEPT.get(name, {})]


@contextmanager
def opened(
    name: str,
    server_url: Callable[[str], str],
    size: int,
    patience: float = 20.0,
    **settings: object,
) -> Iterator[Body]:
    """The body called *name*, closed at the end."""
    body = BODIES[name](server_url, size, patience, **settings)
    try:
        yield body
    finally:
        body.close()
