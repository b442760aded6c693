"""Galera: MariaDB servers that each take writes, and each have every write."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

from unbroken_drill.messages import SERVER_NOT_HERE
from unbroken_drill.servers import folders, ports, processes
from unbroken_drill.servers.base import Value
from unbroken_drill.servers.cluster import Cluster, wait_until
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.mariadb import MariaDB
from unbroken_drill.servers.reaper import reaper

_PROVIDERS = (
    "/usr/lib/galera/libgalera_smm.so",
    "/usr/lib/galera-4/libgalera_smm.so",
    "/usr/lib64/galera-4/libgalera_smm.so",
    "/usr/lib64/galera/libgalera_smm.so",
)

#: The other nodes give up a killed node after one second.
_PROVIDER_SETTINGS: Mapping[str, Value] = {
    "gcache.size": "32M",
    "gcache.recover": "yes",
    "evs.keepalive_period": "PT0.1S",
    "evs.inactive_check_period": "PT0.1S",
    "evs.join_retrans_period": "PT0.1S",
    "evs.suspect_timeout": "PT1S",
    "evs.inactive_timeout": "PT3S",
    "evs.install_timeout": "PT1.5S",
    "gmcast.peer_timeout": "PT1S",
    "gcs.fc_limit": 256,
}

#: Each write is on another node when it is acknowledged, so the node's own disk need not have it.
_SETTINGS: Mapping[str, Value] = {
    "wsrep_on": True,
    "wsrep_sst_method": "rsync",
    "wsrep_cluster_name": "unbroken",
    "binlog_format": "ROW",
    "innodb_autoinc_lock_mode": 2,
    "innodb_flush_log_at_trx_commit": 2,
}

#: Some kernels (gVisor, Solaris zones) forbid setting a thread's scheduling, even without a change.
#: Galera then refuses to start. These functions report success instead.
_SHIM = """
#include <pthread.h>
#include <sched.h>
int pthread_setschedparam(pthread_t t, int policy, const struct sched_param *p) { return 0; }
int pthread_getschedparam(pthread_t t, int *policy, struct sched_param *p) {
    *policy = SCHED_OTHER; p->sched_priority = 0; return 0;
}
"""
_FORBIDDEN = "thread schedparams"  # the words of Galera's log


def provider() -> Path:
    """Return Galera's library. Raises ServerUnavailable if it is not here."""
    named = os.environ.get("UNBROKEN_GALERA")
    for place in (named,) if named else _PROVIDERS:
        if place and Path(place).exists():
            return Path(place)
    where = f"at UNBROKEN_GALERA={named}" if named else "on this machine"
    raise ServerUnavailable(
        SERVER_NOT_HERE(
            f"no libgalera_smm.so {where}; install galera-4 (apt-get, dnf), or set UNBROKEN_GALERA"
            " to its path"
        )
    )


def shim() -> Path:
    """Return the library to preload if the kernel forbids Galera to set its threads' scheduling.

    ``cc`` compiles it once into the cache.
    """
    cache = folders.cache_folder()
    made = cache / "galera-schedparam.so"
    with folders.locked(cache, made.name):
        if not made.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise ServerUnavailable(
                    SERVER_NOT_HERE("Galera needs a C compiler on this kernel; install gcc")
                )
            source, draft = made.with_suffix(".c"), made.with_suffix(".draft")
            source.write_text(_SHIM)
            subprocess.run([compiler, "-shared", "-fPIC", "-o", draft, source], check=True)
            draft.rename(made)
    return made


def _view(name: str, names: Sequence[str]) -> str:
    """Return the text of ``gvwstate.dat``, in which node *name* keeps the cluster of *names*."""
    members = "".join(f"member: {each} 0\n" for each in names)
    return f"my_uuid: {name}\n#vwbeg\nview_id: 3 {min(names)} 1\nbootstrap: 0\n{members}#vwend\n"


class GaleraNode(MariaDB):
    """One node of a :class:`Galera` cluster: a MariaDB server that can also be cut off."""

    backend: ClassVar[str] = "galera"
    hello = "BEGIN"  # a node that is not ready still answers SELECT 1

    def __init__(self, options: Mapping[str, Value] | None = None, **kwargs: Any) -> None:
        super().__init__({**_SETTINGS, **(options or {})}, **kwargs)
        self.template: Path | None = None  #: the data folder from which it is copied
        self.view: str | None = None  #: the cluster in its ``gvwstate.dat`` at the next start
        self.peers: Sequence[GaleraNode] = (self,)
        self.preloaded = False  #: whether :func:`shim` is in use
        self.group_port = ports.port_for(self, self.host)
        self._sst_port, self._ist_port = (ports.port_for(self, self.host) for _ in range(2))

    @classmethod
    def find(cls, *, tls: bool = False) -> Path:
        """Return the ``mariadbd`` to run."""
        provider()
        return super().find(tls=tls)

    def _prepare(self, folder: Path) -> None:
        if self.template is None:
            return super()._prepare(folder)
        copied = shutil.ignore_patterns("galera.cache", "gvwstate.dat", "ib_logfile101", "ibtmp1")
        shutil.copytree(self.template, folder / "data", ignore=copied)
        folders.own_all(folder / "data")
        return None

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self._home / "data"

    @property
    def last_write(self) -> int:
        """The number of the last write in its data, while it does not run; -1: unknown."""
        if self.is_running or self.folder is None:
            return -1
        return int(self._position(self.folder).partition(":")[2] or -1)

    def _command(self, folder: Path) -> list[str | Path]:
        others = [node for node in self.peers if node is not self and node.is_running]
        if self.view is not None:
            others = [node for node in self.peers if node is not self]
            (folder / "data" / "gvwstate.dat").write_text(self.view)
            folders.own(folder / "data" / "gvwstate.dat")
            self.view = None
        elif not others:
            self._allow_bootstrap(folder / "data" / "grastate.dat")
        address = ",".join(f"{node.host}:{node.group_port}" for node in others)
        settings = {
            **_PROVIDER_SETTINGS,
            "gmcast.listen_addr": f"tcp://{self.host}:{self.group_port}",
            "ist.recv_addr": f"{self.host}:{self._ist_port}",
        }
        flags = [
            f"--wsrep-provider={provider()}",
            f"--wsrep-cluster-address=gcomm://{address}",
            f"--wsrep-node-address={self.host}:{self.group_port}",
            f"--wsrep-node-name={self.port}",
            f"--wsrep-sst-receive-address={self.host}:{self._sst_port}",
            f"--wsrep-provider-options={';'.join(f'{k}={v}' for k, v in settings.items())}",
        ]
        position = self._position(folder)
        if position:
            flags.append(f"--wsrep-start-position={position}")
        preload = ["env", f"LD_PRELOAD={shim()}"] if self.preloaded else []
        return [*preload, *super()._command(folder), *flags]

    def _position(self, folder: Path) -> str:
        """Return the position of its data as ``uuid:number``, while it does not run; empty: none
        yet.

        Galera itself only knows it after an orderly end. After a crash it is in the server's log.
        """
        state = folder / "data" / "grastate.dat"
        if not state.exists():
            return ""
        known = dict(line.split(":") for line in state.read_text().splitlines() if ":" in line)
        if known["seqno"].strip() != "-1":
            return f"{known['uuid'].strip()}:{known['seqno'].strip()}"
        flags = [
            f"--wsrep-provider={provider()}",
            "--wsrep-recover",
            "--wsrep-cluster-address=gcomm://",
        ]
        said = processes.run([*super()._command(folder), *flags], folder)
        found: list[str] = re.findall(r"Recovered position: (\S+:\d+)", said)
        return found[-1] if found else ""

    @staticmethod
    def _allow_bootstrap(state: Path) -> None:
        """Let this node start the cluster from its data, because no other node runs."""
        if state.exists():
            text = state.read_text()
            state.write_text(text.replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1"))

    def _launch(self, folder: Path, timeout: float) -> None:
        try:
            super()._launch(folder, timeout)
        except ServerError:
            if self.preloaded or _FORBIDDEN not in self.log.read_text(errors="replace"):
                raise
            self.preloaded = True
            super()._launch(folder, timeout)

    def _welcome(self) -> None:
        if self.template is None:
            super()._welcome()  # the others get it from this one

    # ---- its role in the cluster

    def status(self, name: str) -> str:
        """Return one of the node's status values: ``wsrep_cluster_size``, ``wsrep_ready`` …"""
        rows = self._query(f"SHOW GLOBAL STATUS LIKE '{name}'", None, 5.0)
        return rows[0][1] if rows else ""

    @property
    def is_ready(self) -> bool:
        """Whether it takes statements: its cluster has a majority, and it refuses none."""
        rejects = self._query("SHOW GLOBAL VARIABLES LIKE 'wsrep_reject_queries'", None, 5.0)
        return self.status("wsrep_ready") == "ON" and rejects[0][1] == "NONE"

    def reject(self, *, cut: bool = False) -> None:
        """Answer every statement with error 1047 from now on; *cut*: end the sessions as well."""
        kind = "ALL_KILL" if cut else "ALL"
        self._query(f"SET GLOBAL wsrep_reject_queries = {kind}", None, 30.0)

    def accept(self) -> None:
        """End :meth:`reject`."""
        self._query("SET GLOBAL wsrep_reject_queries = NONE", None, 30.0)

    def isolate(self) -> None:
        """Cut it off from the others: it loses the majority and answers with error 1047."""
        self._query("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'", None, 30.0)
        wait_until(lambda: not self.is_ready, f"the isolation of {self!r}")

    def rejoin(self, timeout: float = 30.0) -> None:
        """End :meth:`isolate`, and wait until it is ready again."""
        self._query("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'", None, 30.0)
        wait_until(lambda: self.is_ready, f"the return of {self!r}", timeout)


class Galera(Cluster[GaleraNode]):
    """A Galera cluster of *nodes*, three by default, each of which takes writes.

    :attr:`writer` is the first node that is ready, like a load balancer that keeps all writes on
    one node.
    """

    def __init__(self, nodes: int = 3, *, options: Mapping[str, Value] | None = None) -> None:
        password = secrets.token_urlsafe(12)
        self.servers = [GaleraNode(options, password=password) for _ in range(nodes)]
        for node in self.servers:
            node.peers = self.servers

    def start(self) -> Self:
        """Start every node that does not run, and wait until all are one cluster."""
        if all(node.folder is None for node in self.servers):
            self._found()
        for node in self._newest_first():
            node.start()
        self.wait_size(len(self.servers))
        return self

    def _found(self) -> None:
        """Do the first start of all nodes: copy the data of one to the others.

        Each is told that they were a cluster before, so that they find each other immediately.
        Galera's own transfer takes up to five seconds for each node, one after the other.
        """
        first = self.servers[0]
        first.start()
        first.stop()
        snapshot = folders.private_folder()
        reaper.watch(snapshot)
        try:
            shutil.copytree(first.data, snapshot / "data")
            names = [str(uuid.uuid1()) for _ in self.servers]
            for node, name in zip(self.servers, names, strict=True):
                node.template = snapshot / "data"
                node.view = _view(name, names)
            with ThreadPoolExecutor(len(self.servers)) as side_by_side:
                list(side_by_side.map(GaleraNode.start, self.servers))
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)
            reaper.forget(snapshot)

    def _newest_first(self) -> list[GaleraNode]:
        """Return all nodes in the order of their start: running ones, then the one with the last
        write.
        """
        return sorted(
            self.servers, key=lambda node: (node.is_running, node.last_write), reverse=True
        )

    def wait_size(self, size: int, timeout: float = 30.0) -> None:
        """Wait until every running node sees *size* nodes."""
        running = [node for node in self.servers if node.is_running]
        wait_until(
            lambda: all(node.status("wsrep_cluster_size") == str(size) for node in running),
            f"a Galera cluster of {size}",
            timeout,
        )

    def takes_writes(self, server: GaleraNode) -> bool:
        """Return whether *server* is ready."""
        return server.is_ready

    @property
    def writer(self) -> GaleraNode:
        """The first node that is ready."""
        for node in self.servers:
            with contextlib.suppress(ServerError):
                if node.is_running and node.is_ready:
                    return node
        return self.servers[0]

    def switchover(self) -> GaleraNode:
        """Restart the writer in order. Returns the node that takes its place meanwhile."""
        old, new = self.writer, self.others[0]
        old.stop()
        old.start()
        return new

    def promote(self) -> GaleraNode:
        """Kill the writer. Returns the node that takes its place until :meth:`repair`."""
        old, new = self.writer, self.others[0]
        old.kill()
        wait_until(lambda: new.is_ready, f"a majority with {new!r}")
        return new

    def repair(self) -> None:
        """Start every node that does not run, and wait until all are one cluster."""
        for node in self.servers:
            if node.is_running:
                node.accept()
        self.start()

    def _refuse(self, server: GaleraNode, on: bool) -> None:
        """Answer every statement with error 1047, or end that."""
        if on:
            server.reject()
        else:
            server.accept()
