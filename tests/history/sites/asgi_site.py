"""A FastAPI app whose endpoints write one row each, in several manners, through an async engine and
a pool.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import BigInteger, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import unbroken
import unbroken.asgi

URL = os.environ["DATABASE_URL"]
engine = create_async_engine(
    URL,
    plugins=["unbroken"],
    pool_size=4,
    max_overflow=0,
    pool_timeout=1.0,
    unbroken={"outage_wait": 0.05},
)
pool = unbroken.AsyncPool(URL, max_size=4, acquire_timeout=1.0, outage_wait=0.05)
api = FastAPI()
Db = Annotated[AsyncSession, Depends(unbroken.asgi.session(async_sessionmaker(engine)))]

INSERT = text("INSERT INTO orders (n) VALUES (:n)")
COUNT = text("SELECT COUNT(*) FROM orders WHERE n = :n")


class Base(DeclarativeBase):
    """What the tables have in common."""


class Order(Base):
    """A row. Nothing in the database stops a number from being stored twice."""

    __tablename__ = "orders"
    key: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


@api.post("/reads/{n}")
@api.post("/replayed-reads/{n}")
async def reads(n: int, db: Db) -> dict[str, int]:
    """Commit, then read the row again."""
    order = Order(n=n)
    db.add(order)
    await db.commit()
    await db.refresh(order)
    return {"key": order.key}


@api.post("/replayed-whole/{n}")
async def whole(n: int, db: Db) -> dict[str, int]:
    """One transaction, and nothing after it."""
    db.add(Order(n=n))
    await db.commit()
    return {"n": n}


@api.post("/autocommit/{n}")
@api.post("/replayed-autocommit/{n}")
async def autocommit(n: int) -> dict[str, int]:
    """A statement that is a transaction by itself, then another one."""
    async with engine.connect() as conn:
        conn = await conn.execution_options(isolation_level="AUTOCOMMIT")
        await conn.execute(INSERT, {"n": n})
        return {"stored": (await conn.execute(COUNT, {"n": n})).scalar_one()}


async def _do(conn: Any, sql: str) -> Any:
    if hasattr(conn, "fetchval"):
        return await conn.fetchval(sql)
    async with conn.cursor() as cursor:
        await cursor.execute(sql)
        row = await cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


@api.post("/deadline/{n}")
@api.post("/replayed-deadline/{n}")
async def deadline(n: int) -> dict[str, int]:
    """A unit of work and a lease that may run out of time."""
    await pool.run(_do, f"INSERT INTO orders (n) VALUES ({n})", deadline=0.5)
    async with pool.connection(deadline=0.3) as conn:
        return {"stored": await _do(conn, f"SELECT COUNT(*) FROM orders WHERE n = {n}")}


app = unbroken.asgi.Unbroken(
    api,
    replay=lambda scope: scope["path"].startswith("/replayed-") or None,
    databases=[engine, pool],
    healthz="/healthz",
)
