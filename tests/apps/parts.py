"""What plays.py is made of: programs in venvs of their own, faults, clients, and the score."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbroken_drill.servers import MariaDB, PostgreSQL
from unbroken_drill.servers.base import Server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = Path(os.environ.get("UNBROKEN_APPS", ROOT / ".venvs"))

WAYS = ("plain", "plugin", "units")
FAULTS = ("kill", "restart", "idle")
BACKENDS: dict[str, type[Server]] = {
    "pymysql": MariaDB,
    "psycopg": PostgreSQL,
    "psycopg2": PostgreSQL,
    "asyncpg": PostgreSQL,
}

#: What each application's database work is done by.
UNITS = {
    "optuna": "optuna.storages:RDBStorage,optuna.storages:_CachedStorage",
    "apscheduler": "apscheduler.jobstores.sqlalchemy:SQLAlchemyJobStore",
    "mlflow": "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore,"
    "mlflow.store.tracking.abstract_store:AbstractStore",
    "prefect": "fastapi.routing:run_endpoint_function",
}
TARGETS = {
    "optuna": ("pymysql", "psycopg", "psycopg2"),
    "apscheduler": ("pymysql", "psycopg", "psycopg2"),
    "mlflow": ("pymysql", "psycopg", "psycopg2"),
    "prefect": ("asyncpg",),
}


@dataclass
class Score:
    """What one application did in one fault."""

    asked: int = 0  #: trials, calls or requests
    done: int = 0
    workers: int = 0
    dead: int = 0
    faults: int = 0
    words: Counter[str] = field(default_factory=Counter)  #: the errors that its users saw

    @property
    def failed(self) -> int:
        return self.asked - self.done

    def __str__(self) -> str:
        said = "; ".join(f"{count} x {words[:150]}" for words, count in self.words.most_common(3))
        return (
            f"{self.failed} of {self.asked} failed, {self.dead} of {self.workers} dead,"
            f" {self.faults} faults{said and ': ' + said}"
        )


def explained(score: Score) -> int:
    """How many of the errors must be: commits in doubt, where the session was ended while the
    server committed and nobody can say on which side of it; and statements that were killed twice.
    """
    known = (*IN_DOUBT, GIVEN_UP)
    return sum(
        count for words, count in score.words.items() if any(each in words for each in known)
    )


def note_reasons(score: Score, log: Path, words: str) -> None:
    """Count a reason that stands in the log of a server only."""
    count = log.read_text(errors="replace").count(words)
    if count:
        score.words[f"in the server's log: {words.strip()}"] += count


#: By which words such an error is known: its class, or how its message begins.
IN_DOUBT = ("CommitUnknownError", "COMMIT was sent to")
#: A statement whose sessions were killed twice is given up: somebody may want that.
GIVEN_UP = "that statement ends its session"


# -- the programs ----------------------------------------------------------------------------------


def python(app: str) -> str:
    return str(VENVS / f"app-{app}" / "bin" / "python")


def command(app: str, way: str, *words: str) -> list[str]:
    """The command that starts *words* (after the app's own Python) in that *way*."""
    if way == "plain":
        return [python(app), *words]
    units = ["--units", UNITS[app]] if way == "units" and UNITS[app] else []
    return [python(app), "-m", "unbroken", "run", *units, python(app), *words]


def environment(**more: str) -> dict[str, str]:
    given = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("UNBROKEN_", "PYTEST", "PYTHON"))
    }
    return {**given, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **more}


def run(app: str, way: str, *words: str, timeout: float = 120.0) -> dict[str, Any]:
    """Run a program of an app to its end; its last line is JSON."""
    done = subprocess.run(
        command(app, way, *words),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def last_words(log: Path) -> dict[str, Any]:
    """What a program said at its end, in JSON; if it said nothing, that is its error."""
    lines = log.read_text(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith("{")), None)
    if said is None:
        return {"error": f"it ended without a word: {' / '.join(lines[-3:])}"}
    result: dict[str, Any] = json.loads(said)
    return result


@contextlib.contextmanager
def started(words: list[str], log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program with a process group of its own, ended with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, env=environment(**more), stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# -- the faults ------------------------------------------------------------------------------------


class Faults:
    """Plays a fault again and again while something goes on, on a thread of its own."""

    def __init__(self, server: Server, fault: str, pause: float = 1.0) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self._play: Callable[[], Any] | None = {
            "kill": server.kill_sessions,
            "restart": lambda: server.restart(0.3),
            "idle": None,
        }[fault]
        self._pause = pause if fault == "kill" else max(4.0, 2 * pause)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> Faults:
        if self._play is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._play is not None:
            self._thread.join(60)
        if self.error is not None:
            raise self.error

    def _go(self) -> None:
        assert self._play is not None
        try:
            while not self._stop.wait(self._pause):
                self._play()
                self.count += 1
        except BaseException as error:
            self.error = error


@contextlib.contextmanager
def server_for(target: str, binary: Path | None = None) -> Iterator[Server]:
    """A server of its own."""
    with BACKENDS[target](binary=binary) as server:
        yield server


def limit_idling(server: Server, fault: str) -> None:
    """With *idle*: the server ends sessions that do nothing for a second, from now on."""
    if fault == "idle":
        is_mariadb = isinstance(server, MariaDB)
        server.set(**({"wait_timeout": 1} if is_mariadb else {"idle_session_timeout": 1000}))
        server.kill_sessions()


# -- their clients ---------------------------------------------------------------------------------


def requests(
    score: Score, client: Callable[..., None], seconds: float, pause: float, clients: int = 4
) -> None:
    """Several clients, one request after the other, for *seconds*."""
    end = time.monotonic() + seconds
    lock = threading.Lock()

    def ask(url: str, body: Any) -> Any:
        answer, words = fetch(url, body)
        with lock:
            score.asked += 1
            score.done += not words
            if words:
                score.words[words] += 1
        time.sleep(pause)
        return answer

    def go() -> None:
        while time.monotonic() < end:
            client(ask)

    threads = [threading.Thread(target=go, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)


def fetch(url: str, body: Any) -> tuple[Any, str]:
    """The answer, and what is wrong with it."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response), ""
    except urllib.error.HTTPError as error:
        return (
            None,
            f"{error.code} {request.selector.partition('?')[0][-30:]} "
            + error.read()[:600].decode(errors="replace"),
        )
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def has(log: Path, words: bytes) -> bool:
    return words in log.read_bytes()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except Exception:
        return False


def until(
    condition: Callable[[], bool],
    process: subprocess.Popen[bytes],
    seconds: float = 60.0,
    log: Path | None = None,
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-3000:] if log else ""
            raise RuntimeError(f"it did not start (status {process.returncode}): {tail}")
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def keep(log: Path, *words: str) -> None:
    """Keep an app's log where UNBROKEN_APP_LOGS says."""
    folder = os.environ.get("UNBROKEN_APP_LOGS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "-".join(words) + ".log").write_bytes(log.read_bytes())
