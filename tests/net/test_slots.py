"""A file that processes share, with a lock for each slot: dead holders hold nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken.net.slots import Flag, Slots

from .test_fork_guard import raw_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such locks are Linux's")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"unbroken-{os.geteuid()}"


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots("shop")
    yield made
    made.close()


def take(slots: Slots, limit: int = 3, *, low: bool = True, dead: bool = False) -> Any:
    """A slot, and whether its holder has died."""
    slot = slots.take(limit, low=low)
    if slot is not None or not dead:
        return None if slot is None else (slot, False)
    slot = slots.take_dead(limit)
    return None if slot is None else (slot, True)


@contextlib.contextmanager
def process(work: Callable[[Any], None]) -> Iterator[Any]:
    """A forked child that runs *work* with one end of a pipe; the other end, and its pid."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=work, args=(there,))
    child.start()
    try:
        yield here, child
    finally:
        child.kill()
        child.join()


def test_each_slot_is_one_holders(slots: Slots) -> None:
    other = Slots("shop")
    assert [take(slots), take(other), take(slots), take(other)] == [
        (0, False), (1, False), (2, False), None,
    ]  # fmt: skip
    assert slots.held == {0, 2}
    assert slots.free(3) == other.free(3) == 0
    slots.give_back(0)
    assert slots.free(3) == 1
    assert take(other, low=False) == (0, False)
    other.close()
    assert slots.free(3) == 2


def test_another_name_is_another_file(slots: Slots) -> None:
    other = Slots("blog")
    assert take(slots) == take(other) == (0, False)
    other.close()


def test_flags_are_seen_by_all_others_and_go_with_their_owner(slots: Slots) -> None:
    others = [Slots("shop") for _ in range(5)]
    assert slots.others(Flag.MEMBER) == 5
    for each in others[:3]:
        each.raise_flag(Flag.HUNGRY, True)
        each.raise_flag(Flag.HUNGRY, True)
    assert slots.others(Flag.HUNGRY) == 3
    assert others[0].others(Flag.HUNGRY) == 2
    assert slots.others(Flag.HUNGRY, 1) == 1
    others[0].raise_flag(Flag.HUNGRY, False)
    others[1].close()
    assert slots.others(Flag.HUNGRY) == 1
    assert slots.others(Flag.STARVES) == 0
    for each in others:
        each.close()
    assert slots.others(Flag.MEMBER) == 0


def test_what_the_server_granted_is_written_for_all(slots: Slots) -> None:
    assert slots.limit is None
    slots.limit = 24
    other = Slots("shop")
    assert other.limit == 24
    other.close()


@pytest.mark.parametrize("text", [b"", b"unbroken-share-1 24 2", b"\xff" * 64, b"x 1 1", b"a\0b"])
def test_what_cannot_be_read_is_not_known(slots: Slots, folder: Path, text: bytes) -> None:
    slots.limit = 24
    next(folder.iterdir()).write_bytes(text)
    assert slots.limit is None


def test_the_slot_of_a_process_that_was_killed_is_free_and_known_for_that(slots: Slots) -> None:
    def work(pipe: Any) -> None:
        mine = Slots("shop")
        pipe.send(take(mine))
        signal.pause()

    with process(work) as (pipe, child):
        assert pipe.recv() == (0, False)
        assert take(slots, 1, dead=True) is None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert take(slots, 1) is None
        assert take(slots, 1, dead=True) == (0, True)


def test_a_child_holds_nothing_of_its_parents_nor_keeps_it_from_being_freed(slots: Slots) -> None:
    """Its copy of the descriptor would keep the locks when the parent dies."""
    inherited = Slots("shop")
    assert take(inherited) == (0, False)

    def work(pipe: Any) -> None:
        mine = Slots("shop")
        pipe.send((inherited.held, take(mine)))
        signal.pause()

    with process(work) as (pipe, _child):
        assert pipe.recv() == (set(), (1, False))
        inherited.close()
        assert take(slots, 1, dead=True) == (0, True)


def test_a_fork_that_python_does_not_see_frees_nothing_of_its_parents(slots: Slots) -> None:
    assert take(slots) == (0, False)
    pid = raw_fork()
    if pid == 0:
        slots.close()
        os._exit(0)
    os.waitpid(pid, 0)
    other = Slots("shop")
    assert take(other, 1, dead=True) is None
    other.close()


def test_the_file_is_its_owners_alone_and_shows_no_name(slots: Slots, folder: Path) -> None:
    (file,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "shop" not in file.name
    assert b"shop" not in file.read_bytes()
    assert not os.get_inheritable(slots._fd)


def test_the_last_one_removes_the_file(folder: Path) -> None:
    first, last = Slots("shop"), Slots("shop")
    first.close()
    first.close()
    assert list(folder.iterdir())
    last.close()
    assert not list(folder.iterdir())


def test_a_file_that_was_removed_is_noticed(slots: Slots, folder: Path) -> None:
    assert slots.is_current
    next(folder.iterdir()).unlink()
    assert not slots.is_current
    other = Slots("shop")
    assert other.is_current
    assert not slots.is_current
    other.close()


def test_a_descriptor_that_others_closed_is_noticed_and_never_closed_twice(slots: Slots) -> None:
    number = slots._fd
    os.close(number)
    assert not slots.is_current
    null = os.open(os.devnull, os.O_RDONLY)
    taken = os.dup2(null, number)
    slots.leave_behind()
    for each in {null, taken}:
        os.fstat(each)
        os.close(each)


@pytest.mark.parametrize(
    "what", ["open folder", "link for a folder", "link", "folder", "open file"]
)
def test_what_is_not_ours_alone_is_refused(what: str, folder: Path, tmp_path: Path) -> None:
    Slots("shop").close()
    probe = Slots("shop")
    name = next(folder.iterdir()).name
    probe.close()
    file = folder / name
    if what == "open folder":
        folder.chmod(0o755)
    elif what == "link for a folder":
        folder.rename(tmp_path / "real")
        folder.symlink_to(tmp_path / "real")
    elif what == "link":
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "folder":
        file.mkdir(mode=0o700)
    else:
        file.touch(mode=0o600)
        file.chmod(0o666)
    with pytest.raises(OSError):
        Slots("shop")
    assert not (tmp_path / "elsewhere").exists()


def test_many_processes_that_come_and_go_never_hold_more_than_there_are() -> None:
    """Also while the last one removes the file and others open it."""

    def work(pipe: Any) -> None:
        until, taken = time.monotonic() + 1.0, 0
        while time.monotonic() < until:
            mine = Slots("shop")
            got = take(mine, 2, dead=True)
            if got is not None:
                with Path(f"{os.environ['HELD']}-{got[0]}").open("x"):  # nobody else has it
                    taken += 1
                os.unlink(f"{os.environ['HELD']}-{got[0]}")
                mine.give_back(got[0])
            mine.close()
        pipe.send(taken)

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        import tempfile

        patch.setenv("HELD", str(Path(tempfile.gettempdir()) / "held"))
        pipes = [stack.enter_context(process(work))[0] for _ in range(4)]
        assert all(pipe.recv() > 0 for pipe in pipes if pipe.poll(20.0))
