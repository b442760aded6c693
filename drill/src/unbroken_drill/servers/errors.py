"""What goes wrong with a server for tests."""

from __future__ import annotations

from unbroken.errors import UnbrokenError


class ServerError(UnbrokenError):
    """A server for tests did not do what it was asked; ``number`` is its own (MySQL errno,
    SQLSTATE) where it gave one.
    """

    number: int | str | None = None

    def __init__(self, message: str, number: int | str | None = None) -> None:
        super().__init__(message)
        self.number = number


class ServerUnavailable(ServerError):  # noqa: N818 - says what it is, in the field's words
    """A server of this kind cannot be had here; the message says in one line what to do about
    it.
    """
