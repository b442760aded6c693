"""UB7xx: SQLAlchemy, Django, peewee, Flask, MongoDB and web servers."""

from __future__ import annotations

from unbroken.messages import Message

_NO_DATA = "No data is affected."

ENGINE_GONE = Message(
    "UB701",
    "The SQLAlchemy engine was garbage-collected, but its pool is still in use.",
    "The call that failed sent nothing.",
    "Keep a reference to the engine while it is in use. Create it once, at module level.",
)
ENGINE_UNKNOWN = Message(
    "UB702",
    "`install()` does not know how the installed SQLAlchemy creates engines.",
    "No engine was changed. " + _NO_DATA,
    "Name the plugin where you create the engine: `create_engine(..., plugins=['unbroken'])`, or"
    " `?plugin=unbroken` in its URL.",
)
ENGINE_NOT_OURS = Message(
    "UB703",
    "The engine does not use a pool of unbroken.",
    _NO_DATA,
    "Create it with `create_engine(..., plugins=['unbroken'])`.",
)
POOLED_AS_SQLALCHEMY_DOES = Message(
    "UB704",
    "The engine keeps SQLAlchemy's own behaviour, completely or for the part that the line names.",
    "That part works as without unbroken: lost connections can become errors. " + _NO_DATA,
    "If unbroken should protect this engine, change what the message names: the pool's class, the"
    " connection's class or the driver.",
)
HOLDERS = Message(
    "UB705",
    "This note on SQLAlchemy's time-out says which code holds connections, or that the server"
    " is down.",
    "The call that failed sent nothing.",
    "Release connections earlier at the lines that the note names, or raise `pool_size`.",
)
ANSWERED = Message(
    "UB706",
    "A request lost its database connection, and unbroken sent the response instead of the"
    " application.",
    "The line says what the ledger knows about the request's writes: nothing stored, stored, or"
    " unknown. The client got the same information.",
    "Read the error at the end of the line, and look up its own code.",
)
SESSION_NOT_ENDED = Message(
    "UB707",
    "A SQLAlchemy session could not be closed or rolled back at the end of its request.",
    "The server rolls back uncommitted work of the session when its connection ends.",
    "Read the traceback: which error did the session's `close()` or `rollback()` raise?",
)
RESPONSE_NOT_CLOSED = Message(
    "UB708",
    "Closing the response of a failed attempt raised an error.",
    "The request continues: it is run again, or it gets a response.",
    "Read the traceback: `close()` of the application's response failed.",
)
SESSION_LEFT = Message(
    "UB709",
    "A SQLAlchemy session was not closed, because a thread may still be using it.",
    "Its request was cancelled, but the thread continues. Work that the thread still commits will"
    " be stored.",
    "Give the endpoint its own time limit, or make it `async def`.",
)
FLASK_USAGE = Message(
    "UB710",
    "The Flask extension was set up or used incorrectly.",
    _NO_DATA,
    "Do as the message says; see [Flask](flask.md).",
)
FLASK_TOO_LATE = Message(
    "UB711",
    "Engines or clients were created before `Unbroken(app)`, and stay unchanged.",
    "They work as without unbroken. " + _NO_DATA,
    "Call `unbroken.flask.Unbroken(app)` before the extension that creates them, as the message"
    " says.",
)
MONGO_SETTINGS = Message(
    "UB712",
    "`MONGODB_SETTINGS` or `MONGO_URI` of the Flask application is invalid.",
    _NO_DATA,
    "Correct the configuration as the message says.",
)
MONGO_CLIENT_NOT_OURS = Message(
    "UB713",
    "The object is not a client of unbroken.mongo.",
    _NO_DATA,
    "Create the client with `unbroken.mongo.MongoClient` or `unbroken.mongo.AsyncMongoClient`.",
)
PYMONGO_UNKNOWN = Message(
    "UB714",
    "unbroken.mongo does not support the installed version of PyMongo.",
    _NO_DATA,
    "Install a version that the message names, or a newer unbroken.",
)
MONGO_OTHER_PROCESS = Message(
    "UB715",
    "A MongoDB session (or its cursor, transaction or change stream) was started in another process"
    " or event loop.",
    "It still works there. Nothing was sent from this process or event loop.",
    "Start a new session here.",
)
PEEWEE_DATABASE = Message(
    "UB720",
    "unbroken.peewee cannot pool this database.",
    _NO_DATA,
    "Use peewee's database class for MySQL, MariaDB or PostgreSQL, with a scheme that the message"
    " names.",
)
PEEWEE_UNIT = Message(
    "UB721",
    "The function cannot be a unit of this database, or cannot be one yet.",
    "The function was not run. " + _NO_DATA,
    "An asyncio database takes `async def` functions; a blocking database takes plain functions."
    " Initialize a proxy before you call the function.",
)
LAZY_QUERY = Message(
    "UB722",
    "A lazy query or result was still unread when its connection was released.",
    "The query was not sent, or its remaining rows were not read.",
    "Read the rows inside the scope that opened the connection, for example with `list()`. Or let"
    " the unit read them (`lazy='read'`).",
)
RESULT_LEFT = Message(
    "UB723",
    "A peewee result was read after its connection was released.",
    "Rows that were read before are valid. The other rows were not read.",
    "Read the rows inside the scope that opened the connection, for example with `list()`.",
)
ROLL_BACK_FIRST = Message(
    "UB724",
    "The transaction's connection was lost. Until a rollback, SQLAlchemy rejects all other calls.",
    "The earlier error about the lost connection says what is known about the data.",
    "Roll back (`rollback()`, or leave the block that began the transaction), and repeat the work"
    " from its beginning. A unit of work (`@unbroken.replayable`) does both by itself.",
)
BLOCK_BROKEN_OFF = Message(
    "UB730",
    "An exception from a signal handler or a time limit interrupted a Django `atomic` block or a"
    " rollback.",
    "No COMMIT was sent: the writes of the block are not stored.",
    "Run the work again, outside the interrupted block.",
)
AUTOCOMMIT_TOO_EARLY = Message(
    "UB731",
    "`set_autocommit(True)` was called after an exception, while a transaction was open.",
    "The library closed the connection, so the server rolls the transaction back: nothing of it is"
    " stored.",
    "Commit or roll back first.",
)
