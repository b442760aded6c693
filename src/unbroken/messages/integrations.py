"""UB7xx: SQLAlchemy, Django, peewee, Flask, MongoDB and web servers."""

from __future__ import annotations

from unbroken.messages import Message

_NO_DATA = "No data is concerned."

ENGINE_GONE = Message(
    "UB701",
    "The engine of SQLAlchemy's is gone, and something still asks its pool.",
    "Nothing was sent by the call that failed.",
    "Keep the engine for as long as it is used: make it once, at the module's level.",
)
ENGINE_UNKNOWN = Message(
    "UB702",
    "The installed SQLAlchemy makes its engines in a way that the installer does not know.",
    "No engine was changed. " + _NO_DATA,
    "Name the plugin where the engine is made: `create_engine(..., plugins=['unbroken'])`, or"
    " `?plugin=unbroken` in its URL.",
)
ENGINE_NOT_OURS = Message(
    "UB703",
    "The engine has no pool of unbroken's.",
    _NO_DATA,
    "Make it with `create_engine(..., plugins=['unbroken'])`.",
)
POOLED_AS_SQLALCHEMY_DOES = Message(
    "UB704",
    "The engine stays as SQLAlchemy makes it, in whole or in the part that is named.",
    "It works as without unbroken there: lost connections can become errors. " + _NO_DATA,
    "Change what the message names (the pool's class, the connection's class, the driver), if the"
    " engine should be looked after.",
)
HOLDERS = Message(
    "UB705",
    "A note on SQLAlchemy's time-out: where connections are held, and how the server is.",
    "Nothing was sent by the call that failed.",
    "Release connections earlier at the lines that are named, or raise `pool_size`.",
)
ANSWERED = Message(
    "UB706",
    "A request met a lost database, and was answered in the application's place.",
    "The line says what is known about the request's writes, from the ledger: nothing stored,"
    " stored, or unknown. The client was told the same.",
    "Look at the error at the end of the line; its own code leads further.",
)
SESSION_NOT_ENDED = Message(
    "UB707",
    "A session of SQLAlchemy's could not be closed or rolled back at the end of its request.",
    "What the session had not committed is rolled back when its connection ends.",
    "Look at the traceback: what does the session's `close()` or `rollback()` meet?",
)
RESPONSE_NOT_CLOSED = Message(
    "UB708",
    "The response of an attempt that failed raised an error when it was closed.",
    "The request goes on: it is run again, or answered.",
    "Look at the traceback: `close()` of the application's response failed.",
)
SESSION_LEFT = Message(
    "UB709",
    "A session of SQLAlchemy's is left to a thread that may still be using it.",
    "Its request was cancelled, and the thread goes on. What it still commits will be stored.",
    "Give the endpoint a time limit of its own, or make it `async def`.",
)
FLASK_USAGE = Message(
    "UB710",
    "The Flask extension was set up, or used, in a way that cannot work.",
    _NO_DATA,
    "Do as the message says; see [Flask](flask.md).",
)
FLASK_TOO_LATE = Message(
    "UB711",
    "Engines or clients were made before the Flask application was unbroken, and stay as they are.",
    "They work as without unbroken. " + _NO_DATA,
    "Call `unbroken.flask.Unbroken(app)` before the extension that makes them, as the message"
    " says.",
)
MONGO_SETTINGS = Message(
    "UB712",
    "`MONGODB_SETTINGS` or `MONGO_URI` of the Flask application cannot be used.",
    _NO_DATA,
    "Correct the configuration as the message says.",
)
MONGO_CLIENT_NOT_OURS = Message(
    "UB713",
    "This is not a client of unbroken.mongo.",
    _NO_DATA,
    "Make the client with `unbroken.mongo.MongoClient` or `unbroken.mongo.AsyncMongoClient`.",
)
PYMONGO_UNKNOWN = Message(
    "UB714",
    "The installed PyMongo is not one that unbroken.mongo knows.",
    _NO_DATA,
    "Install a version that the message names, or a newer unbroken.",
)
MONGO_OTHER_PROCESS = Message(
    "UB715",
    "A session of MongoDB's (or its cursor, transaction or change stream) was begun in another"
    " process or event loop.",
    "It stays there, and works there. Nothing was sent from here.",
    "Begin another one here.",
)
PEEWEE_DATABASE = Message(
    "UB720",
    "The database is not one that unbroken.peewee can pool.",
    _NO_DATA,
    "Use a MySQL, MariaDB or PostgreSQL database of peewee's, with a scheme that the message"
    " names.",
)
PEEWEE_UNIT = Message(
    "UB721",
    "The function cannot be a unit of this database, or not yet.",
    "The function was not run. " + _NO_DATA,
    "An asyncio database takes `async def` functions; a blocking one takes plain functions. A proxy"
    " must be initialized before the function is called.",
)
LAZY_QUERY = Message(
    "UB722",
    "A lazy query ran, or would have run, after its connection was released.",
    "The query was not sent.",
    "Read the rows inside of the scope that opened the connection, for instance with `list()`; or"
    " let the unit read them (`lazy='read'`).",
)
RESULT_LEFT = Message(
    "UB723",
    "A result of peewee's was read after its connection was released.",
    "Rows that were read before are good. The rest was not read.",
    "Read the rows inside of the scope that opened the connection, for instance with `list()`.",
)
ROLL_BACK_FIRST = Message(
    "UB724",
    "The connection of this transaction was lost, and SQLAlchemy refuses all else until a"
    " rollback.",
    "The error of the loss, which came before, says what is known of the data.",
    "Roll back (`rollback()`, or leave the block that began the transaction), and do the work again"
    " from its start. A unit of work (`@unbroken.replayable`) does both by itself.",
)
BLOCK_BROKEN_OFF = Message(
    "UB730",
    "A block of Django's `atomic`, or a rollback, was broken off by an exception of a signal"
    " handler or a time limit.",
    "No COMMIT was sent: what the block wrote is not stored.",
    "Begin again, outside of the block that was broken off.",
)
AUTOCOMMIT_TOO_EARLY = Message(
    "UB731",
    "`set_autocommit(True)` came after an exception, with a transaction open.",
    "Its connection was closed, so the server rolls the transaction back: nothing of it is stored.",
    "Commit or roll back first.",
)
