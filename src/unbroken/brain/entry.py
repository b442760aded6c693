"""The record of one connection: when it was opened and last used, which caller holds it, and why it
ended.

Exactly one party owns an entry at a time: the pool (the entry is in ``Kernel.idle``), a caller (it
is in ``Kernel.in_use``), or a worker that opens, checks or closes it. Only its owner may change it.
The exception is ``condemn``, a single atomic write that any thread may make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

from unbroken.abc import Address, Cause, Fault

#: The generation of an entry that must not be used again. Real generations count up from 0.
CONDEMNED = -1


class Entry:
    """One connection of a pool, with the pool's knowledge about it.

    Times are ``time.monotonic()`` seconds.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "anchor",
        "born",
        "cause",
        "code",
        "conn",
        "count",
        "due",
        "end_seen",
        "ending",
        "fd",
        "generation",
        "holder",
        "identity",
        "joined",
        "joins",
        "key",
        "last_used",
        "lasti",
        "led_to",
        "opening",
        "peer",
        "poll",
        "queued",
        "recall",
        "ref",
        "reported",
        "reset_at",
        "retire_at",
        "run_in",
        "sent",
        "session",
        "settled_at",
        "suspect",
        "taken_at",
        "traits",
        "uses",
        "watched",
        "words",
    )

    def __init__(self, conn: Any, now: float, generation: int, retire_at: float) -> None:
        self.conn: Any = conn  #: the driver's connection; ``anchor`` while in use
        self.anchor: Any = conn  #: None once a weak reference reports that its holder dropped it
        self.ref: Any = None  #: that weak reference
        self.key = id(conn)
        self.address: Address | None = None  #: its host, where the cluster has several
        self.fd: int | None = None
        self.peer: str | None = None  #: the remote address, if the host name's lookups are followed
        self.identity: tuple[int, int] | None = (
            None  #: device and inode of its socket: descriptors are reused
        )
        self.poll: Callable[[int], list[Any]] = _nothing_to_see
        self.session: str | None = None  #: the server's number for this session
        #: The number of the session that a pooler assigned when the connection was opened, if it
        #: was asked.
        self.led_to: int | None = None
        self.born = now
        self.retire_at = retire_at
        self.last_used = now
        self.generation = generation
        self.uses = 0
        self.joins = 0  #: how often it joined a unit of work that can be replayed
        self.count: Callable[[], int | None] = _not_counted  #: counts data sent on its socket
        self.sent: int | None = (
            None  #: that count when it was last certain that no transaction was open
        )
        #: When the pool sent a COMMIT or ROLLBACK whose answer is still unread; else None.
        self.due: float | None = None
        #: Whether such an answer was read on it and was as expected. Only then may the next one be
        #: read late.
        self.end_seen = False
        self.settled_at = -1  #: the use in which our own COMMIT or ROLLBACK was last answered
        #: The values that a reset of its session must restore. None: unknown, so the connection is
        #: closed.
        self.opening: Any = None
        self.recall: Callable[[], Any] = (
            _not_counted  #: gives what asks its holder to give it back, or None
        )
        self.reset_at = -1  #: the use after which its session was reset
        self.traits: Any = (
            None  #: how its driver described it when it was opened; see :meth:`doubt`
        )
        self.suspect: tuple[Any, Fault] | None = (
            None  #: those traits, and the refusal, while the server must be asked why it refused
        )
        self.taken_at = now
        #: The use before which its caller waited in the line, and the start of that wait.
        self.queued: tuple[int, float] = (-1, now)
        self.code: CodeType | None = None  #: where it was acquired: the code object …
        #: … and the instruction. It is inverted if it began no ``with`` block of ours: see
        #: :meth:`taken_at_call`.
        self.lasti = -1
        self.run_in = -1  #: the use that is a call of ``run``: it ends with that call
        self.holder = 0  #: the thread's ident
        self.reported = 0  #: the use whose holder was reported as a leak
        #: The sent count and the reported leak when it joined a unit of work.
        self.joined: tuple[int | None, int] = (None, 0)
        self.watched = False  #: whether its statements are reported to a unit of work
        self.cause: Cause | None = None  #: why it ended, or will end
        self.words = ""  #: the server's message about that
        self.ending: Any = None  #: the ending of the work that lost it: see pool/undone.py

    @property
    def place(self) -> Place | None:
        """Where it was last acquired. None if it never was."""
        return None if self.code is None else Place.of(self.code, self.instruction)

    @property
    def instruction(self) -> int:
        """The instruction of ``code`` at which it was acquired."""
        return self.lasti if self.lasti >= 0 else ~self.lasti

    def taken_at_call(self, code: CodeType, lasti: int) -> None:
        """Record the place of a use that may continue after the call at *lasti*, and its function,
        have returned.
        """
        self.code, self.lasti = code, ~lasti

    def doubt(self, fault: Fault) -> None:
        """The server refused a write as read-only (*fault*). Before the next use the pool asks it
        why.

        Until then no code treats the connection as clean.
        """
        if self.suspect is None:
            self.suspect, self.traits = (self.traits, fault), _DOUBTED

    def cleared(self) -> None:
        """Undo :meth:`doubt`."""
        if self.suspect is not None:
            (self.traits, _), self.suspect = self.suspect, None

    def condemn(self, cause: Cause, words: str = "") -> None:
        """Mark the connection for closing, so that it is not used again.

        Any thread may call this. The first cause is kept.
        """
        if self.cause is None:
            self.cause, self.words = cause, words
        self.generation = CONDEMNED

    def __repr__(self) -> str:
        return (
            f"<connection {self.session or hex(self.key)} used {self.uses}"
            f" times{f', {self.cause}' if self.cause else ''}>"
        )


#: Traits that match no connection's.
_DOUBTED = object()


def _not_counted() -> None:
    return None


def _nothing_to_see(_timeout: int) -> list[Any]:
    return []


@dataclass(frozen=True, slots=True)
class Place:
    """A line of source code."""

    file: str
    line: int
    function: str

    @classmethod
    def of(cls, code: CodeType, lasti: int) -> Place:
        """The line of instruction *lasti* in *code*.

        Computed on demand, because it costs more than recording both values.
        """
        line = code.co_firstlineno
        for start, end, number in code.co_lines():
            if start <= lasti < end and number is not None:
                line = number
                break
        return cls(code.co_filename, line, code.co_qualname)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"
