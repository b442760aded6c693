"""A COMMIT that the server answers with an error that proves nothing, through each framework: told
as unknown, and never run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

import unbroken
import unbroken.wsgi
from unbroken.errors import CommitUnknownError
from unbroken.ledger.verdicts import Fate
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from ..pool.answering import Relay, relay_to
from .frameworks import DjangoBody

DOUBTFUL = {"mysql": (1180, "Got error 5 during COMMIT"), "postgresql": ("XX000", "an accident")}


class Case:
    """A table behind a relay, and how often the work ran."""

    def __init__(self, server: Server, relay: Relay) -> None:
        self.server, self.relay, self.runs = server, relay, 0
        self.family = "postgresql" if isinstance(server, PostgreSQL) else "mysql"
        server.admin("DROP TABLE IF EXISTS framed")
        server.admin("CREATE TABLE framed (n INT)")
        if self.family == "postgresql":
            server.admin(f'ALTER TABLE framed OWNER TO "{server.user}"')

    def url(self, driver: str) -> str:
        more = {"sslmode": "disable"} if self.family == "postgresql" else {}
        return self.relay.url(self.server.url(driver, **more))

    def ran(self, stored: bool) -> None:
        """The work has inserted its row: what becomes of its COMMIT."""
        self.runs += 1
        self.relay.answer(*DOUBTFUL[self.family], stored=stored)

    def check(self, work: Callable[[bool], Any], stored: bool) -> None:
        with pytest.raises(CommitUnknownError) as caught:
            work(stored)
        assert caught.value.fate is Fate.UNKNOWN
        assert DOUBTFUL[self.family][1] in str(caught.value)
        self.server.kill_sessions()
        rows = len(self.server.admin("SELECT n FROM framed"))
        assert (self.runs, rows) == (1, int(stored))


@pytest.fixture(params=["mariadb", "postgres"])
def case(request: pytest.FixtureRequest, mariadb: MariaDB, postgres: PostgreSQL) -> Iterator[Case]:
    server: Server = mariadb if request.param == "mariadb" else postgres
    with relay_to(server) as relay:
        yield Case(server, relay)
        server.kill_sessions()
        server.admin("DROP TABLE framed")


@pytest.mark.parametrize("stored", [True, False])
def test_through_sqlalchemy(case: Case, stored: bool) -> None:
    import sqlalchemy as sa

    import unbroken.sqlalchemy

    driver = "psycopg" if case.family == "postgresql" else "pymysql"
    engine = sa.create_engine(case.url(driver), plugins=["unbroken"])

    @unbroken.replayable
    def work(stored: bool) -> None:
        with engine.begin() as conn:
            conn.execute(sa.text("INSERT INTO framed VALUES (1)"))
            case.ran(stored)

    with engine.connect() as conn:
        conn.execute(sa.text("SELECT 1"))
    case.check(work, stored)
    engine.dispose()


@pytest.mark.parametrize("stored", [True, False])
def test_through_django(case: Case, stored: bool) -> None:
    if case.family == "mysql":
        pytest.skip("the same body, with the same move")
    from django.db import transaction

    body = DjangoBody(case.url, 2, 5.0)

    @unbroken.replayable
    def work(stored: bool) -> None:
        with transaction.atomic(using=body.alias):
            with body.wrappers[body.alias].cursor() as cursor:
                cursor.execute("INSERT INTO framed VALUES (1)")
            case.ran(stored)

    with body.connection() as conn:
        body.execute(conn, "SELECT 1")
    case.check(work, stored)
    body.close()


@pytest.mark.parametrize("stored", [True, False])
def test_through_peewee(case: Case, stored: bool) -> None:
    import unbroken.peewee

    driver = "psycopg" if case.family == "postgresql" else "pymysql"
    db: Any = unbroken.peewee.connect(case.url(driver))

    @unbroken.replayable
    def work(stored: bool) -> None:
        with db.atomic():
            db.execute_sql("INSERT INTO framed VALUES (1)")
            case.ran(stored)

    db.execute_sql("SELECT 1")
    case.check(work, stored)
    db.close_pool() if hasattr(db, "close_pool") else db.close()


@pytest.mark.parametrize("stored", [True, False])
def test_an_http_client_is_told_that_the_fate_of_its_writes_is_not_known(
    case: Case, stored: bool
) -> None:
    pool = unbroken.Pool(case.url("psycopg" if case.family == "postgresql" else "pymysql"))

    def app(_environ: Any, start_response: Any) -> Any:
        with pool.connection() as conn:
            cursor = conn.cursor()
            cursor.execute("INSERT INTO framed VALUES (1)")
            case.ran(stored)
        start_response("200 OK", [])
        return [b""]

    with pool.connection() as conn:
        conn.cursor().execute("SELECT 1")
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": "/"}
    setup_testing_defaults(environ)
    said: list[Any] = []
    result = unbroken.wsgi.Unbroken(app)(
        environ, lambda status, headers, _exc=None: said.append((status, dict(headers)))
    )
    body = b"".join(result).decode()
    assert said[-1][0].startswith("500"), said
    assert "It is unknown whether" in body
    case.server.kill_sessions()
    assert (case.runs, len(case.server.admin("SELECT n FROM framed"))) == (1, int(stored))
    pool.close()
