"""PyMongo's sessions: a transaction whose commit is in doubt raises that, even after many
attempts.
"""

from __future__ import annotations

from typing import Any

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError

from unbroken.errors import WriteUnknownError
from unbroken.integrations.mongo.errors import write_unknown


class Session(ClientSession):
    """PyMongo's session for threads."""

    def with_transaction(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as PyMongo. Raises WriteUnknownError if the commit is in doubt.

        When the time for it is up, PyMongo replaces the error that it met by another one.
        """
        try:
            return super().with_transaction(*args, **kwargs)
        except PyMongoError as error:
            told = _told(error)
            if told is error:
                raise
            raise told from error


class AsyncSession(AsyncClientSession):
    """PyMongo's session for asyncio."""

    async def with_transaction(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as :meth:`Session.with_transaction`, awaited."""
        try:
            return await super().with_transaction(*args, **kwargs)
        except PyMongoError as error:
            told = _told(error)
            if told is error:
                raise
            raise told from error


Session.__name__, AsyncSession.__name__ = "ClientSession", "AsyncClientSession"


def adopted(session: Any) -> Any:
    """Return *session*, which PyMongo has just begun, as an instance of these classes."""
    ours = {ClientSession: Session, AsyncClientSession: AsyncSession}
    session.__class__ = ours.get(type(session), type(session))
    return session


def _told(error: PyMongoError) -> Any:
    in_doubt = error.has_error_label("UnknownTransactionCommitResult")
    return write_unknown(error) if in_doubt and not isinstance(error, WriteUnknownError) else error
