"""Cuts a stream into frames, in pieces of any size: a header contains the length of the body that
follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: The number of bytes of a frame's body that are kept for a look; the rest passes unread.
HEAD = 64 * 1024


@dataclass(slots=True)
class Frame:
    """One frame, as far as it has arrived.

    ``start`` and ``end`` are offsets into the chunk just read.
    """

    header: bytes
    length: int  #: of the body
    head: bytes  #: the first bytes of the body, HEAD at most
    start: int  #: where it begins; 0 if it began in an earlier chunk
    end: int
    complete: bool


class Frames:
    """Reads frames. *size* is the header's (it can be changed between two frames). *length* reads
    the body's length from it; a negative one is an error.
    """

    def __init__(self, size: int, length: Callable[[bytes], int]) -> None:
        self.size = size
        self.is_wrong = False  # a header was wrong: nothing more is read
        self._length = length
        self._header = b""
        self._body = bytearray()
        self._left = self._total = 0

    @property
    def is_between(self) -> bool:
        """Whether no frame is in progress."""
        return not self._header

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield each frame when its header is complete, and again when the frame is complete."""
        at = start = 0
        while at < len(data) and not self.is_wrong:
            if len(self._header) < self.size:
                start = at if not self._header else 0
                take = min(self.size - len(self._header), len(data) - at)
                self._header += data[at : at + take]
                at += take
                if len(self._header) < self.size:
                    return
                self._left = self._total = self._length(self._header)
                self._body.clear()
                self.is_wrong = self._total < 0
                if self.is_wrong:
                    return
                yield self._frame(start, at, complete=False)
            take = min(self._left, len(data) - at)
            self._body += data[at : at + min(take, HEAD - len(self._body))]
            at += take
            self._left -= take
            if not self._left:
                frame = self._frame(start, at, complete=True)
                self._header = b""
                start = at
                yield frame

    def _frame(self, start: int, end: int, *, complete: bool) -> Frame:
        return Frame(self._header, self._total, bytes(self._body), start, end, complete)
