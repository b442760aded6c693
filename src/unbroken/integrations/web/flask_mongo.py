"""MongoDB in a Flask app, configured as Flask-MongoEngine (``MONGODB_SETTINGS``) and Flask-PyMongo
(``MONGO_URI``) are.

Neither of them need be installed: an app that drops Flask-MongoEngine keeps its configuration. If
one is installed, its clients are replaced by ours.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unbroken.errors import ConfigurationError
from unbroken.integrations.web.exchange import log
from unbroken.integrations.web.health import mongo_client
from unbroken.messages.configuration import NOT_INSTALLED
from unbroken.messages.integrations import FLASK_TOO_LATE, MONGO_SETTINGS

#: The settings that MongoEngine takes by these names only. All others are options of PyMongo's,
#: which ignores the case of their names.
_ENGINE_NAMES = frozenset(
    "alias db name host port read_preference username password authentication_source"
    " authentication_mechanism authmechanismproperties mongo_client_class is_mock connect tz_aware"
    " document_class type_registry outage_wait election_wait max_waiting shed_target".split()
)
#: Options of our client that PyMongo's own does not take.
_OURS = frozenset("outage_wait election_wait max_waiting shed_target".split())
#: Flask-MongoEngine's flat configuration: these, without MONGODB_, are keys of MONGODB_SETTINGS.
_FLAT = tuple(
    f"MONGODB_{name}"
    for name in "ALIAS DB HOST IS_MOCK PASSWORD PORT USERNAME CONNECT TZ_AWARE".split()
)


@dataclass(frozen=True)
class Mongo:
    """The database and the client of ``MONGO_URI``, with Flask-PyMongo's names."""

    cx: Any  #: an :class:`unbroken.mongo.MongoClient`
    db: Any  #: the URI's database, or None if it names none


#: By app: the clients of its MONGO_URI. One, unless Flask-PyMongo was initialised several times.
_mongos: weakref.WeakKeyDictionary[Any, list[Mongo]] = weakref.WeakKeyDictionary()


def make_unbroken(app: Any) -> None:
    """Read the MongoDB settings of *app*'s configuration.

    Raises ConfigurationError, or PyMongo's and MongoEngine's own errors.
    """
    if importlib.util.find_spec("pymongo") is None:
        return
    settings = (
        read_settings(app.config) if importlib.util.find_spec("mongoengine") is not None else []
    )
    if settings or "mongoengine" in app.extensions:
        _engine(app, settings)
    if "flask_pymongo" in sys.modules:
        _flask_pymongo(app)
    else:
        mongo_of(app)


def mongo_of(app: Any) -> Mongo | None:
    """Return the object for the MONGO_URI of *app*: Flask-PyMongo's, if it has been initialised;
    None without that setting.
    """
    uri = app.config.get("MONGO_URI")
    if app not in _mongos and uri:
        from unbroken.integrations.mongo import MongoClient

        return _note(app, MongoClient(uri), uri)
    return next(iter(_mongos.get(app, ())), None)


def databases(app: Any) -> Iterable[Any]:
    """Return every database of *app*'s that /readyz asks: those of its MONGO_URI, and those that
    MongoEngine has an alias for.
    """
    found = [mongo.cx if mongo.db is None else mongo.db for mongo in _mongos.get(app, ())]
    engine = sys.modules.get("mongoengine")
    if engine is not None:
        of_engine = (engine.get_db(alias) for alias in list(engine.connection._connection_settings))
        found.extend(
            database
            for database in of_engine
            if mongo_client(database) is not None and database not in found
        )
    return found


# -- MongoEngine -----------------------------------------------------------------------------------


def read_settings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings in *config* as arguments of ``mongoengine.register_connection``: one
    dictionary for each alias.
    """
    given = config.get("MONGODB_SETTINGS")
    if given is None:
        flat = {name: config[name] for name in _FLAT if config.get(name) is not None}
        given = [flat] if {"MONGODB_HOST", "MONGODB_DB"} & set(flat) else []
    several = given if isinstance(given, (list, tuple)) else [given]
    for each in several:
        if not isinstance(each, Mapping):
            raise ConfigurationError(
                MONGO_SETTINGS(
                    "MONGODB_SETTINGS must be a dictionary, or a list of dictionaries for several"
                    f" aliases, not {_kind(each)}"
                )
            )
    return [_in_words_of_engine(each) for each in several]


def _kind(thing: Any) -> str:
    # never the object itself: it may be a URI with a password
    return f"an object of type {type(thing).__name__}"


def _in_words_of_engine(given: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, value in given.items():
        bare = name[len("MONGODB_") :] if name.upper().startswith("MONGODB_") else name
        if value is not None:
            known[bare.lower() if bare.lower() in _ENGINE_NAMES else bare] = value
    known.setdefault("alias", "default")
    host = known.get("host")
    if known.pop("is_mock", False) or (isinstance(host, str) and host.startswith("mongomock://")):
        known["mongo_client_class"] = _mock()
        if isinstance(host, str):
            known["host"] = host.replace("mongomock://", "mongodb://", 1)
    return known


def _mock() -> Any:
    try:
        import mongomock
    except ImportError as error:
        raise ConfigurationError(
            NOT_INSTALLED(
                "mongomock is not installed, and MONGODB_SETTINGS needs it (is_mock or"
                " mongomock://); pip install mongomock"
            )
        ) from error
    return mongomock.MongoClient


def _engine(app: Any, settings: list[dict[str, Any]]) -> None:
    """Register the aliases of *app*'s configuration, and replace by ours those that
    Flask-MongoEngine has connected already.
    """
    from unbroken.integrations.mongo import engine

    if settings and "flask_mongoengine" in sys.modules:
        said = app.config.get("MONGODB_SETTINGS")
        ours = [{"mongo_client_class": engine.EngineClient, **each} for each in settings]
        app.config["MONGODB_SETTINGS"] = ours if isinstance(said, (list, tuple)) else ours[0]
    made = _made_by_extension(app)
    for alias, client in engine.clients().items() if made else ():
        if alias in engine.plain_aliases() and any(client is each for each in made):
            _exchange(app, client, engine.adopt(alias))
    for each in settings:
        if each["alias"] not in engine.aliases():
            engine.register_connection(**each)
            engine.check(each["alias"])


def _made_by_extension(app: Any) -> list[Any]:
    """Return the clients that Flask-MongoEngine made for *app*."""
    made: list[Any] = []
    for state in _states(app):
        conn = state["conn"]
        made.extend(conn.values() if isinstance(conn, dict) else [conn])
    return made


def _states(app: Any) -> list[dict[str, Any]]:
    """Return Flask-MongoEngine's notes with *app*: one for each time that it was initialised."""
    noted = app.extensions.get("mongoengine")
    states = noted.values() if isinstance(noted, dict) else ()
    return [state for state in states if isinstance(state, dict) and "conn" in state]


def _exchange(app: Any, before: Any, after: Any) -> None:
    """Replace a client in the connections that Flask-MongoEngine exposes."""
    for state in _states(app):
        conn = state["conn"]
        if conn is before:
            state["conn"] = after
        elif isinstance(conn, dict):
            conn.update({alias: after for alias, client in conn.items() if client is before})


def warn_of_plain_aliases() -> None:
    """Warn about MongoEngine's aliases that have PyMongo's own client after all, because
    MongoEngine's own function connected them.
    """
    if "mongoengine" not in sys.modules:
        return
    from unbroken.integrations.mongo import engine

    for alias in engine.plain_aliases():
        log.warning(
            "plain client",
            FLASK_TOO_LATE(
                f"MongoEngine's connection {alias!r} uses PyMongo's own client, which survives"
                " neither a fork nor an outage; connect it with unbroken.mongo.connect, or add it"
                " to MONGODB_SETTINGS"
            ),
            about=alias,
            once=True,
        )


# -- PyMongo ---------------------------------------------------------------------------------------


def _note(app: Any, client: Any, uri: str) -> Mongo:
    from pymongo import uri_parser

    name = uri_parser.parse_uri(uri)["database"]
    mongo = Mongo(client, client[name] if name else None)
    _mongos.setdefault(app, []).append(mongo)
    return mongo


def _flask_pymongo(app: Any) -> None:
    """Make Flask-PyMongo create our clients for *app*, and for every other app that is unbroken."""
    import flask_pymongo

    if not hasattr(flask_pymongo.PyMongo.init_app, "__wrapped__"):
        flask_pymongo.PyMongo.init_app = _initialising(flask_pymongo)
    if isinstance(app.json, flask_pymongo.BSONProvider):
        log.warning(
            "plain client",
            FLASK_TOO_LATE(
                "Flask-PyMongo created its client before unbroken.flask.Unbroken(app) was called."
                " The client stays PyMongo's own, which survives neither a fork nor an outage; call"
                " unbroken.flask.Unbroken(app) before PyMongo(app)"
            ),
        )


def _initialising(flask_pymongo: Any) -> Any:
    plain = flask_pymongo.PyMongo.init_app

    @functools.wraps(plain)
    def init_app(self: Any, app: Any, uri: str | None = None, *args: Any, **kwargs: Any) -> None:
        if "unbroken" not in app.extensions:
            plain(self, app, uri, *args, **kwargs)
            return
        passed = {name: value for name, value in kwargs.items() if name not in _OURS}
        # it creates nothing but an unused client
        plain(self, app, uri, *args, **{**passed, "connect": False})
        uri = uri or app.config["MONGO_URI"]
        kwargs.setdefault(
            "driver", flask_pymongo.DriverInfo("Flask-PyMongo", flask_pymongo.__version__)
        )
        mongo = _note(app, _flask_pymongo_client()(uri, *args, **kwargs), uri)
        self.cx, self.db = mongo.cx, mongo.db

    return init_app


@functools.cache
def _flask_pymongo_client() -> Any:
    """Return our client, whose databases and collections are Flask-PyMongo's (with
    ``find_one_or_404``).
    """
    from flask_pymongo.wrappers import MongoClient as Theirs

    from unbroken.integrations.mongo import MongoClient as Ours

    return type(
        "MongoClient", (Ours, Theirs), {"__doc__": Ours.__doc__, "__module__": Ours.__module__}
    )
