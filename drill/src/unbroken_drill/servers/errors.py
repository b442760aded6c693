"""The errors of servers for tests."""

from __future__ import annotations

from unbroken.errors import UnbrokenError


class ServerError(UnbrokenError):
    """A server for tests did not carry out an operation. ``number`` is its own code (MySQL errno,
    SQLSTATE), if it sent one.
    """

    number: int | str | None = None

    def __init__(self, message: str, number: int | str | None = None) -> None:
        super().__init__(message)
        self.number = number


class ServerUnavailable(ServerError):  # noqa: N818 - says what it is, in the field's words
    """A server of this kind is not available here. The message is one line that gives the
    remedy.
    """
