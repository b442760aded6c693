"""UB3xx: the server, its outages, its logins, its names and its roles."""

from __future__ import annotations

from unbroken.messages import Message

_NOT_SENT = "The call that failed sent nothing."

OUTAGE = Message(
    "UB301",
    "The server cannot be reached, or cannot serve.",
    _NOT_SENT + " The message says how long the outage has lasted, and how the last attempt"
    " failed.",
    "Check the server and the network. Nothing needs a restart: the pool keeps trying, and serves"
    " callers as soon as an attempt succeeds. `outage_wait` sets how long callers wait.",
)
NAME_LEADS_NOWHERE = Message(
    "UB302",
    "The host name cannot be resolved, and has never been resolved since the process started.",
    _NOT_SENT,
    "Correct the host in the URL, or this machine's name service.",
)
CONNECT_REJECTED = Message(
    "UB303",
    "The server or the driver rejected the connection for a reason that waiting does not change.",
    _NOT_SENT + " The message contains the text of the server or driver. The driver's error is the"
    " `__cause__`.",
    "Correct what the text names: user, password, database, permission or TLS.",
)
LOGIN_REFUSED = Message(
    "UB304",
    "The server rejected the login every time, although the pool asked for a new login each time.",
    _NOT_SENT,
    "Check whether the secret that `password=` (or `user=`) returns is the one on the server.",
)
NO_LOGIN = Message(
    "UB305",
    "The pool has no valid login yet: the callable failed, or the server rejected its result.",
    _NOT_SENT + " The callable's own error is the `__cause__`. The message does not repeat its"
    " text, because the text may contain the secret. The pool keeps asking.",
    "Check the service that the callable asks (a vault, a token service), and give the callable a"
    " time limit. If the server rejected the login, check whether the server has that secret.",
)
OUTAGE_ENDED = Message(
    "UB306",
    "The server serves again.",
    "The pool serves the waiting callers. The message says how long the server was down.",
    "Nothing.",
)
TAKES_NO_WRITES = Message(
    "UB307",
    "The server takes no writes, and the pool uses it for reads only.",
    "A write that the server rejects is not stored. Once a second, the pool looks for a server that"
    " takes writes.",
    "Check the cluster: the address in the URL leads to no primary. With `target=primary` callers"
    " wait for a primary instead.",
)
TAKES_WRITES = Message(
    "UB308",
    "The server takes writes again.",
    "The pool replaces connections to servers that take no writes.",
    "Nothing.",
)
NAME_MOVED = Message(
    "UB309",
    "The host name now leads to another address, so the pool replaces connections to the old one.",
    "The pool replaces connections in use when they are released. Nothing is lost.",
    "Nothing, if the change was intended.",
)
PLACE_MOVED = Message(
    "UB310",
    "The pool now opens new connections to another host of the URL.",
    "It replaces connections to the previous host when they are idle. Nothing is lost.",
    "Check the previous host: it failed or did not respond.",
)
POOLER_AND_PREPARED = Message(
    "UB311",
    "A setting turns prepared statements on, behind a pooler that can lack support for them.",
    "In transaction mode a pooler gives each transaction another session. If it does not track"
    " prepared statements, executing one fails, or runs another client's statement of that name.",
    "Remove the setting, or use a pooler that tracks prepared statements (PgBouncer 1.21 or newer,"
    " with `max_prepared_statements`).",
)
POOLER_AND_SESSION = Message(
    "UB312",
    "A statement left state on a session that the pooler shares among clients.",
    "The next statement can miss that state, and other clients can find it. Stored data is not"
    " affected.",
    "Use the state only inside one transaction, or use a pooler in session mode.",
)
OWN_TROUBLE = Message(
    "UB313",
    "This pool cannot connect now, but other clients of the server may be able to.",
    _NOT_SENT + " The message names the cause: a file that an option names, a limit of this user or"
    " database, or the client's own machine. The pool keeps trying, because it has had connections"
    " before, or because connections of other clients count towards that limit.",
    "Correct what the message names. Nothing needs a restart. Other pools of the server are not"
    " affected.",
)
OWN_CONNECT = Message(
    "UB314",
    "The application's own `connect=` raised an error, or did not return a connection.",
    _NOT_SENT + " The function's error is the `__cause__`.",
    "Correct the function. It takes no argument, and returns a new connection of the library that"
    " `driver=` names.",
)
EXHAUSTED = Message(
    "UB315",
    "The process or its machine has no file descriptors, local ports or memory left.",
    _NOT_SENT,
    "Raise the limit (`ulimit -n`), or find out which code keeps so many files or sockets open.",
)
STRANGER = Message(
    "UB316",
    "The URL's address is not a server of the kind that the URL names.",
    _NOT_SENT + " The message shows the first bytes of the answer. The pool has never connected. A"
    " pool that has connected before would wait, as in an outage.",
    "Correct the host, the port or the scheme of the URL.",
)
