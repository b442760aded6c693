"""UB6xx: forks, leaks, threads, and the end of a process."""

from __future__ import annotations

from unbroken.messages import Message

PARENTS_CONNECTION = Message(
    "UB601",
    "A child process used a connection that was acquired before the fork.",
    "The connection belongs to the parent, which continues to use it. The child sent nothing.",
    "Acquire a connection in the child, after the fork. The pool itself works in both processes.",
)
HELD_TOO_LONG = Message(
    "UB602",
    "A connection has been held for longer than `leak_after`.",
    "Its holder keeps it, unless `reclaim` is on: see `UB605`.",
    "Check the line that the message names: does it release the connection soon enough? If such a"
    " long use is intended, raise `leak_after`.",
)
FORGOTTEN = Message(
    "UB603",
    "A connection was garbage-collected without being released.",
    "The pool closes it, and the server rolls back its open transaction.",
    "Release the connection at the line that the message names, for example with"
    " `with pool.connection()`.",
)
LEFT_BEHIND = Message(
    "UB604",
    "An exception interrupted the release of a connection.",
    "The pool found the connection and closes it. The server rolls back uncommitted work.",
    "Nothing, if it happens rarely. Usual causes are a signal handler or a time limit.",
)
RECLAIMED = Message(
    "UB605",
    "The pool ended a connection that was still in use.",
    "The reason is one of three. The connection was held for longer than `leak_after` with"
    " `reclaim` on, beyond the end of its request, or for longer than `close_stale()` allows. The"
    " server rolls back the open transaction. Work that was committed earlier is stored. A"
    " statement in autocommit, or a COMMIT in progress, may have taken effect.",
    "Release the connection sooner, and within the request that acquired it. Otherwise raise"
    " `leak_after`, or turn `reclaim` off.",
)
NOT_FOR_ANOTHER_PROCESS = Message(
    "UB606",
    "A pool (or client) cannot be pickled or copied.",
    "No data is affected.",
    "Pass the URL to the other process, and create a pool there.",
)
WATCHER_LOST = Message(
    "UB607",
    "Other code closed the file descriptors of unbroken's watcher.",
    "The watcher opened new ones and continues. No data is affected.",
    "Find the code that closes descriptors which it did not open (`os.closerange`, a daemon"
    " library). Run that code before the first use of a pool.",
)
REQUEST_LEFT = Message(
    "UB608",
    "A request ended without releasing a connection that it acquired.",
    "The library returned the connection to the pool. Uncommitted work is rolled back.",
    "Release the connection at the line that the message names, for example with a `with` block."
    " The library logs this once for each line.",
)
MONGO_BEFORE_FORK = Message(
    "UB609",
    "A MongoDB client was used before the process forked.",
    "It works in parent and child. Each has its own connections. No data is affected.",
    "Create the client before the fork if you like, but make no MongoDB call before it. Or load the"
    " app in each worker.",
)
AT_THE_END = Message(
    "UB610",
    "The interpreter is shutting down: the pool cannot open a connection or limit a call's time.",
    "The call that failed sent nothing.",
    "Finish all database work before the program ends: before `sys.exit`, or at the end of `main`."
    " `atexit` callbacks work if the pool was used before. `__del__` does not: see"
    " [the end of the program](settings.md#the-end-of-the-program).",
)
