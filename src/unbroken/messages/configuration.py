"""UB1xx: a URL, a setting or an argument that cannot work. No connection was attempted yet."""

from __future__ import annotations

from unbroken.messages import Message

_NO_DATA = "The library found this before it connected to anything. No data is affected."

UNKNOWN_SETTING = Message(
    "UB101",
    "No setting has this name.",
    _NO_DATA,
    "Correct the name as the message proposes, or look it up in [Settings](settings.md).",
)
BAD_SETTING = Message(
    "UB102",
    "A setting has an invalid value.",
    _NO_DATA,
    "Give a value as the message describes it. Times are numbers of seconds.",
)
SETTINGS_CONTRADICT = Message(
    "UB103",
    "Two settings contradict each other.",
    _NO_DATA,
    "Change one of the two settings that the message names.",
)
SETTING_TWICE = Message(
    "UB104",
    "The same thing was set twice.",
    _NO_DATA,
    "Remove one of the two. unbroken does not guess which one you mean.",
)
SETTING_HAS_NO_USE = Message(
    "UB105",
    "A setting was given where it can have no effect.",
    _NO_DATA,
    "Remove the setting. Use what the message names instead.",
)
SETTING_MISPLACED = Message(
    "UB106",
    "A setting is in a place that nothing reads.",
    _NO_DATA,
    "Move the setting to the place that the message names.",
)
NO_WAY_TO_CONNECT = Message(
    "UB110",
    "A pool was created without a way to connect.",
    _NO_DATA,
    "Give a database URL. Or give `connect=`, a function that returns a new connection, together"
    " with `driver=`, the name of its library.",
)
NOT_A_URL = Message(
    "UB111",
    "The text is not a database URL.",
    _NO_DATA,
    "Write `scheme://user:password@host:port/database`, such as"
    " `postgresql://app:secret@db.example/shop`. The URL of a SQLite file has three slashes.",
)
URL_UNREADABLE = Message(
    "UB112",
    "The database URL cannot be parsed.",
    _NO_DATA + " The message never repeats the URL, because the URL may contain a password.",
    "Percent-encode special characters in the user name, the password and the database name"
    " (`urllib.parse.quote(text, safe='')`): `@` is `%40`, `:` is `%3A`, `/` is `%2F`.",
)
UNKNOWN_SCHEME = Message(
    "UB113",
    "The scheme of the URL belongs to no known database.",
    _NO_DATA,
    "Use one of the schemes that the message names. A driver follows after a plus sign, as in"
    " `mysql+pymysql://`. [Drivers](drivers.md) lists all of them.",
)
URL_HOSTS = Message(
    "UB114",
    "The hosts or ports in the database URL are invalid.",
    _NO_DATA,
    "Write hosts as `db1:5432,db2:5432`, each host once, and IPv6 addresses in brackets."
    " Percent-encode special characters in the password. Otherwise a part of it is read as a host.",
)
URL_QUERY = Message(
    "UB115",
    "The query of the database URL is invalid.",
    _NO_DATA,
    "Write `?name=value&name=value`, each name once, and percent-encode special characters.",
)
UNKNOWN_OPTION = Message(
    "UB116",
    "The driver has no such option.",
    _NO_DATA,
    "Correct the name as the message proposes, or remove the option. [Drivers](drivers.md) lists"
    " the options of each driver. If the name is a setting of unbroken, move it to the place that"
    " the message names.",
)
BAD_OPTION = Message(
    "UB117",
    "An option in the database URL has an invalid value.",
    _NO_DATA,
    "Give a value as the message describes it.",
)
OPTION_HAS_NO_PLACE = Message(
    "UB118",
    "An option in the database URL cannot be used here.",
    _NO_DATA + " The driver has this option, but unbroken or this kind of database does not work"
    " with it.",
    "Remove the option, or do as the message says.",
)
UNKNOWN_DRIVER = Message(
    "UB120",
    "No driver has this name.",
    _NO_DATA,
    "Use one of the names in [Drivers](drivers.md).",
)
DRIVER_DOES_NOT_FIT = Message(
    "UB121",
    "The driver does not fit this database or this kind of pool.",
    _NO_DATA,
    "Use a driver that the message names. `Pool` takes blocking drivers, and `AsyncPool` takes"
    " asyncio drivers.",
)
NOT_INSTALLED = Message(
    "UB122",
    "A required package is not installed, or is too old.",
    _NO_DATA,
    "Run the `pip install` command from the message in the program's environment.",
)
DRIVER_NOT_SUPPORTED = Message(
    "UB123",
    "unbroken does not support the driver that the URL names.",
    _NO_DATA,
    "Use one of the drivers that the message names.",
)
BAD_LOGIN = Message(
    "UB130",
    "`user=` or `password=` is neither a text nor a function that this pool can call.",
    "No connection was opened. No data is affected.",
    "Give a text, or a function without arguments that returns one. Only `AsyncPool` takes a"
    " coroutine function.",
)
OPTION_TO_BLAME = Message(
    "UB131",
    "An option of the driver, or a file that it names, does not work.",
    "The cause is on the client's side, and this pool has never connected. It tries again only when"
    " the next caller asks for a connection. No data is affected.",
    "Correct the option in the place that the message names: the URL, `connect_args`, `OPTIONS` or"
    " the environment.",
)
EVENTLET = Message(
    "UB132",
    "This process is patched by eventlet, and unbroken does not work with its green threads.",
    "No connection was opened. No data is affected.",
    "Use threads, gevent or asyncio. The maintainers of eventlet advise against new uses of it. A"
    " program can import eventlet without `monkey_patch()`, or with `monkey_patch()` that leaves"
    " sockets, `select` and threads alone.",
)
