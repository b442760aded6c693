"""UB6xx: forks, leaks, threads, and the end of a process."""

from __future__ import annotations

from unbroken.messages import Message

PARENTS_CONNECTION = Message(
    "UB601",
    "A connection was taken before a fork, and is used in the child process.",
    "It belongs to the parent, which goes on with it. Nothing was sent from here.",
    "Take a connection after the fork, in the child. The pool itself works in both.",
)
HELD_TOO_LONG = Message(
    "UB602",
    "A connection has been held for longer than `leak_after`.",
    "It stays with its holder, unless `reclaim` is on: see `UB605`.",
    "Look at the line that is named: does it release the connection, and soon? Raise `leak_after`"
    " if such a long use is meant.",
)
FORGOTTEN = Message(
    "UB603",
    "A connection was forgotten: nothing refers to it any more, and nobody released it.",
    "The pool closes it, and the server rolls back what was open on it.",
    "Release connections at the line that is named: use `with pool.connection()`.",
)
LEFT_BEHIND = Message(
    "UB604",
    "An exception struck while a connection was being released.",
    "The pool has found the connection, and closes it. What was not committed is rolled back.",
    "Nothing, if it happens now and then (a signal handler, a time limit).",
)
RECLAIMED = Message(
    "UB605",
    "The pool ended a connection that its holder still had: for longer than `leak_after` with"
    " `reclaim` on, beyond the end of its request, or for longer than `close_stale()` allows.",
    "The server rolls back what was open on it. What was committed before is stored. A statement"
    " in autocommit or a COMMIT that was under way may have been carried out.",
    "Release the connection sooner, and in the request that took it; else raise `leak_after`, or"
    " leave `reclaim` off.",
)
NOT_FOR_ANOTHER_PROCESS = Message(
    "UB606",
    "A pool (or client) cannot be pickled or copied.",
    "No data is concerned.",
    "Give the other process the URL, and let it make a pool of its own.",
)
WATCHER_LOST = Message(
    "UB607",
    "Other code closed the descriptors of unbroken's watcher.",
    "The watcher has opened new ones, and goes on. No data is concerned.",
    "Look for code that closes descriptors which it did not open (`os.closerange`, a daemon"
    " library), and call it before any pool is used.",
)
REQUEST_LEFT = Message(
    "UB608",
    "A request ended without releasing a connection that it took.",
    "The connection was taken back, and what was not committed is rolled back.",
    "Release it at the line that is named, for instance with a `with` block. It is said once for"
    " each line.",
)
MONGO_BEFORE_FORK = Message(
    "UB609",
    "A MongoDB client was used before the process was forked.",
    "It works in parent and child, each with connections of its own. No data is concerned.",
    "Make no call to MongoDB before the fork (making the client is fine), or load the app in each"
    " worker.",
)
AT_THE_END = Message(
    "UB610",
    "The interpreter is shutting down, so the pool can open no connection or cannot bound a call.",
    "Nothing was sent by the call that failed.",
    "Finish the work with the database before the program ends: before `sys.exit`, or at the end of"
    " `main`. An `atexit` callback is served if the pool was used before. `__del__` is not: see"
    " [the end of the program](settings.md#the-end-of-the-program).",
)
