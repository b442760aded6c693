"""mysql-connector's C extension keeps the same contract, tested in an interpreter of its own.

Where it needs a newer OpenSSL than Python's, it loads only when nothing has imported ``ssl`` before; so the files beside this
one run once more in an interpreter that imports it first (see ``MYSQL`` in conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unbroken.drivers import open_driver
from unbroken.errors import ConfigurationError

HERE = Path(__file__).parent
FILES = ["test_contract.py", "test_faults.py", "test_transaction_status.py", "test_watch.py", "test_session_resets.py", "test_traits.py"]
FIRST = "import _mysql_connector, sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def test_the_c_extension_keeps_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST, "-q", "-p", "no:cacheprovider", "-k", "mysqlconnector_c", *[str(HERE / name) for name in FILES]],
        cwd=HERE.parents[1], capture_output=True, text=True, timeout=150, env={**os.environ, "PYTEST_ADDOPTS": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def test_where_it_does_not_load_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_mysql_connector", None)
    with pytest.raises(ConfigurationError, match="leave the option out, or import _mysql_connector before anything that imports ssl"):
        open_driver("mysql+mysqlconnector://u@h/d?use_pure=false")


def test_there_is_none_for_asyncio() -> None:
    with pytest.raises(ConfigurationError, match="has no C extension for asyncio"):
        open_driver("mysql+mysqlconnector://u@h/d?use_pure=false", is_async=True)
