"""Files that a connect uses are read anew when they have changed, and no program that is started
inherits a connection.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken.drivers import _tls
from unbroken_drill.servers import Server, certificates

from .bodies import KINDS
from .conftest import timed

POOLS = [name for name in KINDS if "-" not in name or name.startswith("async-")]


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority that signed none of the servers' certificates."""
    folder = tmp_path_factory.mktemp("other") / "tls"
    certificates.make(folder, "127.0.0.1")
    return folder / "ca.pem"


@pytest.fixture
def copies(tmp_path: Path, servers: Callable[[bool], Server]) -> Callable[[bool], Path]:
    """A copy of the CA of that server, which the test may replace."""

    def copy(is_mysql: bool) -> Path:
        path = tmp_path / f"ca-{is_mysql}.pem"
        shutil.copy(str(servers(is_mysql).ca_file), path)
        return path

    return copy


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    bodies: list[Any] = []
    yield bodies
    for body in bodies:
        body.close()


@pytest.mark.parametrize("name", [*POOLS, "sqlalchemy-pymysql"])
def test_a_ca_that_was_renewed_is_read_at_the_next_connect(
    servers: Callable[[bool], Server],
    copies: Callable[[bool], Path],
    other_ca: Path,
    closing: list[Any],
    name: str,
) -> None:
    kind = KINDS[name]
    server = servers(kind.is_mysql)
    ca = copies(kind.is_mysql)
    right = ca.read_bytes()
    ca.write_bytes(other_ca.read_bytes())
    url = kind.url(server, tls=True).replace(
        str(server.ca_file).replace("/", "%2F"), str(ca).replace("/", "%2F")
    )
    url = url.replace(str(server.ca_file), str(ca))
    assert str(ca.name) in url
    body = kind.make(url, acquire_timeout=3.0, outage_wait=0.0, connect_timeout=3.0)
    closing.append(body)
    assert timed(lambda: body.work("SELECT 1")).error is not None, (
        "the server's certificate is of another authority"
    )
    fresh = ca.with_suffix(".new")
    fresh.write_bytes(right)
    os.replace(fresh, ca)
    # an attempt that began before the change may still tell of the old file
    end = time.monotonic() + 5.0
    while (outcome := timed(lambda: body.work("SELECT 1"))).value != 1:
        assert time.monotonic() < end, str(outcome)


def test_contexts_are_shared_and_only_the_last_few_are_kept(tmp_path: Path) -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    path = tmp_path / "ca.pem"
    path.write_text("one")
    first = _tls.shared("options", [path], make)
    assert _tls.shared("options", [path], make) is first
    path.write_text("another")
    second = _tls.shared("options", [path], make)
    assert second is not first
    for number in range(_tls.MOST + 5):
        _tls.shared(number, [None], make)
    assert len(_tls._kept) == _tls.MOST
    assert _tls.shared("options", [path], make) not in (first, second)


def test_while_a_file_is_being_replaced_the_last_context_serves(tmp_path: Path) -> None:
    path, broken = tmp_path / "cert.pem", False

    def make() -> object:
        if broken:
            raise ValueError("key values mismatch")
        return object()

    path.write_text("good")
    first = _tls.shared("pair", [path], make)
    path.write_text("half of it")
    broken = True
    assert _tls.shared("pair", [path], make) is first
    path.unlink()
    with pytest.raises(ValueError, match="mismatch"):
        _tls.shared("pair", [path], make)
    path.write_text("good again")
    broken = False
    assert _tls.shared("pair", [path], make) is not first


CHILD = """
import os, socket, sys
found = []
for name in os.listdir("/proc/self/fd"):
    try:
        if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
            copy = socket.socket(fileno=os.dup(int(name)))
            if copy.family == socket.AF_INET and str(copy.getpeername()[1]) in sys.argv[1:]:
                found.append(name)
    except OSError:
        pass
print(len(found))
"""


def test_a_program_that_is_started_inherits_no_connection_of_any_body(crowd: Any) -> None:
    """Not even where its starter closes nothing: else it would keep sessions alive after its
    starter's end.
    """
    made = crowd(list(KINDS))
    made.come_to_rest()
    ports = [str(proxy.port) for proxy in made.proxies.values()]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *ports],
        close_fds=False,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "0"
