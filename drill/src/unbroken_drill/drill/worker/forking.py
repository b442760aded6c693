"""A warm parent forks, and all processes ask at the same time which session answers them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections import Counter
from typing import Any, Final

from unbroken_drill.drill.contenders.base import ERROR, WRONG
from unbroken_drill.drill.results import one_line
from unbroken_drill.drill.worker.load import WATCHDOG, Record, Traffic, merge

#: Seconds from the first fork to the common start: enough for the last child to be ready.
_START: Final = 0.3


def ask_all(traffic: Traffic, children: int, times: int, patience: float = WATCHDOG) -> int:
    """Fork *children*. Each process asks *times* which session answers it. All records go into
    *traffic*. Returns the number of hanging requests.

    The parent asks half of its questions beside its children. It asks the other half after they
    have ended in the ordinary way, with all finalizers: a child's end must not end its parent's
    sessions either. Children have *patience* seconds.
    """
    begin = time.monotonic() + _START
    born = {}
    for index in range(children):
        pid, pipe = _fork(traffic, (index + 1) * 1_000_000, times, begin)
        born[pid] = pipe
    _wait_until(begin)
    traffic.ask_who(times // 2)
    answers, hung = _collect(born, patience)
    traffic.ask_who(times - times // 2)
    _merge(traffic, answers, children)
    return hung


def _fork(traffic: Traffic, first: int, times: int, begin: float) -> tuple[int, int]:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    os.close(read)
    signal.alarm(int(2 * WATCHDOG))  # the child ends even if something blocks it
    mine = Traffic(traffic.app, traffic.backend, first, first)
    try:
        mine.app.after_fork()
    except Exception as error:
        mine.samples[one_line(error)] += 1
    _wait_until(begin)
    mine.ask_who(times)
    _send(
        write, {"records": mine.records, "sessions": sorted(mine.sessions), "samples": mine.samples}
    )
    raise SystemExit(0)  # through every finalizer and exit hook, as a worker of a web server ends


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _send(fd: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)


def _collect(born: dict[int, int], patience: float) -> tuple[list[dict[str, Any]], int]:
    """Return each child's answer, and the number of children that gave none within *patience*
    seconds or did not end. All have ended afterwards.

    The end takes 0.1 s of the processor's time, including finalizers. On a busy machine that can be
    seconds, so a child that has answered may take as long again.
    """
    deadline = time.monotonic() + patience
    answers, hung = [], 0
    for pid, pipe in born.items():
        answer = _read(pipe, deadline)
        if answer is not None:
            answers.append(answer)
        if (
            not _ended(pid, deadline if answer is None else time.monotonic() + patience)
            or answer is None
        ):
            hung += 1
    return answers, hung


def _read(pipe: int, deadline: float) -> dict[str, Any] | None:
    data = b""
    with open(pipe, "rb", buffering=0) as stream:
        while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            more = stream.read(65536)
            if not more:
                break
            data += more
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        return None
    return answer


def _ended(pid: int, deadline: float) -> bool:
    """Return whether the child ends by itself until *deadline*. Otherwise it is killed."""
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _merge(traffic: Traffic, answers: list[dict[str, Any]], children: int) -> None:
    users: Counter[int] = Counter(traffic.sessions)
    for answer in answers:
        users.update(answer["sessions"])
        traffic.records += [Record(*record) for record in answer["records"]]
    traffic.samples += merge(answer["samples"] for answer in answers)
    now = time.monotonic()
    for session, processes in users.items():
        if processes > 1:
            traffic.samples[f"session {session} was used by {processes} processes"] += 1
            traffic.records.append(Record(now, now, WRONG, writes=False, number=-session))
    for _ in range(children - len(answers)):
        traffic.samples["a forked child ended without an answer"] += 1
        traffic.records.append(Record(now, now, ERROR, writes=False, number=0))
