"""Cuts a stream into frames, whatever the pieces it comes in: a header that tells the length of
what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: So much of a frame's body is kept to be looked at; the rest passes unread.
HEAD = 64 * 1024


@dataclass(slots=True)
class Frame:
    """One frame, as far as it has come.

    ``start`` and ``end`` are offsets into the chunk just read.
    """

    header: bytes
    length: int  #: of the body
    head: bytes  #: the first bytes of the body, HEAD at most
    start: int  #: where it begins; 0 when that was in an earlier chunk
    end: int
    complete: bool


class Frames:
    """*size* is the header's (it may be changed between two frames), *length* reads the body's from
    it: below 0 is nonsense.
    """

    def __init__(self, size: int, length: Callable[[bytes], int]) -> None:
        self.size = size
        self.is_wrong = False  # a header was nonsense: nothing more is read
        self._length = length
        self._header = b""
        self._body = bytearray()
        self._left = self._total = 0

    @property
    def is_between(self) -> bool:
        """Whether no frame is under way."""
        return not self._header

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Each frame when its header is complete, and once more when all of it is."""
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
