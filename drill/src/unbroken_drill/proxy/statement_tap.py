"""Reads one connection's data, and decides which part passes when a statement must be cut.

It uses no sockets.
"""

from __future__ import annotations

from collections.abc import Sequence

from unbroken_drill.proxy.cuts import Cut, Reader


class StatementTap:
    """The reader of the *n*-th connection, whose protocol *reader* follows."""

    def __init__(self, n: int, reader: Reader) -> None:
        self._n, self._reader = n, reader
        self._awaited: dict[int, Cut] = {}  # cuts that wait for their statement's answer
        self.is_withholding = False  # an answer is arriving that the client must not get

    @property
    def unreadable(self) -> str | None:
        """The reason why this connection's statements cannot be read."""
        return self._reader.unreadable

    def up(self, data: bytes, cuts: Sequence[Cut]) -> tuple[bytes, Cut | None]:
        """Read *data* from the client. Returns the part that passes, and a cut that is due after
        it.
        """
        for spoken in self._reader.up(data):
            cut = next((cut for cut in cuts if cut.matches(self._n, spoken.text)), None)
            if cut is None:
                continue
            cut.left -= 1
            if cut.before:
                return data[: spoken.start], cut
            self._awaited[spoken.ticket] = cut
        return data, None

    def down(self, data: bytes) -> tuple[bytes, Cut | None]:
        """Read *data* from the server. Returns the same as :meth:`up`."""
        passing = b"" if self.is_withholding else data
        for answer in self._reader.down(data):
            cut = self._awaited.get(answer.ticket)
            if cut is None:
                continue
            if not self.is_withholding:
                self.is_withholding = True
                passing = data[: answer.at]
            if answer.complete:
                del self._awaited[answer.ticket]
                return passing, cut
        return passing, None

    def give_back(self) -> None:
        """Release the cuts whose answer did not come: the connection ended, or its faults did."""
        for cut in self._awaited.values():
            cut.left += 1
        self._awaited.clear()
