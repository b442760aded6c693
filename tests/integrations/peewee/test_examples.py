"""The examples run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_worker_outlives_the_idle_limit(shops: Any) -> None:
    shop = shops("pymysql", wait_timeout=1)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "peewee_worker.py"],
        env={**os.environ, "DATABASE_URL": shop.server.url(), "PAUSE": "1.5", "ROUNDS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["done: task 0", "done: task 1"]


@pytest.mark.parametrize("name", ["pymysql", "psycopg"])
def test_the_flask_app_leaves_no_connection_behind(
    shops: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = shops(name)
    url = shop.server.url()
    monkeypatch.setenv("DATABASE_URL", url.replace("postgresql://", "psycopg3://"))
    spec = importlib.util.spec_from_file_location(
        f"peewee_flask_app_{name}", EXAMPLES / "peewee_flask_app.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = module.app.test_client()
    try:
        assert client.post("/items", data={"name": "lamp"}).json == {"stored": "lamp"}
        shop.server.kill_sessions()
        assert client.get("/items").json == {"items": ["lamp"]}
        assert module.db.is_closed()
        assert module.db.stats().used == 0
    finally:
        module.db.drop_tables([module.Item])
        module.db.close_all()
