"""UB8xx: drivers, and what the library needs to see of them."""

from __future__ import annotations

from unbroken.messages import Message

DRIVER_UNKNOWN = Message(
    "UB801",
    "The installed version of the driver is not one that unbroken can follow.",
    "Connections work. Units of work are not run again, because it cannot be seen what they sent;"
    " what is said of their data is `unknown`.",
    "Install a version of the driver that the message names, or a newer unbroken.",
)
TLS_FILES = Message(
    "UB802",
    "The TLS files were renewed, and cannot be read.",
    "Connections are opened with the last ones that could be read. No data is concerned.",
    "Look at the files that the message names: do they exist, and may this user read them?",
)
