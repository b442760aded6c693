"""MongoEngine on clients that survive forks: its own ``connect``, ``register_connection`` and
``disconnect`` by name and arguments.

MongoEngine keeps a client for each alias, a database for each alias and a collection in each
document class. All of them refer to our client, which checks the process at each call. So a
document that was used before a fork works after it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pymongo
from pymongo.errors import ConnectionFailure

from unbroken.errors import ConfigurationError, DriverNotInstalledError
from unbroken.integrations.mongo import client_options
from unbroken.integrations.mongo.client import MongoClient
from unbroken.messages.configuration import NOT_INSTALLED

#: The default alias of MongoEngine and of Flask-MongoEngine.
DEFAULT_ALIAS = "default"


class EngineClient(MongoClient):
    """The client that MongoEngine gets, so that an outage does not leave a document without its
    indexes.

    MongoEngine keeps a document's collection, then asks ``is_primary``, then makes the indexes. If
    one of these fails, only a document that has no collection tries it again.
    """

    def _server_property(self, attr_name: str) -> Any:
        try:
            return super()._server_property(attr_name)
        except Exception:
            detach(self)
            raise

    @contextmanager
    def _conn_for_writes(self, session: Any, operation: str, *more: Any) -> Iterator[Any]:  # type: ignore[override] # a class there
        try:
            with super()._conn_for_writes(session, operation, *more) as conn:
                yield conn
        except ConnectionFailure:
            if operation == "createIndexes":
                detach(self)
            raise


EngineClient.__name__ = EngineClient.__qualname__ = "MongoClient"  # the name in its messages


def detach(client: Any) -> None:
    """Make the documents on *client* ask for their collections again."""
    engine = _mongoengine()
    documents_by_db = engine.base.common._get_documents_by_db
    for alias in [
        alias for alias, each in list(engine.connection._connections.items()) if each is client
    ]:
        for document in documents_by_db(alias, DEFAULT_ALIAS):
            if issubclass(document, engine.Document):
                document._disconnect()


def connect(db: str | None = None, alias: str = DEFAULT_ALIAS, **kwargs: Any) -> Any:
    """Call ``mongoengine.connect`` with a :class:`unbroken.mongo.MongoClient`. Takes the arguments
    of both, such as ``outage_wait`` (seconds).

    Returns the client. Before the first use in a process it creates no thread and no socket. A
    ``mongo_client_class`` of your own (mongomock's, say) stays. Raises MongoEngine's
    ConnectionFailure, and ConfigurationError if MongoEngine is not installed.
    """
    with _told(kwargs):
        return _mongoengine().connect(db, alias=alias, **_with_client(kwargs))


def register_connection(alias: str, db: str | None = None, **kwargs: Any) -> None:
    """Call ``mongoengine.register_connection`` with a :class:`unbroken.mongo.MongoClient`, which is
    created when *alias* is first used.
    """
    with _told(kwargs):
        _mongoengine().register_connection(alias, db=db, **_with_client(kwargs))


def disconnect(alias: str = DEFAULT_ALIAS) -> None:
    """Call ``mongoengine.disconnect``: close the client of *alias* (unless another alias has it
    too) and detach the documents.

    Takes at most half a second, also with a server that is down or frozen, and also if the client
    is PyMongo's own (in the process that opened it). In a forked process only resources opened by
    it are closed.
    """
    with pymongo.timeout(0.5):
        _mongoengine().disconnect(alias)


def disconnect_all() -> None:
    """:func:`disconnect` for every alias."""
    for alias in list(_mongoengine().connection._connections):
        disconnect(alias)


def adopt(alias: str) -> Any:
    """Give *alias*, as it was registered, a client that survives forks in place of PyMongo's own,
    which is closed.
    """
    known = dict(_mongoengine().connection._connection_settings[alias])
    disconnect(alias)
    return connect(alias=alias, **known)


def check(alias: str) -> None:
    """Create the client of *alias*, which is registered, and discard it. Raises an error for wrong
    options.
    """
    with _told({}):
        _mongoengine().get_connection(alias)
    del _mongoengine().connection._connections[alias]


def aliases() -> list[str]:
    """Return every alias that is registered or connected."""
    return list(_mongoengine().connection._connection_settings)


def clients() -> dict[str, Any]:
    """Return every alias that has been used or connected, and its client."""
    return dict(_mongoengine().connection._connections)


def plain_aliases() -> list[str]:
    """Return the aliases that are registered with PyMongo's own client."""
    settings = _mongoengine().connection._connection_settings
    return [
        alias
        for alias, known in list(settings.items())
        if known.get("mongo_client_class") in (None, pymongo.MongoClient)
    ]


@contextmanager
def _told(kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Raise errors about wrong arguments unchanged. MongoEngine reads the arguments first, and
    reports each error of its client as a failure to connect.
    """
    client_options.check_uri(kwargs.get("host"))
    try:
        yield
    except Exception as error:
        if isinstance(error.__context__, ConfigurationError):
            raise error.__context__ from None
        raise


def _with_client(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"mongo_client_class": EngineClient, **kwargs}


@functools.cache
def _mongoengine() -> ModuleType:
    try:
        import mongoengine
    except ImportError as error:
        raise DriverNotInstalledError(
            NOT_INSTALLED(
                f"MongoEngine cannot be imported ({error}); pip install 'mongoengine>=0.29.1'"
                " (older versions do not support PyMongo 4.9 and newer)"
            )
        ) from error
    module: ModuleType = mongoengine
    return module
