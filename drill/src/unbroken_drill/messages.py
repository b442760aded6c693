"""UB91x to UB95x: the drill, the fault proxy and the servers for tests.

The format is that of :mod:`unbroken.messages`, whose groups end with the command line.
"""

from __future__ import annotations

from unbroken.messages import Message

_BEFORE = "The drill was not begun. No server was touched."
_PROXY = "The bytes of connections are not changed by it."
_TEST_SERVER = "Only a private server for tests is concerned."

# -- the drill ------------------------------------------------------------------------------------

UNKNOWN_NAME = Message(
    "UB910",
    "There is nothing of this name: no such contender, server, scenario, topology, fault or app.",
    _BEFORE,
    "Use one of the names that the message lists.",
)
OPTIONS_EXCLUDE = Message(
    "UB911",
    "Two options cannot be given together, or one is for another kind of drill.",
    _BEFORE,
    "Leave out the one that the message names.",
)
OPTION_MISSING = Message(
    "UB912",
    "The drill needs an option that was not given.",
    _BEFORE,
    "Add the option, as the message says.",
)
BAD_OPTION_VALUE = Message(
    "UB913",
    "An option of the drill has a value that it cannot have.",
    _BEFORE,
    "Give a value of the kind that the message names.",
)
DRILL_NEEDS = Message(
    "UB914",
    "The drill needs something that is not installed here.",
    _BEFORE,
    "Install what the message names.",
)
HARM = Message(
    "UB915",
    "The drill would write to a server that was given by `--db`, and cut its connections.",
    _BEFORE,
    "Add `--harm` if that is meant. Never name a server in production.",
)
PORT_TAKEN = Message(
    "UB916",
    "Something listens already where the app is to listen.",
    _BEFORE,
    "End that program, or choose another port.",
)
NO_PROGRAM = Message(
    "UB917",
    "The program of the app's command cannot be found.",
    _BEFORE,
    "Correct the command, or install the program in this environment.",
)
PROJECT_FILE = Message(
    "UB918",
    "The project file of the drill cannot be read or understood.",
    _BEFORE,
    "Correct the line that the message names.",
)
BAD_SCENARIO = Message(
    "UB919",
    "A scenario has a step that cannot be understood, or that makes no sense where it stands.",
    _BEFORE,
    "Correct the step that the message names; see [The drill](drill.md).",
)
NOTHING_MEASURED = Message(
    "UB920",
    "No row could be measured.",
    "Private servers were started and ended.",
    "Correct what the message names as the first row's failure.",
)
APP_FAILED = Message(
    "UB921",
    "The app of the drill, or its set-up command, failed.",
    _TEST_SERVER,
    "Start the command by hand, and correct what the app's last words name.",
)
WORKER_ENDED = Message(
    "UB922",
    "A process of the drill ended, hangs, or reported an error.",
    "The row is not measured. " + _TEST_SERVER,
    "Look at its last words in the message.",
)

# -- the proxy ------------------------------------------------------------------------------------

PROXY_ADDRESS = Message(
    "UB930",
    "The proxy was given an address or a URL that it cannot stand before or listen on.",
    "No connection was passed on.",
    "Write the address as the message shows.",
)
PROXY_ARGUMENT = Message(
    "UB931",
    "A method of the proxy was given an argument that it cannot take.",
    _PROXY,
    "Give a value of the kind that the message names.",
)
PROXY_HOST = Message(
    "UB932",
    "The proxy cannot find the server's host by its name.",
    "No connection was passed on.",
    "Give an address, or a name that this machine knows.",
)
PROXY_CANNOT_LISTEN = Message(
    "UB933",
    "The proxy cannot listen at its address.",
    "No connection was passed on.",
    "Choose another address, or port 0 for one that is free.",
)
PROXY_STATE = Message(
    "UB934",
    "The proxy, a connection of it or a fault is not in the state that this call needs.",
    _PROXY,
    "Call it when the message says that it can be called.",
)
PROXY_CUT = Message(
    "UB935",
    "A cut at a statement did not come about.",
    "Connections that were not cut go on.",
    "Look whether the statement is executed, whether the protocol is given, and whether the"
    " connection is without TLS.",
)
CONTROL_REQUEST = Message(
    "UB936",
    "A request to the proxy's control port is not one that it can carry out.",
    _PROXY,
    "Send what the message shows.",
)
PROXY_KERNEL = Message(
    "UB938",
    "This system cannot break connections in this way.",
    _PROXY,
    "Use the way that the message names.",
)

# -- the servers for tests ------------------------------------------------------------------------

SERVER_NOT_HERE = Message(
    "UB940",
    "A program or a file that a test server needs is not here.",
    "No server was started.",
    "Install what the message names, or set the variable that it names to the program's path.",
)
SERVER_NOT_STARTED = Message(
    "UB941",
    "A test server did not start, or does not answer.",
    _TEST_SERVER,
    "Look at the end of the server's log in the message.",
)
SERVER_STATE = Message(
    "UB942",
    "The test server is not in the state that this call needs.",
    _TEST_SERVER,
    "Do first what the message names.",
)
SERVER_CANNOT = Message(
    "UB943",
    "This kind of test server cannot do that.",
    _TEST_SERVER,
    "Use what the message names instead.",
)
SERVER_LATE = Message(
    "UB944",
    "A test server (or its processes) did not come to a state in time.",
    _TEST_SERVER,
    "Look whether the machine is overloaded, and at the server's log.",
)
SERVER_REFUSED = Message(
    "UB945",
    "A test server answered a statement or a setting with an error.",
    _TEST_SERVER,
    "Correct what the server's words name.",
)
SERVER_GONE = Message(
    "UB946",
    "A test server does not answer its administrator, or hung up.",
    _TEST_SERVER,
    "Look at the server's log.",
)
DOWNLOAD = Message(
    "UB947",
    "Programs for a test server could not be downloaded or unpacked.",
    "Nothing was started.",
    "Look at the network and the mirror that the message names, and try again.",
)
FOLDER = Message(
    "UB948",
    "A test server has no folder, port or user that it can use safely.",
    "Nothing was started.",
    "Set `TMPDIR` to a private folder, or do as the message says.",
)
