"""UB2xx: the pool itself."""

from __future__ import annotations

from unbroken.messages import Message

_NOT_SENT = "The call that failed sent nothing."

POOL_TIMEOUT = Message(
    "UB201",
    "No connection became free within the caller's time.",
    _NOT_SENT + " The numbers describe this process's pool: connections in use, idle and being"
    " opened, and waiting callers.",
    "If all connections are in use, release them earlier (the message names the lines that hold"
    " them), raise `max_size`, or wait longer (`acquire_timeout`). If none is in use, check the"
    " server: it did not respond, or was too slow to accept a connection.",
)
POOL_CLOSED = Message(
    "UB202",
    "The pool is closed and hands out no connections.",
    _NOT_SENT,
    "Create a new pool, or close the pool only after its last use.",
)
NOT_YOURS = Message(
    "UB203",
    "A connection was released to a pool that it does not belong to, or was released twice.",
    "The release had no effect on the connection or its transaction.",
    "Release each connection once, to the pool that it came from. `with pool.connection()` does"
    " this automatically.",
)
NO_THREAD = Message(
    "UB204",
    "No thread can be started.",
    "Open connections continue to work. A caller that needs a new connection opens it on the"
    " caller's own thread. Time limits that need the pool's thread take effect only when it can be"
    " started. No data is affected.",
    "Check the limits for threads and memory of the process and its container (`ulimit -u`,"
    " `pids.max`).",
)
WORKER_FAILED = Message(
    "UB205",
    "A background task of the pool failed because of a bug in unbroken.",
    "Another task replaces it, and the pool continues to work. No data is affected.",
    "Report the bug, with the traceback.",
)
OBSERVER_FAILED = Message(
    "UB206",
    "One of the application's `observers=` raised an error.",
    "The other observers got the event, and the pool continues to work. No data is affected.",
    "Correct the function at the end of the traceback.",
)
CALLBACK_FAILED = Message(
    "UB207",
    "A function that unbroken calls after an import or by a timer raised an error.",
    "unbroken still calls the other functions. No data is affected.",
    "Read the traceback. If the function is yours, correct it. Otherwise report the error.",
)
CONNECTION_ENDED = Message(
    "UB208",
    "A connection of the pool ended. The line names the cause.",
    "If the connection was idle, nothing is lost: the pool opens another one. If it was in use, its"
    " holder got an error that says what is known about its data.",
    "Nothing, if it happens rarely. If it happens often, look for the cause: which server, balancer"
    " or firewall closes idle connections, and after how long?",
)
CLOSED_IN_USE = Message(
    "UB209",
    "A pool was closed while some of its connections were in use.",
    "Their holders can continue: the pool closes each connection when it is released. No work was"
    " interrupted, and no data is affected.",
    "Release all connections before you close the pool. The message names the lines that acquired"
    " them. `close()` waits up to `timeout` seconds (5.0) for them. An engine's `dispose()` does"
    " not wait.",
)
RESET_RAISES = Message(
    "UB210",
    "The application's own `reset=` raised an error.",
    "The pool closes the connection and does not reuse it. The server rolls back uncommitted work.",
    "Correct the function. As long as it raises, each use opens a new connection.",
)
SHARE_OFF = Message(
    "UB211",
    "The setting `share` has no effect: the processes of this host do not share connections.",
    "The pool works as if `share` were not set, and opens up to `max_size` connections. Together"
    " the processes may open more connections than the server allows. No data is affected.",
    "If the server cannot be asked for its limit, give a number, such as `share=40`. If the shared"
    " file cannot be used, remove the file that the message names. Then set `TMPDIR` to a local"
    " folder that all processes of the app can write to. See"
    " [sharing a server's connections](sharing.md).",
)
OVERLOADED = Message(
    "UB212",
    "Too many callers wait for a connection, so this caller got its error early.",
    _NOT_SENT + " The server and the pool work at full capacity, and callers that came earlier are"
    " still served. `retry_after` of the error is a number of seconds after which to try again. It"
    " differs from caller to caller.",
    "If the server has spare capacity, raise `max_size` (`maxPoolSize` with MongoDB). Otherwise"
    " release connections earlier, or limit the number of concurrent callers. `shed_target` limits"
    " how long callers wait, and `max_waiting` limits how many wait. `shed_target=math.inf` turns"
    " off everything except the check of each caller's own time. Put work that no user waits for"
    ' into `unbroken.priority("background")`.',
)
