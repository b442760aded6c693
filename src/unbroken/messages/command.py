"""UB90x: the command ``unbroken`` and its launcher. Codes of the drill are in unbroken-drill."""

from __future__ import annotations

from unbroken.messages import Message

_NOT_STARTED = "The program was not started. No data is affected."

RUN_USAGE = Message(
    "UB901",
    "The command line of `unbroken run` is incomplete, or has an unknown option.",
    _NOT_STARTED,
    "Write `unbroken run [--units NAME,…] COMMAND [ARGUMENT …]`.",
)
RUN_CANNOT = Message(
    "UB902",
    "`unbroken run` cannot start the program.",
    _NOT_STARTED,
    "Correct the program's name or its permissions: the message ends with the system's error.",
)
NO_SUCH_COMMAND = Message(
    "UB903",
    "unbroken has no such command, or the command is in a package that is not installed.",
    "Nothing was done.",
    "Correct the command, or install the package that the message names.",
)
