"""UB1xx: a URL, a setting or an argument that cannot work. Nothing was connected to yet."""

from __future__ import annotations

from unbroken.messages import Message

_NO_DATA = "It was found before anything was connected to. No data is concerned."

UNKNOWN_SETTING = Message(
    "UB101",
    "There is no setting of this name.",
    _NO_DATA,
    "Correct the name as the message proposes, or look it up in [Settings](settings.md).",
)
BAD_SETTING = Message(
    "UB102",
    "A setting has a value that it cannot have.",
    _NO_DATA,
    "Give a value of the kind that the message names. Times are seconds, as numbers.",
)
SETTINGS_CONTRADICT = Message(
    "UB103",
    "Two settings cannot be true together.",
    _NO_DATA,
    "Change one of the two that the message names.",
)
SETTING_TWICE = Message(
    "UB104",
    "The same thing was set twice.",
    _NO_DATA,
    "Leave one of the two out. unbroken does not guess which one is meant.",
)
SETTING_HAS_NO_USE = Message(
    "UB105",
    "A setting was given where nothing could come of it.",
    _NO_DATA,
    "Leave it out, and use what the message names in its place.",
)
SETTING_MISPLACED = Message(
    "UB106",
    "A setting stands where nothing reads it.",
    _NO_DATA,
    "Move it to the place that the message names.",
)
NO_WAY_TO_CONNECT = Message(
    "UB110",
    "A pool was given no way to connect.",
    _NO_DATA,
    "Give a database URL; or `connect=`, a function that returns a new connection, together with"
    " `driver=`, the name of its library.",
)
NOT_A_URL = Message(
    "UB111",
    "The text is not the URL of a database.",
    _NO_DATA,
    "Write `scheme://user:password@host:port/database`, such as"
    " `postgresql://app:secret@db.example/shop`. A SQLite file has three slashes.",
)
URL_UNREADABLE = Message(
    "UB112",
    "The database URL cannot be read.",
    _NO_DATA + " The message never repeats the URL, for it may hold a password.",
    "Percent-encode special characters in the user's name, the password and the database's name"
    " (`urllib.parse.quote(text, safe='')`): `@` is `%40`, `:` is `%3A`, `/` is `%2F`.",
)
UNKNOWN_SCHEME = Message(
    "UB113",
    "No database is known by the URL's scheme.",
    _NO_DATA,
    "Use one of the schemes that the message names; a driver stands behind a plus, as in"
    " `mysql+pymysql://`. See [Drivers](drivers.md).",
)
URL_HOSTS = Message(
    "UB114",
    "The hosts or ports of the database URL cannot be understood.",
    _NO_DATA,
    "Write hosts as `db1:5432,db2:5432`, each once, an IPv6 address in brackets. A password with"
    " special characters must be percent-encoded, else a part of it is read as a host.",
)
URL_QUERY = Message(
    "UB115",
    "The query of the database URL cannot be understood.",
    _NO_DATA,
    "Write `?name=value&name=value`, each name once, special characters percent-encoded.",
)
UNKNOWN_OPTION = Message(
    "UB116",
    "An option was given that the driver does not know.",
    _NO_DATA,
    "Correct the name as the message proposes, or leave the option out. The options of each driver"
    " are in [Drivers](drivers.md). A setting of unbroken's must stand where the message says.",
)
BAD_OPTION = Message(
    "UB117",
    "An option of the database URL has a value that it cannot have.",
    _NO_DATA,
    "Give a value of the kind that the message names.",
)
OPTION_HAS_NO_PLACE = Message(
    "UB118",
    "An option of the database URL cannot be used here.",
    _NO_DATA + " The driver has this option, and unbroken (or this kind of database) cannot work"
    " with it.",
    "Leave the option out, or do as the message says.",
)
UNKNOWN_DRIVER = Message(
    "UB120",
    "No driver is known by this name.",
    _NO_DATA,
    "Use one of the names in [Drivers](drivers.md).",
)
DRIVER_DOES_NOT_FIT = Message(
    "UB121",
    "The driver is not for this database, or not for this kind of pool.",
    _NO_DATA,
    "Use a driver that the message names: `Pool` takes blocking drivers, `AsyncPool` those for"
    " asyncio.",
)
NOT_INSTALLED = Message(
    "UB122",
    "A package that this needs is not installed, or is too old.",
    _NO_DATA,
    "Run the `pip install` that the message names, in the environment that the program runs in.",
)
DRIVER_NOT_SUPPORTED = Message(
    "UB123",
    "The driver that the URL names is one that unbroken does not support.",
    _NO_DATA,
    "Use one of the drivers that the message names.",
)
BAD_LOGIN = Message(
    "UB130",
    "`user=` or `password=` is neither a text nor a function that this pool can call.",
    "No connection was opened. No data is concerned.",
    "Give a text, or a function without arguments that returns one. Only `AsyncPool` takes a"
    " coroutine function.",
)
OPTION_TO_BLAME = Message(
    "UB131",
    "An option of the driver, or a file that it names, will not do.",
    "The pool has never connected, and the server had no part in it: it is not asked again until"
    " the next caller comes. No data is concerned.",
    "Correct the option that the message names, in the place that it names: the URL,"
    " `connect_args`, `OPTIONS`, the environment.",
)
EVENTLET = Message(
    "UB132",
    "The process is patched by eventlet, and unbroken does not work on its green threads.",
    "No connection was opened. No data is concerned.",
    "Use threads, gevent or asyncio with unbroken. eventlet's own makers advise against new uses of"
    " it. Without `monkey_patch()`, or with neither sockets, `select` nor threads patched, eventlet"
    " may be imported.",
)
