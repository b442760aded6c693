"""A FastAPI app on an async engine that does not notice when its database goes away for a moment.

    DATABASE_URL=postgresql+asyncpg://app:secret@127.0.0.1/shop uvicorn fastapi_app:app

``PLAIN=1`` takes unbroken out, for comparison.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import unbroken.asgi

PLAIN = bool(os.environ.get("PLAIN"))

engine = create_async_engine(os.environ["DATABASE_URL"], plugins=[] if PLAIN else ["unbroken"])
Session = async_sessionmaker(engine)


class Base(DeclarativeBase):
    """What the tables have in common."""


class Item(Base):
    """One row of the shop.

    The number is the caller's, and nothing stops it from being stored twice.
    """

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


async def make_tables() -> None:
    """Make what is not there yet."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Make the table; in the end close what is open."""
    try:
        await make_tables()
    except (
        DBAPIError
    ):  # another worker made it between our look and our CREATE TABLE: it is there now
        await make_tables()
    yield
    await engine.dispose()


app: Any = FastAPI(lifespan=lifespan)
Db = Annotated[AsyncSession, Depends(unbroken.asgi.session(Session))]


@app.get("/items")
async def count(db: Db) -> dict[str, int]:
    """How many items there are."""
    return {"items": await db.scalar(select(func.count()).select_from(Item)) or 0}


@app.post("/items")
async def add(number: int, db: Db) -> dict[str, int]:
    """Store one item."""
    db.add(Item(number=number))
    await db.commit()
    return {"stored": number}


@app.get("/taken")
async def taken() -> dict[str, int]:
    """How many connections are checked out."""
    return {"taken": engine.pool.checkedout()}  # type: ignore[attr-defined] # AsyncAdaptedQueuePool's


if not PLAIN:
    app = unbroken.asgi.Unbroken(
        app, replay="/items", databases=engine, healthz="/healthz", readyz="/readyz"
    )
