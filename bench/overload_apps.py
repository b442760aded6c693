"""Web applications whose page is one unit of work on a pool of five connections, for
``overload_http.py``: ``APP`` says which, ``URL`` where the server is, ``UNIT`` how long it takes.

Each is an object ``app`` for its web server.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

SIZE = int(os.environ.get("SIZE", "5"))
APP, URL, UNIT = (os.environ.get(name, "") for name in ("APP", "URL", "UNIT"))
DSN = URL.replace("postgresql+psycopg://", "postgresql://")
WORK = f"SELECT SLEEP({UNIT})" if URL.startswith("mysql") else f"SELECT pg_sleep({UNIT})::text"


def fastapi_app(pool: Any, use: Any) -> Any:
    """A page for each request; *use* is one unit of work."""
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        made = pool()
        app.state.pool = await made if hasattr(made, "__await__") else made
        yield
        await app.state.pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def page() -> str:
        await use(app.state.pool)
        return "ok"

    return app


async def _by_connection(pool: Any) -> None:
    async with pool.connection() as conn, conn.cursor() as cursor:
        await cursor.execute(WORK)
        await cursor.fetchall()


async def _by_acquire(pool: Any) -> None:
    async with pool.acquire() as conn:
        await conn.execute(WORK)


def _psycopg_pool(**settings: Any) -> Any:
    async def made() -> Any:
        from psycopg_pool import AsyncConnectionPool

        pool = AsyncConnectionPool(DSN, min_size=SIZE, max_size=SIZE, open=False, **settings)
        await pool.open()
        return pool

    return made


def flask_app(*, ours: bool) -> Any:
    """Flask-less of extensions: an engine, and a page with one statement."""
    import flask
    from sqlalchemy import create_engine, text

    more: dict[str, Any] = {"plugins": ["unbroken"]} if ours else {}
    target = os.environ.get("SHED_TARGET", "") if ours else ""
    url = f"{URL}{'&' if '?' in URL else '?'}shed_target={target}" if target else URL
    engine = create_engine(url, pool_size=SIZE, max_overflow=0, pool_timeout=10, **more)
    app = flask.Flask(__name__)
    if ours:
        import unbroken.flask

        unbroken.flask.Unbroken(app, databases=[engine], readyz="/readyz")

    @app.get("/")
    def page() -> str:
        with engine.connect() as conn:
            conn.execute(text(WORK))
        return "ok"

    return app


def make() -> Any:
    """The application that ``APP`` names."""
    if APP == "fastapi-unbroken":
        import unbroken
        import unbroken.asgi

        ours = unbroken.AsyncPool(URL, max_size=SIZE)
        inner = fastapi_app(lambda: ours, _by_connection)
        return unbroken.asgi.Unbroken(inner, databases=[ours], readyz="/readyz")
    if APP == "fastapi-asyncpg":
        import asyncpg

        return fastapi_app(
            lambda: asyncpg.create_pool(DSN, min_size=SIZE, max_size=SIZE), _by_acquire
        )
    if APP.startswith("fastapi-psycopg_pool"):
        most = int(APP.partition("=")[2] or 0)
        return fastapi_app(_psycopg_pool(max_waiting=most), _by_connection)
    if APP.startswith("flask-"):
        return flask_app(ours=APP == "flask-unbroken")
    return None


app = make()
