"""What every driver inherits: cautious answers to questions that its file does not answer itself."""

from __future__ import annotations

from typing import Any

from unbroken.abc import Connection


class Base:
    """The answers that blocking and asyncio drivers share. A driver's file overrides what it knows better."""

    #: Why the statements of this driver's connections cannot be followed; None: they can.
    blindness: str | None = None

    def traits(self, conn: Connection) -> Any:  # noqa: ARG002
        """Nothing is known of what a holder can change."""
        return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Quiet, in no transaction, and as it was opened."""
        driver: Any = self
        return driver.is_in_transaction(conn) is False and driver.is_quiet(conn) and self.traits(conn) == traits


class Blocking(Base):
    """For a :class:`unbroken.abc.Driver`."""

    def restore(self, conn: Connection, traits: Any) -> None:
        """Nothing to put back."""


class Awaited(Base):
    """For an :class:`unbroken.abc.AsyncDriver`."""

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Nothing to put back."""
