"""UB4xx: lost connections, deadlines, and what is known about the data then."""

from __future__ import annotations

from unbroken.messages import Message

_EARLIER = " What was committed on it before is stored."

COMMIT_UNKNOWN = Message(
    "UB401",
    "COMMIT was sent, and no answer says whether the server carried it out.",
    "That transaction is stored whole, or not at all: unknown. `fate` of the error is `unknown`.",
    "Look whether the work is stored before you repeat it.",
)
LOST_BEFORE_COMMIT = Message(
    "UB402",
    "The connection was lost, or could not be used any more, before the pool sent COMMIT.",
    "Nothing of the open transaction is stored, where the message says so without a condition: the"
    " ledger proves it, or the driver's last answer. Rows in tables without transactions (MyISAM,"
    " Aria, MEMORY) stay; which tables those are cannot be seen. Otherwise the code that had the"
    " connection may have sent a COMMIT of its own, whose answer nobody saw." + _EARLIER,
    "Run the transaction again: as a unit of work (`@replayable`, `pool.run`) the library does so"
    " by itself.",
)
CLOSED_BY_HOLDER = Message(
    "UB403",
    "The code that had the connection closed it, so the pool could not commit.",
    "What that code committed is stored, if its COMMIT was answered. What was still open is not.",
    "Leave the closing to the pool: do not call `close()` on the connection inside of its `with`"
    " block.",
)
DEADLINE = Message(
    "UB404",
    "The work took longer than its deadline, and its connection was ended to free the caller.",
    "The message and `fate` say what became of the writes. A statement outside of a transaction,"
    " or a COMMIT that was under way, may still be carried out: then it is unknown.",
    "Raise `deadline=`, or make the work shorter. Look before you repeat writes, unless nothing is"
    " stored.",
)
WRITE_UNKNOWN = Message(
    "UB405",
    "A write was sent to MongoDB, and no answer says whether it is stored for good.",
    "It is stored, whole or in part, or not at all: unknown.",
    "Look whether the write is stored before you repeat it.",
)
SESSION_LOST = Message(
    "UB406",
    "A statement needs what only a session that was lost knew.",
    "Another connection has taken the place of the lost one between two statements. The statement"
    " was not sent.",
    "Do again what the statement builds on (a temporary table, a variable, `LAST_INSERT_ID`),"
    " together with it in one transaction.",
)
TRANSACTION_LOST = Message(
    "UB407",
    "The connection was lost inside a transaction.",
    "The message says what is known of the open transaction, as for `UB402`." + _EARLIER,
    "Leave the block, and run the transaction again from its beginning: as a unit of work the"
    " library does so by itself.",
)
NO_ANSWER = Message(
    "UB408",
    "The library ended a connection because a call of its own got no answer in time.",
    "The server was silent: its network or the server itself is stuck. What became of a statement"
    " or a COMMIT before it, the error says to which this note belongs.",
    "Look at the server and the way to it. The bound is that of the setting or the call that the"
    " note names.",
)
HELD_REPLACED = Message(
    "UB409",
    "A connection that its holder keeps between statements ended, and another one takes its place.",
    "No transaction was open on it at the last answer, so only what was set on the session is"
    " lost.",
    "Nothing, if it happens now and then.",
)
NO_SUBSTITUTE = Message(
    "UB410",
    "A connection was lost between two transactions, and another one cannot take its place.",
    "Nothing was open on it, so nothing is lost but what was set on the session.",
    "Begin again: the next transaction takes another connection.",
)
