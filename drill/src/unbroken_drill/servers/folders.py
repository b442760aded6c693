"""The places of servers' files: private folders, and a cache of files that are slow to make.

A fresh data folder takes a second to make and a tenth to unpack. So each is made once per machine
and version and kept as one tar file. The file is complete or absent, even if many processes need it
at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from unbroken_drill.messages import FOLDER
from unbroken_drill.servers import processes
from unbroken_drill.servers.errors import ServerUnavailable

#: Free memory, in bytes, from which data folders are put there: a server takes 60 to 100 MB.
_MEMORY = 2 << 30


def base_folder() -> Path:
    """Return the folder for temporary files, or another one that the server's user can enter."""
    user = processes.server_user()
    for name in (
        tempfile.gettempdir(),
        "/tmp",  # noqa: S108
        "/var/tmp",  # noqa: S108
    ):
        folder = Path(name).resolve()
        if user is None or all(
            part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents)
        ):
            return folder
    raise ServerUnavailable(
        FOLDER(
            f"user {user.pw_name if user else ''} can access neither TMPDIR nor /tmp; set TMPDIR"
            " to a folder that this user can access"
        )
    )


def private_folder() -> Path:
    """Return a new folder that only the server's user (and root) can enter. Its name is short,
    because socket paths must be.

    It is in memory if there is plenty and TMPDIR does not name another place. A data folder has a
    thousand small files. Some file systems (ext4 without a journal) take a second to make them if
    as many were removed within five minutes.
    """
    memory = Path("/dev/shm")  # noqa: S108 - as above
    roomy = (
        memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _MEMORY
    )
    folder = Path(
        tempfile.mkdtemp(
            prefix="unbroken-",
            dir=memory if roomy and "TMPDIR" not in os.environ else base_folder(),
        )
    )
    own(folder)
    return folder


def own(path: Path) -> None:
    """Give *path* to the server's user."""
    user = processes.server_user()
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def own_all(folder: Path) -> None:
    """Give *folder* and all its contents to the server's user."""
    for path in (folder, *folder.rglob("*")):
        own(path)


def cache_folder() -> Path:
    """Return the folder for files that are kept from run to run. It belongs to this user, and no
    other user can read it. Only the user of root's servers can enter it.

    Raises ServerUnavailable if another user has made it, or can write there.
    """
    folder = _cache_place()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _check_is_ours(folder)
    user = processes.server_user()
    if user is None:
        folder.chmod(0o700)
    else:
        os.chown(folder, -1, user.pw_gid)
        folder.chmod(0o710)
    return folder


def _cache_place() -> Path:
    return base_folder() / f"unbroken-cache-{os.geteuid()}"


def _check_is_ours(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ServerUnavailable(
            FOLDER(
                f"{folder} is not private to this user; remove it, or set TMPDIR to a private"
                " folder"
            )
        )


def cache_size() -> tuple[Path, int | None]:
    """Return the cache's folder, and its size in bytes; None: there is none."""
    folder = _cache_place()
    try:
        _check_is_ours(folder)
    except FileNotFoundError:
        return folder, None
    return folder, sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def remove_cache() -> tuple[Path, int | None]:
    """Remove the cache, and return the earlier result of :func:`cache_size`. Its contents are made
    or fetched again when they are needed.

    Raises ServerUnavailable for another user's folder.
    """
    folder, size = cache_size()
    if size is not None:
        doomed = Path(tempfile.mkdtemp(prefix="unbroken-old-cache-", dir=folder.parent))
        folder.rename(doomed / folder.name)  # atomic: a process that needs it now makes another
        shutil.rmtree(doomed, ignore_errors=True)
    return folder, size


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Let one process in at a time, so that slow work is done once and not by each of them."""
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack_template(name: str, make: Callable[[Path], None], into: Path) -> None:
    """Unpack the template *name* into the folder *into*. If there is none yet, ``make(folder)``
    makes it first.
    """
    cache = cache_folder()
    archive = cache / f"{name}.tar"
    if not archive.exists():
        with locked(cache, name):
            if not archive.exists():
                _make_template(archive, make)
    _extract(archive, into)


def _extract(archive: Path, into: Path) -> None:
    """Unpack *archive*, our own, with the owners and modes in it.

    By ``tar``, where there is one: PostgreSQL's thousand files take Python ten times as long.
    """
    into.mkdir(exist_ok=True)
    program = shutil.which("tar")
    if program is not None:
        command = [program, "-xpf", str(archive), "-C", str(into)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    with tarfile.open(archive) as tar:
        tar.extraction_filter = lambda member, _: member
        tar.extractall(into)


def _make_template(archive: Path, make: Callable[[Path], None]) -> None:
    workshop = private_folder()
    try:
        data = workshop / "data"
        data.mkdir(mode=0o700)
        own(data)
        make(data)
        draft = archive.with_suffix(f".{os.getpid()}")
        with tarfile.open(draft, "w") as tar:
            tar.add(data, ".")
        draft.rename(archive)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def readable_copy(name: str, source: Path, parts: list[str]) -> Path:
    """Return a copy of *source*'s *parts* in the cache, for a server's user that cannot enter
    *source* itself.
    """
    cache = cache_folder()
    target = cache / name
    with locked(cache, name):
        if not _is_complete(source, target, parts):
            shutil.rmtree(target, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache))
            draft.chmod(0o755)
            for part in parts:
                (draft / part).parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (source / part).is_dir() else shutil.copy
                copy(source / part, draft / part)
            draft.rename(target)
    return target


def _is_complete(source: Path, target: Path, parts: list[str]) -> bool:
    """Return whether the copy has every file. (The system's cleaning of old temporary files may
    have removed some.)
    """
    for part in parts:
        files = (
            [source / part]
            if (source / part).is_file()
            else [f for f in (source / part).rglob("*") if f.is_file()]
        )
        for file in files:
            copy = target / file.relative_to(source)
            if not copy.is_file() or copy.stat().st_size != file.stat().st_size:
                return False
    return True
