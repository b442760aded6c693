"""What SQLAlchemy refuses after a loss carries a note on the loss, and on what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import InvalidRequestError, OperationalError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine

from unbroken_drill.servers import PostgreSQL

INSERT = sa.text("INSERT INTO pending VALUES (1)")


class Base(orm.DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "pending"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


@pytest.fixture(params=[True, False], ids=["heals", "does not"])
def engine(request: pytest.FixtureRequest, postgres: PostgreSQL) -> Iterator[sa.Engine]:
    made = sa.create_engine(
        postgres.url("psycopg"), plugins=["unbroken"], unbroken={"heal": request.param}
    )
    Base.metadata.drop_all(made)
    Base.metadata.create_all(made)
    yield made
    Base.metadata.drop_all(made)
    made.dispose()


def lose(conn: Any, server: PostgreSQL) -> None:
    conn.execute(sa.text("SELECT 1"))
    server.kill_sessions()
    with pytest.raises(OperationalError):
        conn.execute(INSERT)


def check(error: BaseException) -> None:
    (note,) = error.__notes__
    assert note.startswith("unbroken: connection ")
    assert "was lost (killed" in note
    assert "Roll back" in note
    assert "run the work again" in note


def test_a_connection_that_waits_for_its_rollback(engine: sa.Engine, postgres: PostgreSQL) -> None:
    with engine.connect() as conn:
        lose(conn, postgres)
        for _ in range(2):
            with pytest.raises(PendingRollbackError, match="Can't reconnect") as caught:
                conn.execute(INSERT)
            check(caught.value)
        conn.rollback()
        conn.execute(INSERT)


def test_a_block_whose_transaction_is_over(engine: sa.Engine, postgres: PostgreSQL) -> None:
    with engine.connect() as conn, conn.begin() as block:
        lose(conn, postgres)
        block.rollback()
        with pytest.raises(InvalidRequestError, match="closed transaction") as caught:
            conn.execute(INSERT)
        check(caught.value)


def test_a_session_whose_flush_was_lost(engine: sa.Engine, postgres: PostgreSQL) -> None:
    with orm.Session(engine) as session:
        session.add(Row(id=1))
        session.flush()
        postgres.kill_sessions()
        session.add(Row(id=2))
        with pytest.raises(OperationalError):
            session.flush()
        with pytest.raises(PendingRollbackError, match="during flush") as caught:
            session.execute(sa.text("SELECT 1"))
        check(caught.value)
        session.rollback()
        session.execute(sa.text("SELECT 1"))


def test_a_session_in_a_block_of_its_own(engine: sa.Engine, postgres: PostgreSQL) -> None:
    with (
        orm.Session(engine) as session,
        pytest.raises(InvalidRequestError) as caught,
        session.begin(),
    ):
        session.add(Row(id=1))
        session.flush()
        postgres.kill_sessions()
        session.add(Row(id=2))
        with pytest.raises(OperationalError):
            session.flush()
        session.execute(sa.text("SELECT 1"))
    check(caught.value)


def test_an_async_connection(postgres: PostgreSQL) -> None:
    async def main() -> None:
        engine = create_async_engine(postgres.url("asyncpg"), plugins=["unbroken"])
        async with engine.connect() as conn:
            await conn.execute(sa.text("SELECT 1"))
            await asyncio.to_thread(postgres.kill_sessions)
            with pytest.raises(sa.exc.DBAPIError):
                await conn.execute(sa.text("SELECT 2"))
            with pytest.raises(PendingRollbackError) as caught:
                await conn.execute(sa.text("SELECT 3"))
            assert "was lost" in caught.value.__notes__[0]
        await engine.dispose()

    asyncio.run(main())


def test_what_is_pending_for_another_reason_has_no_note(engine: sa.Engine) -> None:
    with orm.Session(engine) as session:
        session.execute(INSERT)
        session.add(Row(id=1))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        with pytest.raises(PendingRollbackError) as caught:
            session.execute(sa.text("SELECT 1"))
        assert not hasattr(caught.value, "__notes__")


def test_the_error_of_the_loss_itself_says_why_nothing_was_run_again(
    engine: sa.Engine, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.connect() as conn:
        conn.execute(INSERT)
        postgres.kill_sessions()
        with pytest.raises(OperationalError) as caught:
            conn.execute(sa.text("INSERT INTO pending VALUES (2)"))
    assert any("again" in note and "unbroken" in note for note in caught.value.__notes__)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.unbroken_event in ("statement lost", "work lost")
    assert record.unbroken_cause == "killed"
