"""One connection's life: when it was born and last used, who has it now, and why it died.

An entry is owned by exactly one party at a time: the pool (it stands in ``Kernel.idle``), a caller
(it stands in ``Kernel.in_use``), or a worker that opens, checks or closes it. Only its owner may
change it, except for ``condemn``, which is one atomic write and may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

from unbroken.abc import Address, Cause, Fault

#: The generation of an entry that must not be lent again. Real generations count up from 0.
CONDEMNED = -1


class Entry:
    """One connection of a pool and what the pool knows of it.

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
        self.conn: Any = conn  #: the driver's connection; ``anchor`` while it is lent
        self.anchor: Any = conn  #: None once a weak reference tells when its holder forgets it
        self.ref: Any = None  #: that weak reference
        self.key = id(conn)
        self.address: Address | None = None  #: its host, where the cluster has several
        self.fd: int | None = None
        self.peer: str | None = None  #: the address at the other end, where its name is followed
        self.identity: tuple[int, int] | None = (
            None  #: device and inode of its socket: descriptors are reused
        )
        self.poll: Callable[[int], list[Any]] = _nothing_to_see
        self.session: str | None = None  #: the server's number for it
        #: the number of the session to which a pooler led it when it was opened, where it was asked
        self.led_to: int | None = None
        self.born = now
        self.retire_at = retire_at
        self.last_used = now
        self.generation = generation
        self.uses = 0
        self.joins = 0  #: how often it joined a unit of work that is run again when it is lost
        self.count: Callable[[], int | None] = _not_counted  #: what was sent on its socket so far
        self.sent: int | None = (
            None  #: that count when it was last certain that no transaction was open
        )
        #: when the pool sent the COMMIT or ROLLBACK whose answer nobody has read yet; else None
        self.due: float | None = None
        #: whether such an answer was seen on it, and was as expected: the next one may be read late
        self.end_seen = False
        self.settled_at = -1  #: the use in which our own COMMIT or ROLLBACK was answered last
        #: what a reset of its session has to set again; None: it is not known, so it is closed
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
        #: the use before which its caller waited in the line, and since when
        self.queued: tuple[int, float] = (-1, now)
        self.code: CodeType | None = None  #: where it was taken: the code object …
        #: … and the instruction, inverted where it began no ``with`` block of ours: see
        #: :meth:`taken_at_call`
        self.lasti = -1
        self.run_in = -1  #: the use that a call of ``run`` is: it ends when that call does
        self.holder = 0  #: the thread's ident
        self.reported = 0  #: the use whose holder was reported as a leak
        #: what was sent, and reported, when it joined a unit of work
        self.joined: tuple[int | None, int] = (None, 0)
        self.watched = False  #: whether its statements are being told to a unit of work
        self.cause: Cause | None = None  #: why it ended, or will
        self.words = ""  #: what the server said about that
        self.ending: Any = None  #: of the work that it was lost under: see pool/undone.py

    @property
    def place(self) -> Place | None:
        """Where it was taken last, or None if it never was."""
        return None if self.code is None else Place.of(self.code, self.instruction)

    @property
    def instruction(self) -> int:
        """Of ``code``: the one at which it was taken."""
        return self.lasti if self.lasti >= 0 else ~self.lasti

    def taken_at_call(self, code: CodeType, lasti: int) -> None:
        """Note the place of a use that may go on after the call at *lasti* has returned, and the
        function with it.
        """
        self.code, self.lasti = code, ~lasti

    def doubt(self, fault: Fault) -> None:
        """The server refused a write as read-only (*fault*): before the next use it is asked why.

        Until then nobody takes it for clean.
        """
        if self.suspect is None:
            self.suspect, self.traits = (self.traits, fault), _DOUBTED

    def cleared(self) -> None:
        """The opposite of :meth:`doubt`."""
        if self.suspect is not None:
            (self.traits, _), self.suspect = self.suspect, None

    def condemn(self, cause: Cause, words: str = "") -> None:
        """See to it that it is closed instead of lent again.

        Safe from any thread; the first cause stands.
        """
        if self.cause is None:
            self.cause, self.words = cause, words
        self.generation = CONDEMNED

    def __repr__(self) -> str:
        return (
            f"<connection {self.session or hex(self.key)} used {self.uses}"
            f" times{f', {self.cause}' if self.cause else ''}>"
        )


#: Traits that no connection has.
_DOUBTED = object()


def _not_counted() -> None:
    return None


def _nothing_to_see(_timeout: int) -> list[Any]:
    return []


@dataclass(frozen=True, slots=True)
class Place:
    """A line of somebody's code."""

    file: str
    line: int
    function: str

    @classmethod
    def of(cls, code: CodeType, lasti: int) -> Place:
        """The line of instruction *lasti* of *code*.

        Worked out only when somebody asks: that costs more than noting both.
        """
        line = code.co_firstlineno
        for start, end, number in code.co_lines():
            if start <= lasti < end and number is not None:
                line = number
                break
        return cls(code.co_filename, line, code.co_qualname)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"
