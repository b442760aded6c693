"""Slots that processes of one user share: a small file, with one kernel lock for each slot.

A lock belongs to an *open file description* (``F_OFD_SETLK``). The kernel releases it whenever the
process ends, even in a crash. No call here waits. A slot that one process holds appears taken to
all others.

Locks cover single bytes. A slot's byte is also written: 1 while it is held. This distinguishes a
slot whose holder died without releasing it from a free slot. The file's content is not needed after
a reboot.

A forked child inherits the description, and with it its parent's locks. It closes its copy
(:meth:`Slots.leave_behind`), which releases nothing, and opens the file again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import time
import weakref
from enum import IntEnum
from types import ModuleType

from unbroken.net.fork_guard import fork_mark

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: More slots than any server has connections.
MOST = 100_000
#: Offset of the slots in the file. The server's limit is stored before it.
_SLOTS = 4096
_HEAD = 64
_MAGIC = "unbroken-share-1"
_FLOCK = struct.Struct("hhqqi0q")
_TAKEN = (errno.EAGAIN, errno.EACCES)


class Flag(IntEnum):
    """A flag that a member shows to the others by a lock on its own byte. The value is the offset
    of member 0's byte.
    """

    MEMBER = 1 << 30
    HUNGRY = 2 << 30
    STARVES = 3 << 30


#: Maximum number of members.
_MEMBERS = 1 << 16
#: An offset beyond all locked bytes.
_END = 4 << 30
#: How often to open the file again if its last user is removing it at that moment.
_ATTEMPTS = 20

#: Maps a descriptor to the object that owns it now. A number may be reused by another of these
#: objects.
_owners: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()


def supported() -> bool:
    """Whether this system supports locks of open file descriptions."""
    return fcntl is not None and hasattr(fcntl, "F_OFD_SETLK") and sys.platform == "linux"


class Slots:
    """One open file. All methods are called under the lock of the pool that owns it.

    Raises OSError if the file cannot be created, if it belongs to another user or is a link, or if
    the system cannot lock it.
    """

    def __init__(self, name: str) -> None:
        self.held: set[int] = set()
        self.number = 0  #: this member's number
        self._raised: set[Flag] = set()
        self._mark = fork_mark()
        for _ in range(_ATTEMPTS):
            self._path, self._fd = _open(name)
            _owners[self._fd] = self
            found = os.fstat(self._fd)
            self._identity = (found.st_dev, found.st_ino)
            try:
                if self._join():
                    return
            except BaseException:
                self.leave_behind()
                raise
            self.leave_behind()
        raise OSError(errno.EAGAIN, "the file is being removed, or too many pools use it")

    def _join(self) -> bool:
        """Become a member. Return False if the last member that left is about to remove the
        file.
        """
        if not self._is_locked(0, _END):  # its content is from processes that have ended
            os.ftruncate(self._fd, _SLOTS)
        start = os.getpid() % _MEMBERS
        for number in range(start, start + 256):
            if self._lock(Flag.MEMBER + number % _MEMBERS):
                self.number = number % _MEMBERS
                return self.is_current
        return False

    # -- slots -------------------------------------------------------------------------------------

    def take(self, limit: int, *, low: bool) -> int | None:
        """Acquire a free slot below *limit* that was properly released, the lowest (*low*) or the
        highest. None if there is none.
        """
        return self._take(limit, was_held=False, low=low)

    def take_dead(self, limit: int) -> int | None:
        """Acquire a slot whose holder has died. None if there is none."""
        return self._take(limit, was_held=True, low=True)

    def _take(self, limit: int, *, was_held: bool, low: bool) -> int | None:
        states = os.pread(self._fd, limit, _SLOTS).ljust(limit, b"\0")
        for slot in range(limit) if low else range(limit - 1, -1, -1):
            if bool(states[slot]) is was_held and slot not in self.held:
                if not self._lock(_SLOTS + slot):
                    continue
                self.held.add(slot)
                os.pwrite(self._fd, b"\1", _SLOTS + slot)
                return slot
        return None

    def give_back(self, slot: int) -> None:
        """Release a held slot."""
        os.pwrite(self._fd, b"\0", _SLOTS + slot)
        self._unlock(_SLOTS + slot)
        self.held.discard(slot)

    def free(self, limit: int) -> int:
        """The number of free slots below *limit*."""
        taken = self._count(_SLOTS, _SLOTS + limit, limit)
        return limit - taken - sum(slot < limit for slot in self.held)

    # -- flags of the members ----------------------------------------------------------------------

    def raise_flag(self, flag: Flag, up: bool) -> None:
        """Show *flag* to all other members, or withdraw it."""
        if up is (flag in self._raised):
            return
        if up and self._lock(flag + self.number):
            self._raised.add(flag)
        elif not up:
            self._unlock(flag + self.number)
            self._raised.discard(flag)

    def others(self, flag: Flag, most: int = 1024) -> int:
        """The number of other members that show *flag*, counted up to *most*."""
        return self._count(flag, flag + _MEMBERS, most)

    # -- the server's limit ------------------------------------------------------------------------

    @property
    def limit(self) -> int | None:
        """The number of slots that was written last. None if none was written."""
        words = os.pread(self._fd, _HEAD, 0).decode("ascii", "replace").split()
        if len(words) < 3 or words[0] != _MAGIC or words[1] != words[2] or not words[1].isdigit():
            return None
        return min(int(words[1]), MOST)

    @limit.setter
    def limit(self, number: int) -> None:
        text = f"{_MAGIC} {number} {number} {int(time.time())}\n"
        os.pwrite(self._fd, text.encode().ljust(_HEAD), 0)

    # -- the file ----------------------------------------------------------------------------------

    @property
    def is_current(self) -> bool:
        """Whether the path still leads to this file, and the descriptor still refers to it."""
        try:
            here, there = os.fstat(self._fd), os.lstat(self._path)
        except OSError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) == self._identity

    def close(self) -> None:
        """Release everything. The last member removes the file."""
        if self._fd < 0 or not self._mark[0]:
            self.leave_behind()
            return
        with contextlib.suppress(OSError):
            # While this lock is held, no other member has one, and none that opens the file can
            # join.
            if self.is_current and self._lock(0, _END):
                os.unlink(self._path)
        self.leave_behind()

    def leave_behind(self) -> None:
        """Close the descriptor, if it still refers to this file. In a forked child this releases
        none of the parent's locks.
        """
        fd, self._fd = self._fd, -1
        self.held.clear()
        self._raised.clear()
        if fd < 0 or _owners.get(fd, self) is not self:
            return
        _owners.pop(fd, None)
        with contextlib.suppress(OSError):
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == self._identity:
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.leave_behind()

    # -- locks -------------------------------------------------------------------------------------

    def _lock(self, start: int, length: int = 1) -> bool:
        try:
            self._call("F_OFD_SETLK", "F_WRLCK", start, length)
        except OSError as exc:
            if exc.errno in _TAKEN:
                return False
            raise
        return True

    def _unlock(self, start: int) -> None:
        self._call("F_OFD_SETLK", "F_UNLCK", start, 1)

    def _is_locked(self, start: int, end: int) -> tuple[int, int] | None:
        """The byte range of one lock that another member holds between *start* and *end*."""
        if start >= end:
            return None
        kind, _, first, length, _ = _FLOCK.unpack(
            self._call("F_OFD_GETLK", "F_WRLCK", start, end - start)
        )
        if fcntl is None or kind == fcntl.F_UNLCK:
            return None
        return first, end if length == 0 else first + length

    def _count(self, start: int, end: int, most: int) -> int:
        """The number of bytes that others have locked in the range. The kernel reports any one of
        the locks.
        """
        todo, found = [(start, end)], 0
        while todo and found < most:
            begin, until = todo.pop()
            lock = self._is_locked(begin, until)
            if lock is None:
                continue
            first, after = max(begin, lock[0]), min(until, lock[1])
            found += after - first
            todo += [(begin, first), (after, until)]
        return min(found, most)

    def _call(self, what: str, kind: str, start: int, length: int) -> bytes:
        if fcntl is None or self._fd < 0:
            raise OSError(errno.EBADF, "the file is closed")
        asked = _FLOCK.pack(getattr(fcntl, kind), os.SEEK_SET, start, length, 0)
        answer: bytes = fcntl.fcntl(self._fd, getattr(fcntl, what), asked)
        return answer


def _open(name: str) -> tuple[str, int]:
    """Path and descriptor of the file for *name*, in a directory that belongs to this user alone.

    The name is hashed, because it may be long or confidential.
    """
    # Imported on demand: most programs do not need them.
    import tempfile
    from hashlib import sha256

    if not supported():
        raise OSError(errno.ENOSYS, "this system has no open file description locks (Linux has)")
    folder = os.path.join(tempfile.gettempdir(), f"unbroken-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    digest = sha256(name.encode(errors="surrogatepass")).hexdigest()
    file = f"share-{digest[:24]}"
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _must_be_ours(above, folder, is_kind=stat.S_ISDIR)
        how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(file, how, 0o600, dir_fd=above)
    finally:
        os.close(above)
    path = os.path.join(folder, file)
    try:
        _must_be_ours(fd, path, is_kind=stat.S_ISREG)
    except BaseException:
        os.close(fd)
        raise
    return path, fd


def _must_be_ours(fd: int, path: str, *, is_kind: object) -> None:
    found = os.fstat(fd)
    if not is_kind(found.st_mode):  # type: ignore[operator] # a function of the module stat
        raise OSError(errno.EEXIST, f"{path} is not a regular file or folder")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, f"{path} belongs to another user, or is open to others")


def _after_in_child() -> None:
    for slots in list(_owners.values()):
        slots.leave_behind()


def _at_exit() -> None:
    for slots in list(_owners.values()):
        with contextlib.suppress(OSError):
            if slots._mark[0] and not slots._is_locked(0, _END):
                slots.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
