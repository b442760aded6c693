"""UB4xx: lost connections, deadlines, and the state of the data after them."""

from __future__ import annotations

from unbroken.messages import Message

_EARLIER = " Work that was committed earlier on this connection is stored."

COMMIT_UNKNOWN = Message(
    "UB401",
    "COMMIT was sent, but no answer shows whether the server carried it out.",
    "The transaction is stored as a whole, or not at all. `fate` of the error is `unknown`.",
    "Check whether the work is stored before you repeat it.",
)
LOST_BEFORE_COMMIT = Message(
    "UB402",
    "The connection was lost or became unusable before the pool sent COMMIT.",
    "If the message states no condition, nothing of the open transaction is stored: the ledger or"
    " the driver's last answer proves it. Rows in tables without transactions (MyISAM, Aria,"
    " MEMORY) stay; the library cannot see which tables those are. If the message states a"
    " condition, the code that held the connection may have sent a COMMIT itself, and its answer"
    " was not seen." + _EARLIER,
    "Run the transaction again. If it is a unit of work (`@replayable`, `pool.run`), the library"
    " runs it again by itself.",
)
CLOSED_BY_HOLDER = Message(
    "UB403",
    "The code that held the connection closed it, so the pool could not commit.",
    "Work that this code committed is stored, if its COMMIT was answered. Work that was still open"
    " is not stored.",
    "Do not call `close()` on the connection inside its `with` block: the pool closes it.",
)
DEADLINE = Message(
    "UB404",
    "The work took longer than its deadline. The library ended its connection to free the caller.",
    "The message and `fate` say whether the writes are stored. A statement in autocommit, or a"
    " COMMIT in progress, can still take effect on the server. In that case the fate is unknown.",
    "Raise `deadline=`, or make the work shorter. Check before you repeat writes, unless the"
    " message says that nothing is stored.",
)
WRITE_UNKNOWN = Message(
    "UB405",
    "A write was sent to MongoDB, but no answer shows whether it is stored permanently.",
    "The write is stored as a whole, or in part, or not at all.",
    "Check whether the write is stored before you repeat it.",
)
SESSION_LOST = Message(
    "UB406",
    "A statement needs session state that was lost together with its connection.",
    "Another connection replaced the lost one between two statements. The statement was not sent.",
    "Recreate the state that the statement needs (a temporary table, a variable,"
    " `LAST_INSERT_ID`). Run both in one transaction.",
)
TRANSACTION_LOST = Message(
    "UB407",
    "The connection was lost inside a transaction.",
    "The message says what is known about the open transaction, as for `UB402`." + _EARLIER,
    "Leave the block, and run the transaction again from its beginning. If it is a unit of work,"
    " the library runs it again by itself.",
)
NO_ANSWER = Message(
    "UB408",
    "The library ended a connection because the server did not answer one of its calls in time.",
    "The server did not respond: the server itself or the network hangs. The error that has this"
    " note says whether an earlier statement or COMMIT took effect.",
    "Check the server and the network. The note names the call and its time limit.",
)
HELD_REPLACED = Message(
    "UB409",
    "A connection that its holder keeps between statements ended, and another one replaced it.",
    "According to the last answer, no transaction was open on it. Only session state is lost:"
    " settings, variables, temporary tables.",
    "Nothing, if it happens rarely.",
)
NO_SUBSTITUTE = Message(
    "UB410",
    "A connection was lost between two transactions, and no other connection can replace it.",
    "No transaction was open on it. Only session state is lost: settings, variables, temporary"
    " tables.",
    "Begin the transaction again: it gets another connection.",
)
