"""PyMongo's own tests, on its clients and on ours, side by side; what differs is printed.

    python tests/integrations/mongo_suite.py [--source DIR_OR_TARBALL] \\
        [--servers alone,set] [--async] [module ...]

The source distribution has the tests; without ``--source``, that of the installed version is asked
of pip. They run against the installed PyMongo, each way in a process of its own, on a private
server: alone, and the only member of a replica set, both with failpoints. Among them are MongoDB's
specification tests (server discovery, retryable reads and writes, client-side timeouts,
transactions), which PyMongo's runner runs.

Ours connects at once there, and each operation may take as long as PyMongo lets it unless
--defaults: some tests count on the one, and its own bounds would end what others let take longer.
Its gate is in place. --known takes PyMongo's ends from an earlier run (its results are kept there).

Many of these tests wait for something for a fixed time, and fail on a busy machine now and then. So
what ends worse on our client, unexplained, is run again, by itself, on both, twice at most; it is
said of each. Exit status 1 when a test ends worse each time.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Xml
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pymongo

from unbroken_drill.servers import MongoDB

MODULES = """test_client test_client_context test_connection_monitoring test_connections_survive_primary_stepdown_spec test_csot
test_cursor test_collection test_database test_bulk test_discovery_and_monitoring test_fork test_gridfs test_gridfs_bucket
test_heartbeat_monitoring test_load_balancer test_monitor test_monitoring test_pooling test_read_preferences test_retryable_reads
test_retryable_reads_unified test_retryable_writes test_retryable_writes_unified test_run_command test_sdam_monitoring_spec
test_server_selection test_server_selection_in_window test_server_selection_logging test_server_selection_rtt test_session
test_sessions_unified test_srv_polling test_streaming_protocol test_threads test_topology test_transactions
test_transactions_unified test_unified_format test_change_stream test_client_backpressure test_command_monitoring
test_connection_logging test_client_metadata test_operation_id_retry test_index_management test_concurrency
test_async_cancellation test_async_loop_unblocked test_async_contextvars_reset test_async_loop_safety""".split()  # noqa: E501

#: Tests (by a pattern) that end differently, and why that is right. Every difference that is not
#: listed here is a failure.
EXPLAINED: dict[str, str] = {
    r"\.TestClientLoopSafety\.test_client_errors_on_different_loop$": (
        "PyMongo's AsyncMongoClient refuses to be used on a second event loop; ours has connections"
        " of its own on each"
    ),
    r"\.TestUnifiedMinPoolSizeError\.test_Server_error_on_minPoolSize_background_creation$": (
        "after a second of an outage ours says so at once and has the server looked at again;"
        " PyMongo's call waits for that look. Passes with --outage-wait inf"
    ),
    r"\.TestServerSelectionLogging(OperationId\.test_Failed_bulkWrite_operation:"
    r"_log_messages_have_operationIds|Standalone\.test_Failure_due_to_unreachable_server)$": (
        "while a call waits in an outage, ours asks PyMongo for a server again at each piece of"
        " news; PyMongo's debug log then has a line for each of these, in place of one 'Waiting for"
        " suitable server to become available'"
    ),
    r"asynchronous.*\.TestRetryableWrites\.test_retry_timeout_raises_original_error$": (
        "the test has the choice of a server fail from its second call on; before a server is"
        " known, ours makes that call more than once for one operation"
    ),
}

#: Some tests store 48 MB in one transaction, which the small cache of a server for tests does not
#: always hold.
ROOMY = {"setParameter": 1, "wiredTigerEngineRuntimeConfig": "cache_size=1G"}

#: How a test ended (passed, failed, error, skipped or missing), and why.
Ended: TypeAlias = tuple[str, str]

_KINDS = """
import pymongo.mongo_client
import unbroken.integrations.mongo.client_options
import unbroken.mongo
{waits}
init = unbroken.mongo.MongoClient.__init__
init.__defaults__ = (*init.__defaults__[:4], True, *init.__defaults__[5:])  # connect
for kind in unbroken.mongo.MongoClient, unbroken.mongo.AsyncMongoClient:
    kind.__init__.__kwdefaults__["outage_wait"] = float({patience!r})
MongoClient = pymongo.MongoClient = pymongo.mongo_client.MongoClient = unbroken.mongo.MongoClient
AsyncMongoClient = pymongo.AsyncMongoClient = unbroken.mongo.AsyncMongoClient
"""


def main() -> int:
    """Run both ways on each kind of server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--servers", default="alone,set")
    parser.add_argument(
        "--async", dest="awaited", action="store_true", help="the same modules' asyncio halves"
    )
    parser.add_argument("--defaults", action="store_true", help="ours with its own bounds of waits")
    parser.add_argument(
        "--outage-wait",
        default="5.0",
        help="ours with this outage_wait; inf: its gate turns nobody away",
    )
    parser.add_argument(
        "--known",
        type=Path,
        help="a folder for the results of PyMongo's client: written, and read where they are",
    )
    parser.add_argument("--verbose", action="store_true", help="show why a test ended differently")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = unpacked(options.source, Path(folder))
        differ = [
            difference
            for kind in options.servers.split(",")
            for difference in compare(kind, source, Path(folder), options)
        ]
    return 1 if differ else 0


def unpacked(given: Path | None, folder: Path) -> Path:
    """The folder that has ``test/`` in it."""
    if given is None:
        wanted = [
            "--no-deps",
            "--no-binary",
            "pymongo",
            "-d",
            str(folder),
            f"pymongo=={pymongo.version}",
        ]
        subprocess.run(
            [shutil.which("python3") or sys.executable, "-m", "pip", "download", "-q", *wanted],
            check=True,
        )
        (given,) = folder.glob("pymongo*.tar.gz")
    if given.is_dir():
        return given.resolve()
    subprocess.run(["tar", "xf", str(given), "-C", str(folder)], check=True)
    return next(path.parent.parent for path in folder.glob("*/test/unified_format.py")).resolve()


def adapted(source: Path, to: Path, ours: bool, options: Any) -> Path:
    """A copy of *source*'s tests, which use our clients under PyMongo's names where *ours* says
    so.
    """
    to.mkdir()
    for name in ("test", "tools"):
        shutil.copytree(source / name, to / name)
    shutil.copy(source / "pyproject.toml", to)
    if not ours:
        return to
    waits = "" if options.defaults else "unbroken.integrations.mongo.client_options.DEFAULTS = {}"
    (to / "suite_kinds.py").write_text(_KINDS.format(waits=waits, patience=options.outage_wait))
    for path in (to / "test").rglob("*.py"):
        text = path.read_text()
        if "MongoClient" in text:
            path.write_text(with_ours(text))
    return to


def with_ours(text: str) -> str:
    """*text*, a test's, in which what it imports of PyMongo's clients is ours."""
    lines = text.splitlines(keepends=True)
    for node in sorted(ast.walk(ast.parse(text)), key=lambda node: -getattr(node, "lineno", 0)):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "pymongo"
            and node.end_lineno
        ):
            names = {alias.name for alias in node.names} & {"MongoClient", "AsyncMongoClient"}
            indent = " " * node.col_offset
            lines[node.end_lineno : node.end_lineno] = [
                f"{indent}from suite_kinds import {name}\n" for name in sorted(names)
            ]
        elif (
            isinstance(node, ast.Import)
            and any(alias.name == "pymongo" for alias in node.names)
            and node.end_lineno
        ):
            lines[node.end_lineno : node.end_lineno] = [
                f"{' ' * node.col_offset}import suite_kinds\n"
            ]
    return "".join(lines)


def compare(kind: str, source: Path, folder: Path, options: Any) -> list[str]:
    """The tests that end worse on our client, on a server of that *kind*, each time and without an
    explanation.
    """
    known = options.known / known_name(kind, options) if options.known else None
    theirs = (
        ends_in(known)
        if known and known.exists()
        else run("pymongo", kind, source, folder, options, None)
    )
    ours = run("unbroken", kind, source, folder, options, None)
    passed = [sum(how == "passed" for how, _ in ends.values()) for ends in (theirs, ours)]
    print(
        f"{kind}: {len(theirs)} tests; PyMongo's client passes {passed[0]}, ours {passed[1]}",
        flush=True,
    )
    worse = tell(theirs, ours, options.verbose)
    for turn in ("second", "third"):
        if worse:
            print(f"{kind}: these a {turn} time, by themselves", flush=True)
            again = [
                run(who, kind, source, folder / turn, options, worse)
                for who in ("pymongo", "unbroken")
            ]
            worse = tell(*again, options.verbose)
    return worse


def tell(theirs: dict[str, Ended], ours: dict[str, Ended], verbose: bool) -> list[str]:
    """Print what ended differently; those that ended worse on ours and are not explained."""
    worse = []
    for name in sorted(theirs.keys() | ours.keys()):
        before, after = theirs.get(name, ("missing", "")), ours.get(name, ("missing", ""))
        if before[0] == after[0]:
            continue
        reason = next((why for pattern, why in EXPLAINED.items() if re.search(pattern, name)), None)
        if reason is None and after[0] not in ("passed", "skipped"):
            worse.append(name)
        print(f"  {name}: {before[0]} -> {after[0]}" + (f" ({reason})" if reason else ""))
        if verbose:
            print(after[1] or before[1])
    return worse


def known_name(kind: str, options: Any) -> str:
    """The file that keeps how PyMongo's own client ended."""
    return f"pymongo-{'async-' if options.awaited else ''}{kind}.xml"


def run(
    who: str, kind: str, source: Path, folder: Path, options: Any, only: list[str] | None
) -> dict[str, Ended]:
    """How each test ended (of all modules, or of these *only*)."""
    folder.mkdir(exist_ok=True)
    home = adapted(source, folder / f"{who}-{kind}", who == "unbroken", options)
    out = home / "results.xml"
    rooms = ["test", "asynchronous"] if options.awaited else ["test"]
    files = [str(Path(*rooms, f"{name}.py")) for name in options.modules]
    chosen = (
        [f for f in files if (home / f).exists()] if only is None else [node(name) for name in only]
    )
    warned = "ignore::pytest.PytestDeprecationWarning"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-W",
        warned,
    ]
    command += ["-o", f"addopts=-m 'default or default_async' --junitxml={out}", *chosen]
    with ExitStack() as stack:
        server = stack.enter_context(MongoDB(replica_set="one" if kind == "set" else None))
        server.command(ROOMY)
        env = {
            **os.environ,
            "DB_IP": server.host,
            "DB_PORT": str(server.port),
            "PYTHONPATH": str(home),
        }
        with (home / "log").open("w") as log:
            subprocess.run(
                command, cwd=home, env=env, stdout=log, stderr=log, check=False, timeout=3600
            )
    if not out.exists():
        raise SystemExit(f"{who}: the tests did not end: {(home / 'log').read_text()[-3000:]}")
    if who == "pymongo" and options.known and only is None:
        shutil.copy(out, options.known / known_name(kind, options))
    return ends_in(out)


def node(name: str) -> str:
    """What pytest calls the test of that *name*: a test's own name may have dots in it."""
    parts = name.split(".")
    module = next(place for place, part in enumerate(parts) if part.startswith("test_"))
    kind, _, test = ".".join(parts[module + 1 :]).partition(".")
    return "::".join(["/".join(parts[: module + 1]) + ".py", kind, *([test] if test else [])])


def ends_in(results: Path) -> dict[str, Ended]:
    """By name: passed, failed, error or skipped; and why."""
    ends = {}
    for case in Xml.parse(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        found = [child for child in case if child.tag in ("failure", "error", "skipped")]
        how = (
            {"failure": "failed", "error": "error", "skipped": "skipped"}[found[0].tag]
            if found
            else "passed"
        )
        ends[name] = (how, (found[0].text or "")[-3000:] if found else "")
    return ends


if __name__ == "__main__":
    sys.exit(main())
