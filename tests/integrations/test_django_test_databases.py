"""``manage.py test`` of a site whose aliases lead to one database: it is made, cloned and dropped.

A pool keeps sessions that Django would have closed, and PostgreSQL neither drops a database that
has sessions nor copies one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken_drill.servers import MariaDB, PostgreSQL

FILES = {
    "site_.py": """
        import json, os
        given = json.loads(os.environ["GIVEN"])
        server = {"ENGINE": given["engine"], "NAME": "shop", **given["server"]}
        DATABASES = {alias: {**server, **more} for alias, more in given["aliases"].items()}
        SECRET_KEY = "of a test only"
        INSTALLED_APPS = ["shop"]
        DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models
        class Thing(models.Model):
            name = models.CharField(max_length=20)
    """,
    "shop/migrations/__init__.py": "",
    "shop/migrations/0001_initial.py": """
        from django.db import migrations, models
        class Migration(migrations.Migration):
            initial = True
            operations = [
                migrations.CreateModel("Thing", [
                    ("id", models.AutoField(primary_key=True)),
                    ("name", models.CharField(max_length=20)),
                ]),
            ]
    """,
    "shop/tests.py": """
        import threading
        from django.db import connections
        from django.test import TestCase, TransactionTestCase
        from shop.models import Thing
        class Everywhere:
            databases = "__all__"
            def look(self):
                for alias in connections:
                    Thing.objects.using(alias).count()
        class First(Everywhere, TestCase):
            def test_it(self):
                Thing.objects.create(name="a")
                self.look()
        class Second(Everywhere, TransactionTestCase):
            def test_threads_that_end(self):
                Thing.objects.create(name="a")
                threads = [threading.Thread(target=self.look) for _ in range(3)]
                [thread.start() for thread in threads]
                [thread.join() for thread in threads]
            def test_a_thread_that_lives_on_at_rest(self):
                ready, never = threading.Event(), threading.Event()
                def work():
                    self.look()
                    ready.set()
                    never.wait(60)
                threading.Thread(target=work, daemon=True).start()
                ready.wait(30)
        class Third(Everywhere, TestCase):
            def test_it(self):
                self.look()
    """,
}
MIRROR: dict[str, Any] = {"TEST": {"MIRROR": "default"}}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "a mirror": {"default": {}, "replica": MIRROR},
    "a mirror whose address is spelled otherwise": {
        "default": {},
        "replica": {**MIRROR, "HOST": "localhost"},
        "second": {**MIRROR, "PORT": "as text"},
    },
    "a mirror with another user's settings": {
        "default": {"OPTIONS": {"unbroken": {"min_size": 2}}},
        "replica": {**MIRROR, "CONN_MAX_AGE": 60, "OPTIONS": {"unbroken": {"min_size": 1}}},
    },
    "two aliases of one name": {"default": {}, "twin": {"OPTIONS": {"unbroken": {"max_size": 2}}}},
    "two aliases of one name, and mirrors of both": {
        "default": {}, "twin": {}, "replica": MIRROR, "other": {"TEST": {"MIRROR": "twin"}},
    },
    "two aliases whose tests name one database": {
        "default": {"TEST": {"NAME": "test_both"}}, "twin": {"TEST": {"NAME": "test_both"}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Any]]:
    """Their users may make databases."""
    with MariaDB() as mariadb, PostgreSQL() as postgres:
        mariadb.admin(f"GRANT ALL ON *.* TO '{mariadb.user}'@'%'")
        postgres.admin(f"ALTER ROLE {postgres.user} CREATEDB")
        yield {"mysql": mariadb, "postgresql": postgres}


@pytest.fixture
def manage(tmp_path: Path, servers: dict[str, Any]) -> Callable[..., str]:
    """``manage(kind, aliases, *arguments)``: what ``manage.py test`` printed."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        path.write_text("\n".join(lines).lstrip())

    def run(kind: str, aliases: dict[str, Any], *arguments: str) -> str:
        server = servers[kind]
        given: dict[str, Any] = {"HOST": server.host, "PORT": server.port}
        given |= {"USER": server.user, "PASSWORD": server.password}
        if kind == "mysql":  # to its libraries "localhost" means a unix socket
            aliases = {
                a: {k: v for k, v in more.items() if k != "HOST"} for a, more in aliases.items()
            }
        if "second" in aliases:
            aliases = {**aliases, "second": {**aliases["second"], "PORT": str(server.port)}}
        given = {"engine": f"unbroken.django.{kind}", "server": given, "aliases": aliases}
        done = subprocess.run(
            [sys.executable, "-m", "django", "test", "--noinput", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "GIVEN": json.dumps(given),
                "DJANGO_SETTINGS_MODULE": "site_",
                "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        told = done.stdout + done.stderr
        assert done.returncode == 0, told[-3000:]
        return told

    return run


def databases(server: Any) -> list[str]:
    """The test databases that are left."""
    ask = "SELECT datname FROM pg_database" if isinstance(server, PostgreSQL) else "SHOW DATABASES"
    return sorted(name for (name, *_rest) in server.admin(ask) if name.startswith("test_"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["mysql", "postgresql"])
def test_the_test_database_is_made_and_dropped(
    kind: str, shape: str, manage: Callable[..., str], servers: dict[str, Any]
) -> None:
    told = manage(kind, SHAPES[shape])
    assert "Ran 4 tests" in told
    assert databases(servers[kind]) == []
    manage(kind, SHAPES[shape], "--parallel", "2")  # clones of it, too
    assert databases(servers[kind]) == []


@pytest.mark.parametrize("kind", ["mysql", "postgresql"])
def test_kept_databases_are_used_again_and_made_anew(
    kind: str, manage: Callable[..., str], servers: dict[str, Any]
) -> None:
    aliases = SHAPES["two aliases of one name, and mirrors of both"]
    for arguments in (
        ("--keepdb",),
        ("--keepdb", "--parallel", "2"),
        ("--keepdb", "--parallel", "2"),
    ):
        manage(kind, aliases, *arguments)
    assert databases(servers[kind]) == ["test_shop", "test_shop_1", "test_shop_2"]
    assert "Destroying old test database" in manage(kind, aliases, "--parallel", "2")
    assert databases(servers[kind]) == []
