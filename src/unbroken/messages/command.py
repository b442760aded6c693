"""UB90x: the command ``unbroken`` and its launcher. The drill's own are in unbroken-drill."""

from __future__ import annotations

from unbroken.messages import Message

_NOT_STARTED = "The program was not started. No data is concerned."

RUN_USAGE = Message(
    "UB901",
    "The command line of `unbroken run` is not complete, or has an option that is not known.",
    _NOT_STARTED,
    "Write `unbroken run [--units NAME,…] PROGRAM ARGUMENTS…`.",
)
RUN_CANNOT = Message(
    "UB902",
    "`unbroken run` cannot start the program.",
    _NOT_STARTED,
    "Correct the program's name or its permissions, as the system's words say.",
)
NO_SUCH_COMMAND = Message(
    "UB903",
    "The command is not one of unbroken's, or is in a package that is not installed.",
    "Nothing was done.",
    "Correct the command, or install the package that the message names.",
)
