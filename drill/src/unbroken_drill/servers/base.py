"""A real database server, private to the process that created it, which can be stopped, killed,
frozen and queried.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlencode

from unbroken_drill.messages import SERVER_LATE, SERVER_NOT_STARTED, SERVER_STATE
from unbroken_drill.servers import folders, ports, processes
from unbroken_drill.servers.errors import ServerError
from unbroken_drill.servers.reaper import reaper

#: Seconds between checks whether a starting server answers: one attempt costs it well under a
#: millisecond.
_POLL = 0.002

#: The user of a load balancer's checks on PostgreSQL and MariaDB: it needs no password, can log in,
#: and can do nothing else.
CHECKER = "unbroken_check"

#: The values of an option: text and numbers in the server's spelling, True and False for on and
#: off.
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Session:
    """One session of the application's user, as the server sees it."""

    id: int  #: the number that KILL or pg_terminate_backend takes
    user: str
    peer: str  #: ``address:port`` of the client, or ``localhost`` / empty for a unix socket
    database: str
    #: in the server's words: ``Sleep``, ``Query`` (MariaDB); ``idle``, ``active`` … (PostgreSQL)
    state: str


class Server(ABC):
    """A server of one kind on a free port, with its own folder; a context manager that starts and
    ends it.

    *options* are the server's own settings (``{"wait_timeout": 2}``). *user* and *password*
    (default: a random one, required over TCP) have all rights in *database*. *host* is the address
    to listen on, *port* a fixed port instead of a free one. *tls* creates a private CA
    (:attr:`ca_file`) and offers TLS. *binary* is the server's program, instead of the best one
    found (each class describes where it searches).

    As root, the server runs as an unprivileged user. It ends with the block, with :meth:`close`,
    with the interpreter, and also when this process is killed. A forked child can query it, freeze
    it and end its sessions, but neither ends it nor removes its folder.
    """

    backend: ClassVar[str]  #: ``mariadb``, ``postgresql``: the argument of :func:`available`
    schemes: ClassVar[
        Mapping[str, str]
    ] = {}  #: drivers whose URL does not begin with the usual scheme
    scheme: ClassVar[str]
    #: the signal for an orderly end, without waiting for clients
    polite_signal: ClassVar[signal.Signals]
    quick_signal: ClassVar[signal.Signals]  #: ends it at once, leaving nothing behind in the system

    hello: ClassVar[str] = "SELECT 1"  #: the query for a starting server
    kinds: ClassVar[dict[str, type[Server]]] = {}  #: every kind, by its backend

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Server.kinds[cls.backend] = cls

    def __init__(
        self,
        options: Mapping[str, Value] | None = None,
        *,
        user: str = "app",
        password: str | None = None,
        database: str = "shop",
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: bool = False,
        binary: str | Path | None = None,
    ) -> None:
        self.options: dict[str, Value] = dict(options or {})
        self.user, self.database, self.host, self.tls = user, database, host, tls
        self.password = secrets.token_urlsafe(12) if password is None else password
        self.port = port or ports.port_for(self, host)
        self.binary = self.find(tls=tls) if binary is None else Path(binary)
        self.folder: Path | None = None
        self.ready_at: float | None = (
            None  #: ``time.monotonic()`` of the first answer after the last start
        )
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    # ---- the parts that differ for each kind

    @classmethod
    @abstractmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the program of the best server of this kind. Raises ServerUnavailable, which names
        the package to install, if there is none.
        """

    @abstractmethod
    def _prepare(self, folder: Path) -> None:
        """Fill the new *folder*: the data folder, certificates."""

    @abstractmethod
    def _command(self, folder: Path) -> list[str | Path]:
        """Return the command line that serves *folder*. Writes the current options where the server
        reads them.
        """

    @abstractmethod
    def _welcome(self) -> None:
        """On the first start: create the application's user and database."""

    @property
    @abstractmethod
    def unix_socket(self) -> str:
        """The path of the server's socket."""

    @abstractmethod
    def _query(self, sql: str, database: str | None, timeout: float) -> list[tuple[str, ...]]:
        """Run *sql* as the administrator, over the unix socket."""

    @abstractmethod
    def sessions(self) -> list[Session]:
        """Return the sessions of the application's user, oldest first, without administrators."""

    @abstractmethod
    def _kill_session(self, number: int) -> bool:
        """End one session. Returns whether it existed."""

    @abstractmethod
    def _apply(self, options: Mapping[str, Value]) -> None:
        """Apply *options* to the running server, at least for new sessions."""

    @abstractmethod
    def _present(self, name: str) -> Value:
        """Return the running server's value of an option, in a form that :meth:`set` takes."""

    @abstractmethod
    def _socket_query(self, driver: str | None) -> dict[str, str]:
        """Return the URL's query that makes *driver* use the unix socket."""

    # ---- life

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self, timeout: float = 30.0) -> Self:
        """Start the server and wait until it answers. A running server is left alone.

        After a kill the server recovers by itself.
        """
        self._own("start")
        if self.is_running:
            return self
        if self.folder is not None:
            self._launch(self.folder, timeout)
            return self
        folder = self.folder = folders.private_folder()
        _alive.add(self)
        reaper.watch(folder)
        try:
            self._prepare(folder)
            self._launch(folder, timeout)
            self._welcome()
        except BaseException:
            self.close()
            raise
        return self

    def _launch(self, folder: Path, timeout: float) -> None:
        self._process = processes.spawn(self._command(folder), folder, self.log)
        reaper.watch(folder, self._process.pid, self.quick_signal)
        self.wait_ready(timeout)

    def stop(self, timeout: float = 30.0) -> None:
        """Ask the server to shut down in order and wait for it. Sends SIGKILL and raises
        ServerError if it takes longer.
        """
        self._own("stop")
        if self._process is None or not self.is_running:
            return self._ended()
        self.thaw()
        self._process.send_signal(self.polite_signal)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(
                SERVER_LATE(f"{self!r} did not stop within {timeout} s, so it was killed")
            ) from None
        return self._ended()

    def kill(self) -> None:
        """SIGKILL all its processes at once, like a crash. Returns when no process is left."""
        self._own("kill")
        if self._process is not None:
            processes.kill(self._process)
        self._ended()

    def restart(self, down: float = 0.0) -> None:
        """Stop, stay down for *down* seconds, start again on the same port."""
        self.stop()
        time.sleep(down)
        self.start()

    def crash(self, down: float = 0.0) -> None:
        """Kill, stay down for *down* seconds, start again on the same port."""
        self.kill()
        time.sleep(down)
        self.start()

    def freeze(self) -> None:
        """Stop all its processes (SIGSTOP): connections stay open, nothing answers. The kernel
        still accepts new TCP connections until the listen queue is full.
        """
        processes.freeze(self.pid)

    def thaw(self) -> None:
        """Let a frozen server continue."""
        processes.thaw(self.pid)

    def close(self) -> None:
        """End the server quickly and remove its folder. In a forked child: do nothing."""
        if os.getpid() != self._owner:
            return
        if self._process is not None and self.is_running:
            self.thaw()
            self._process.send_signal(self.quick_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
            processes.kill(self._process)
        self._ended()
        folder, self.folder = self.folder, None
        if folder is not None:
            self._clean(folder)
            shutil.rmtree(folder, ignore_errors=True)
            reaper.forget(folder)
        _alive.discard(self)

    def _clean(self, folder: Path) -> None:  # noqa: B027 - most kinds leave nothing outside their folder
        """Free the resources outside its *folder* that a killed server left in the system."""

    def _ended(self) -> None:
        self._process = None
        self.ready_at = None
        if self.folder is not None:
            reaper.watch(self.folder)

    def _own(self, verb: str) -> None:
        if os.getpid() != self._owner:
            raise ServerError(
                SERVER_STATE(
                    f"cannot {verb} the server of process {self._owner} from its child"
                    f" {os.getpid()}"
                )
            )

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server answers. Raises ServerError, with the end of its log, if it ends or
        takes longer.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._query(self.hello, None, max(0.1, deadline - time.monotonic()))
            except ServerError as error:
                reason = str(error)
            else:
                if self.ready_at is None:
                    self.ready_at = time.monotonic()
                return
            if not self.is_running:
                status = self._process.returncode if self._process else None
                self._ended()
                raise ServerError(
                    SERVER_NOT_STARTED(
                        f"{self.backend} ended with status {status} while starting:"
                        f" {self.log_tail()}"
                    )
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    SERVER_NOT_STARTED(
                        f"{self!r} does not answer within {timeout} s ({reason}): {self.log_tail()}"
                    )
                )
            time.sleep(_POLL)

    # ---- its state

    @property
    def is_running(self) -> bool:
        """Whether its main process lives (frozen or not, ready or not)."""
        if self._process is None:
            return False
        if os.getpid() != self._owner:
            return bool(processes.family(self._process.pid))
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The main process's id. Raises ServerError if it does not run."""
        if self._process is None or not self.is_running:
            raise ServerError(SERVER_STATE(f"{self!r} is not running; call start()"))
        return self._process.pid

    @property
    def ca_file(self) -> Path:
        """The certificate of the private CA that signed the server's (with ``tls=True``)."""
        if not self.tls or self.folder is None:
            raise ServerError(SERVER_STATE("only a started server with tls=True has a CA"))
        return self.folder / "tls" / "ca.pem"

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return self._home / "server.log"

    def log_tail(self, lines: int = 5) -> str:
        """Return the last *lines* of the log, as one."""
        with contextlib.suppress(OSError):
            return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])
        return "no log"

    @property
    def _home(self) -> Path:
        if self.folder is None:
            raise ServerError(
                SERVER_STATE(f"{self!r} was never started, or is closed; call start()")
            )
        return self.folder

    def url(self, driver: str | None = None, *, unix: bool = False, **query: object) -> str:
        """Return the application's URL in SQLAlchemy's spelling, with the password:
        ``url("pymysql", max_size=5)``.

        Without *driver* a bare ``mysql://`` or ``postgresql://``; *unix* uses the unix socket.
        """
        scheme = f"{self.schemes.get(driver, self.scheme)}+{driver}" if driver else self.scheme
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = "" if unix else f"{host}:{self.port}"
        pairs = {**(self._socket_query(driver) if unix else {}), **query}
        tail = f"?{urlencode(pairs)}" if pairs else ""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"{scheme}://{login}@{where}/{quote(self.database)}{tail}"

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} at {self.host}:{self.port},"
            f" {'running' if self.is_running else 'not running'}>"
        )

    # ---- queries and settings

    def admin(self, sql: str, *, timeout: float = 30.0) -> list[tuple[str, ...]]:
        """Run *sql* as the administrator, in the application's database. Returns the last
        statement's rows as text, with NULL as "".

        It uses a connection of its own over the unix socket. Raises ServerError with the server's
        code if the server refuses.
        """
        return self._query(sql, self.database, timeout)

    def kill_sessions(self, timeout: float = 5.0) -> int:
        """End the application's sessions as an administrator would, and wait until they are gone.
        Returns their number.
        """
        killed = {session.id for session in self.sessions() if self._kill_session(session.id)}
        deadline = time.monotonic() + timeout
        while left := {number for number in killed if self._is_ending(number)} | (
            killed & {session.id for session in self.sessions()}
        ):
            if time.monotonic() > deadline:
                raise ServerError(
                    SERVER_LATE(
                        f"sessions {sorted(left)} still exist {timeout} s after they were killed"
                    )
                )
            time.sleep(_POLL)
        return len(killed)

    def _is_ending(self, number: int) -> bool:  # noqa: ARG002 - what a server calls a session is its own affair
        """Return whether a session that is no longer listed may still have its socket."""
        return False

    def set(self, **options: Value) -> None:
        """Change settings, at least for new sessions, now and after each restart.

        Raises ServerError if the server refuses; then nothing is changed. Settings that it reads
        only at its start go into :attr:`options`, followed by :meth:`restart`.
        """
        before = dict(self.options)
        values = {name: self._present(name) for name in options} if self.is_running else {}
        self.options.update(options)
        if not values:
            return
        try:
            self._apply(options)
        except ServerError:
            self.options = before
            with contextlib.suppress(ServerError):
                self._apply(values)
            raise

    @contextlib.contextmanager
    def temporarily(self, **options: Value) -> Iterator[Self]:
        """Change settings within the block, and change them back afterwards, for servers that tests
        share.
        """
        before = dict(self.options)
        values = {name: self._present(name) for name in options}
        self.set(**options)
        try:
            yield self
        finally:
            self.options = before
            if self.is_running:
                self._apply(values)


#: Servers with a folder, kept alive until they are closed: they end with the interpreter.
_alive: set[Server] = set()


@atexit.register
def _close_all() -> None:
    for server in list(_alive):
        with contextlib.suppress(Exception):
            server.close()
