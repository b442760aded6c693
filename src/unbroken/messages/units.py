"""UB5xx: replays, units of work, and the names that become units."""

from __future__ import annotations

from unbroken.messages import Message

_AT_START = "No function was changed by this name. No data is concerned."

NOT_REPLAYED = Message(
    "UB501",
    "A unit of work was not run again, for the reason that the note names.",
    "What became of its writes is in `fate` of unbroken's errors, and in the error's own words.",
    "Remove the reason, if you want such a unit to be run again; see"
    " [Units of work](units-of-work.md).",
)
GAVE_UP = Message(
    "UB502",
    "A unit of work was run again as often as it may, or for as long, and was lost each time.",
    "No attempt sent a COMMIT of writes. `fate` of unbroken's errors says so too.",
    "Look at why connections are lost. `max_replays` and `deadline` say how often and how long.",
)
STATEMENT_NOT_REPEATED = Message(
    "UB503",
    "The connection was lost, and the statement was not run again, for the reason that is named.",
    "A statement in autocommit that was sent may have been carried out. One inside of a transaction"
    " is stored only by a COMMIT, or by a statement that commits by itself.",
    "Make the whole transaction a unit of work: then it is run again from its beginning.",
)
ABANDONED_TASK = Message(
    "UB504",
    "A task of an attempt that was given up asked for a connection.",
    "The attempt is run again, or was, by another task. This one sent nothing more.",
    "End all tasks of a unit of work inside of it: `asyncio.TaskGroup` does so.",
)
NOT_A_UNIT = Message(
    "UB505",
    "What was given cannot be a unit of work: its work would be done after the unit has ended.",
    "An `async def` for a blocking pool, a generator, and what is no function are refused before"
    " anything runs. A function that returned a coroutine or a generator has run: `Pool.run()`,"
    " `AsyncPool.run()` and peewee's `atomic()` have rolled back what it did on their connection,"
    " and what it committed on others is stored.",
    "Give a blocking pool a plain function, `AsyncPool` an `async def`. Return the rows in a list,"
    " and await inside what must be awaited.",
)
NOT_RUN_AGAIN = Message(
    "UB506",
    "The connection was lost under work that nobody runs again, for the reason that is named.",
    "The reason says what was committed, where a request or a unit of work was followed. Elsewhere"
    " nothing is known of it.",
    "If the work may run twice, do as the message says: mark its view, name its path, or make it a"
    " unit of work. Then the library runs it again where nothing was committed.",
)
NO_BUDGET = Message(
    "UB507",
    "The connection was lost, and the work was not run again: the retry budget of this process at"
    " that server is spent.",
    "As far as the text of its statements tells, nothing of the work was committed. `fate` of"
    " unbroken's errors says what is known.",
    "Look at why so many connections are lost. `retry_budget` says how much is run again, and"
    ' `retry_budget="off"` removes the bound: see [Overload](overload.md#the-retry-budget).',
)
ADOPT_NOT_A_NAME = Message(
    "UB510",
    "`units` or `adopt()` was given what is no name of a function or a class.",
    _AT_START,
    "Write `package.module:Class.method`, or `package.module:Class` for all of its public methods.",
)
ADOPT_NOT_FOUND = Message(
    "UB511",
    "No function or class is found by the name in `units` or `adopt()`.",
    _AT_START,
    "Correct the name as the message proposes.",
)
ADOPT_CANNOT = Message(
    "UB512",
    "What the name in `units` or `adopt()` leads to cannot become a unit of work.",
    _AT_START,
    "Name a plain function or method instead, or write `@replayable` above it.",
)
ADOPT_IMPORTING = Message(
    "UB513",
    "The module is being imported at this moment, so its functions cannot be adopted now.",
    _AT_START,
    "Adopt before the import or after it.",
)
ADOPT_FAILED_LATER = Message(
    "UB514",
    "A module was imported, and a function that was named for it could not become a unit of work.",
    "The program goes on. No function of that module is run again after a loss.",
    "Correct the name, as the message says.",
)
