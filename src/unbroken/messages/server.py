"""UB3xx: the server, its outages, its logins, its names and its roles."""

from __future__ import annotations

from unbroken.messages import Message

_NOT_SENT = "Nothing was sent by the call that failed."

OUTAGE = Message(
    "UB301",
    "The server cannot be reached, or does not serve.",
    _NOT_SENT + " The message says for how long, and what the last attempt was told.",
    "Look at the server and the way to it. Nothing needs a restart: attempts go on, and callers"
    " are served as soon as one succeeds. `outage_wait` says how long callers wait.",
)
NAME_LEADS_NOWHERE = Message(
    "UB302",
    "The host's name could not be found, and never could since the process began.",
    _NOT_SENT,
    "Correct the host in the URL, or the name service that this machine asks.",
)
CONNECT_REJECTED = Message(
    "UB303",
    "The server, or the driver, refused the connection, and waiting would not change that.",
    _NOT_SENT + " The server's (or driver's) own words are in the message; its error is the"
    " `__cause__`.",
    "Correct what those words name: user, password, database, permission, TLS.",
)
LOGIN_REFUSED = Message(
    "UB304",
    "The server refused the login, each time after the application was asked for it anew.",
    _NOT_SENT,
    "Look whether the secret that `password=` (or `user=`) returns is the one that the server"
    " knows.",
)
NO_LOGIN = Message(
    "UB305",
    "There is no login yet: the callable for it gave none, or the server refused what it gave.",
    _NOT_SENT + " The callable's own error is the `__cause__`; its text is not repeated, because it"
    " may quote the secret. The pool keeps asking.",
    "Look at what the callable asks (a vault, a token service), and give it a time limit. If the"
    " server refused: does it know that secret?",
)
OUTAGE_ENDED = Message(
    "UB306",
    "The server serves again.",
    "Callers that waited are served. The message says how long the server was away.",
    "Nothing.",
)
TAKES_NO_WRITES = Message(
    "UB307",
    "The server takes no writes, and the pool uses it for what only reads.",
    "A write that the server refuses is not stored. The pool looks for a server that"
    " takes writes once a second.",
    "Look at the cluster: it has no primary at the address of the URL. `target=primary` makes"
    " callers wait for one instead.",
)
TAKES_WRITES = Message(
    "UB308",
    "The server takes writes again.",
    "Connections to servers that do not are replaced.",
    "Nothing.",
)
NAME_MOVED = Message(
    "UB309",
    "The host's name leads to another address now, so connections to the old one are replaced.",
    "Connections in use are replaced after they are released. Nothing is lost.",
    "Nothing, if the move was meant.",
)
PLACE_MOVED = Message(
    "UB310",
    "New connections are opened at another host of the URL from now on.",
    "Connections to the former host are replaced when each is idle. Nothing is lost by it.",
    "Look at the former host: it failed, or was silent.",
)
POOLER_AND_PREPARED = Message(
    "UB311",
    "Prepared statements are on by a setting, behind a pooler that may not know them.",
    "A pooler that gives each transaction another session, and does not follow prepared statements,"
    " answers an execution with an error, or meets another client's statement of that name.",
    "Leave the setting out, or use a pooler that follows them (PgBouncer 1.21 or newer, with"
    " `max_prepared_statements`).",
)
POOLER_AND_SESSION = Message(
    "UB312",
    "Something was left on a session that a pooler shares with other clients.",
    "The next statement may not find it, and other clients may. What a transaction stored is not"
    " concerned.",
    "Use what the message names inside of one transaction instead, or a pooler in session mode.",
)
OWN_TROUBLE = Message(
    "UB313",
    "This pool alone cannot connect for now; the server may serve others.",
    _NOT_SENT + " The message says what stands in the way: a file that an option names, a limit of"
    " this user or database, or the client's own machine. The pool has had connections before, or"
    " the limit is one that others' connections count for, so it goes on trying.",
    "Put right what the message names. Nothing needs a restart. Other pools of the server are not"
    " concerned.",
)
OWN_CONNECT = Message(
    "UB314",
    "The application's own `connect=` raised an error, or gave something that is no connection.",
    _NOT_SENT + " Its error is the `__cause__`.",
    "Correct the function. It takes no argument and returns a new connection of the library that"
    " `driver=` names.",
)
EXHAUSTED = Message(
    "UB315",
    "The process, or its machine, has no file descriptors, local ports or memory left.",
    _NOT_SENT,
    "Raise the limit (`ulimit -n`), or find out what keeps so many files or sockets open.",
)
STRANGER = Message(
    "UB316",
    "Something else than a server of the kind that the URL names answers at its address.",
    _NOT_SENT + " The message shows the first bytes that came. The pool has never connected; one"
    " that has connected before waits, as in an outage.",
    "Correct the host or the port, or the scheme of the URL.",
)
