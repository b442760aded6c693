"""UB2xx: the pool itself."""

from __future__ import annotations

from unbroken.messages import Message

POOL_TIMEOUT = Message(
    "UB201",
    "No connection became free in the time that the caller had.",
    "Nothing was sent by the call that failed. The numbers are those of this process's pool: how"
    " many connections are in use, idle and being opened, and how many callers wait.",
    "If all are in use: release connections earlier (the message names the lines that hold them),"
    " raise `max_size`, or wait longer (`acquire_timeout`). If none is in use, the server was"
    " silent or too slow to let a connection in: look at the server.",
)
POOL_CLOSED = Message(
    "UB202",
    "The pool was closed, and gives out no connection.",
    "Nothing was sent by the call that failed.",
    "Make a new pool, or close the pool later: after the last use.",
)
NOT_YOURS = Message(
    "UB203",
    "A connection was released that this pool did not give out, or that was released before.",
    "The release did nothing. What was sent on the connection is as it was.",
    "Release each connection once, to the pool that gave it. `with pool.connection()` does so by"
    " itself.",
)
NO_THREAD = Message(
    "UB204",
    "No thread can be started.",
    "Connections that are open go on working. A caller that needs another one opens it on its own"
    " thread. Time limits that need the pool's own thread wait until one can be started. No data is"
    " concerned.",
    "Look at the limit of threads and of memory of the process and its container (`ulimit -u`,"
    " `pids.max`).",
)
WORKER_FAILED = Message(
    "UB205",
    "A background task of the pool failed because of an error in unbroken.",
    "Another one takes its place, so the pool goes on. No data is concerned.",
    "Report the traceback: this should not happen.",
)
OBSERVER_FAILED = Message(
    "UB206",
    "A function of the application's, which the pool tells its events, raised an error.",
    "The event has been told to the other ones, and the pool goes on. No data is concerned.",
    "Correct the function (`observers=`) at the traceback's end.",
)
CALLBACK_FAILED = Message(
    "UB207",
    "A function that unbroken calls by itself (after an import, or by a timer) raised an error.",
    "The others are called all the same. No data is concerned.",
    "Look at the traceback: correct the function if it is yours, else report it.",
)
CONNECTION_ENDED = Message(
    "UB208",
    "A connection of the pool ended; the cause is named.",
    "If it was idle, nothing was lost: the pool opens another one. If it was in use, its holder got"
    " an error that says what is known about data.",
    "Nothing, if it happens now and then. If it happens often, look at its cause: who closes idle"
    " connections, and after how long?",
)
CLOSED_IN_USE = Message(
    "UB209",
    "A pool was closed while connections of it were in use.",
    "Their holders go on: each connection is closed when it is released. Nothing was ended, and no"
    " data is concerned.",
    "Release them before the pool is closed: the message names the lines that took them. `close()`"
    " waits up to `timeout` seconds (5.0) for them; an engine's `dispose()` does not wait.",
)
RESET_RAISES = Message(
    "UB210",
    "The application's own `reset=` raised an error.",
    "The connection is closed in place of being lent again. What was not committed is rolled back.",
    "Correct the function: as long as it raises, each use costs a new connection.",
)
SHARE_OFF = Message(
    "UB211",
    "The setting `share` has no effect: the processes of this host do not share out connections.",
    "The pool goes on as if `share` were not set: it opens up to `max_size` connections. Together"
    " the processes may open more than the server grants. No data is concerned.",
    "Give a number (`share=40`) where the server cannot be asked. Where the file cannot be used,"
    " set `TMPDIR` to a local folder that all processes of the app can write to, and remove what"
    " the message names. See [sharing a server's connections](sharing.md).",
)
OVERLOADED = Message(
    "UB212",
    "The line for a connection was too long, so the caller was told before its time was up.",
    "Nothing was sent by the call that failed. The server and the pool work at full speed, and the"
    " callers before it in the line are served. `retry_after` of the error is a number of seconds"
    " after which to come again; it differs from caller to caller.",
    "If the server has room, raise `max_size` (`maxPoolSize` with MongoDB); else release"
    " connections earlier, or have fewer callers at a time. `shed_target` says how long callers may"
    " have to wait, `max_waiting` how many may wait, and `shed_target=math.inf` turns off all but"
    " the check of each caller's own time. Work that no user waits for belongs into"
    ' `unbroken.priority("background")`.',
)
