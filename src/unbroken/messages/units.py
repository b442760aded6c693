"""UB5xx: replays, units of work, and the names that become units."""

from __future__ import annotations

from unbroken.messages import Message

_AT_START = "No function was changed because of this name. No data is affected."

NOT_REPLAYED = Message(
    "UB501",
    "A unit of work was not run again, for the reason that the note names.",
    "The text of the error, and `fate` of unbroken's errors, say whether its writes are stored.",
    "If you want such a unit to be run again, remove the reason. [Units of work](units-of-work.md)"
    " explains when the library runs a unit again.",
)
GAVE_UP = Message(
    "UB502",
    "A unit of work lost its connection in every attempt, until a limit stopped the replays.",
    "No attempt sent a COMMIT of writes. `fate` of unbroken's errors confirms this.",
    "Find out why connections are lost. `max_replays` and `deadline` set how often and how long a"
    " unit is run again.",
)
STATEMENT_NOT_REPEATED = Message(
    "UB503",
    "The connection was lost, and the statement was not run again, for the reason in the text.",
    "If the statement was sent in autocommit, it may have taken effect. Inside a transaction, it is"
    " stored only by a COMMIT, or by a statement that commits implicitly.",
    "Make the whole transaction a unit of work. The library then runs it again from its beginning.",
)
ABANDONED_TASK = Message(
    "UB504",
    "A task of an abandoned attempt asked for a connection.",
    "Another task has already run the attempt again, or will. This task sent nothing more.",
    "End all tasks of a unit of work inside the unit: `asyncio.TaskGroup` does that.",
)
NOT_A_UNIT = Message(
    "UB505",
    "The object cannot be a unit of work: its work would run after the unit has ended.",
    "An `async def` for a blocking pool, a generator, and an object that is not a function are"
    " rejected before they run. A function that returned a coroutine or a generator has run."
    " `Pool.run()`, `AsyncPool.run()` and peewee's `atomic()` have rolled back its work on their"
    " connection. Work that it committed on other connections is stored.",
    "Give a blocking pool a plain function, and an `AsyncPool` an `async def`. Return rows as a"
    " list, and await every coroutine inside the function.",
)
NOT_RUN_AGAIN = Message(
    "UB506",
    "The connection was lost during work that is not run again, for the reason in the text.",
    "If the work was a request or a unit of work, the reason says what was committed. For other"
    " work the library does not know that.",
    "If the work may run twice, do as the message says: mark its view, name its path, or make it a"
    " unit of work. The library then runs it again if nothing was committed.",
)
NO_BUDGET = Message(
    "UB507",
    "The connection was lost, and the process's retry budget for that server is used up.",
    "Therefore the work was not run again. According to the text of its statements, it committed"
    " nothing. `fate` of unbroken's errors says what is known.",
    "Find out why so many connections are lost. `retry_budget` sets how much work is run again, and"
    ' `retry_budget="off"` removes the limit: see [Overload](overload.md#the-retry-budget).',
)
ADOPT_NOT_A_NAME = Message(
    "UB510",
    "A name in `units` or `adopt()` is not the name of a function or a class.",
    _AT_START,
    "Write `package.module:Class.method`, or `package.module:Class` for all of its public methods.",
)
ADOPT_NOT_FOUND = Message(
    "UB511",
    "No function or class has the name that `units` or `adopt()` gives.",
    _AT_START,
    "Correct the name as the message proposes.",
)
ADOPT_CANNOT = Message(
    "UB512",
    "The function or class that `units` or `adopt()` names cannot become a unit of work.",
    _AT_START,
    "Name a plain function or method instead, or write `@replayable` above it.",
)
ADOPT_IMPORTING = Message(
    "UB513",
    "The module is being imported now, so its functions cannot be adopted.",
    _AT_START,
    "Call `adopt()` before or after the import.",
)
ADOPT_FAILED_LATER = Message(
    "UB514",
    "After the import of a module, a function named in `units` or `adopt()` could not become a unit"
    " of work.",
    "The program continues. The library does not run any function of that module again after a"
    " lost connection.",
    "Correct the name, as the message says.",
)
