"""UB8xx: drivers, and what the library needs to see of them."""

from __future__ import annotations

from unbroken.messages import Message

DRIVER_UNKNOWN = Message(
    "UB801",
    "unbroken does not know the installed version of the driver well enough to follow it.",
    "Connections work. The library cannot see which statements a unit of work sent. Therefore it"
    " does not run lost units again, and reports their `fate` as `unknown`.",
    "Install a driver version that the message names, or a newer unbroken.",
)
TLS_FILES = Message(
    "UB802",
    "The TLS files were replaced, and the new ones cannot be read.",
    "The driver continues with the last files that it could read. No data is affected.",
    "Check the files that the message names: do they exist, and can the program's user read them?",
)
