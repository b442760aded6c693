"""UB91x to UB95x: the drill, the fault proxy and the servers for tests.

The format is that of :mod:`unbroken.messages`, whose last group is the command line.
"""

from __future__ import annotations

from unbroken.messages import Message

_BEFORE = "The drill did not start, and changed no server."
_PROXY = "The call changed nothing on the connections of the proxy."
_TEST_SERVER = "Only a private test server is affected."

# -- the drill ------------------------------------------------------------------------------------

UNKNOWN_NAME = Message(
    "UB910",
    "The name is unknown: no contender, server, scenario, topology, fault or app has it.",
    _BEFORE,
    "Use one of the names that the message lists.",
)
OPTIONS_EXCLUDE = Message(
    "UB911",
    "Two options exclude each other, or an option is for another kind of drill.",
    _BEFORE,
    "Remove the option that the message names.",
)
OPTION_MISSING = Message(
    "UB912",
    "A required option of the drill is missing.",
    _BEFORE,
    "Add the option that the message names.",
)
BAD_OPTION_VALUE = Message(
    "UB913",
    "An option of the drill has an invalid value.",
    _BEFORE,
    "Give a value as the message describes it.",
)
DRILL_NEEDS = Message(
    "UB914",
    "The drill needs a package or program that is not installed.",
    _BEFORE,
    "Install the package or program that the message names.",
)
HARM = Message(
    "UB915",
    "The drill would write to the server of `--db` and cut its connections.",
    _BEFORE,
    "If the drill may do that, add `--harm`. Never name a production server.",
)
PORT_TAKEN = Message(
    "UB916",
    "Another program already listens on the app's address.",
    _BEFORE,
    "Stop that program, or choose another port.",
)
NO_PROGRAM = Message(
    "UB917",
    "The program in the app's command was not found.",
    _BEFORE,
    "Correct the command, or install the program in this environment.",
)
PROJECT_FILE = Message(
    "UB918",
    "The drill's project file cannot be read, or is invalid.",
    _BEFORE,
    "Correct the file or key that the message names.",
)
BAD_SCENARIO = Message(
    "UB919",
    "A scenario has an invalid step, or a step in the wrong place.",
    _BEFORE,
    "Correct the step that the message names. [The drill](drill.md) lists all steps.",
)
NOTHING_MEASURED = Message(
    "UB920",
    "The drill could not measure any row.",
    "The drill started private servers and stopped them again.",
    "Correct the failure of the first row, which the message names.",
)
APP_FAILED = Message(
    "UB921",
    "The app of the drill, or its setup command, failed.",
    _TEST_SERVER,
    "The message ends with the last output of the app. Start the command by hand to correct it.",
)
WORKER_ENDED = Message(
    "UB922",
    "A worker process of the drill ended, hangs, or reported an error.",
    "The drill did not measure this row. " + _TEST_SERVER,
    "Read the process's last output in the message.",
)

# -- the proxy ------------------------------------------------------------------------------------

PROXY_ADDRESS = Message(
    "UB930",
    "The proxy got an invalid address or URL, for the server or for itself.",
    "The proxy has not passed on any connection.",
    "Write the address as the message shows.",
)
PROXY_ARGUMENT = Message(
    "UB931",
    "A method of the proxy got an invalid argument.",
    _PROXY,
    "Give a value as the message describes it.",
)
PROXY_HOST = Message(
    "UB932",
    "The proxy cannot resolve the name of the server's host.",
    "The proxy has not passed on any connection.",
    "Give an address, or a name that this machine can resolve.",
)
PROXY_CANNOT_LISTEN = Message(
    "UB933",
    "The proxy cannot listen on its address.",
    "The proxy has not passed on any connection.",
    "Choose another address, or port 0 for a free port.",
)
PROXY_STATE = Message(
    "UB934",
    "The proxy, its connection or a fault is not in the state that this call needs.",
    _PROXY,
    "Make the call in the state that the message names.",
)
PROXY_CUT = Message(
    "UB935",
    "`cut_at` did not cut a connection at the statement.",
    "Other connections continue to work.",
    "Check that the statement is executed, that the proxy knows the protocol, and that the"
    " connection does not use TLS.",
)
CONTROL_REQUEST = Message(
    "UB936",
    "A request to the proxy's control port is invalid.",
    _PROXY,
    "Send a request as the message describes it.",
)
PROXY_KERNEL = Message(
    "UB938",
    "This operating system cannot break connections in this way.",
    _PROXY,
    "Use the method that the message names.",
)

# -- the servers for tests ------------------------------------------------------------------------

SERVER_NOT_HERE = Message(
    "UB940",
    "A program or a file that a test server needs is not installed.",
    "No server was started.",
    "Install the program that the message names, or set the named variable to its path.",
)
SERVER_NOT_STARTED = Message(
    "UB941",
    "A test server did not start, or does not answer.",
    _TEST_SERVER,
    "Read the end of the server's log in the message.",
)
SERVER_STATE = Message(
    "UB942",
    "The test server is not in the state that this call needs.",
    _TEST_SERVER,
    "First make the call that the message names.",
)
SERVER_CANNOT = Message(
    "UB943",
    "This kind of test server does not support the operation.",
    _TEST_SERVER,
    "Use the alternative that the message names.",
)
SERVER_LATE = Message(
    "UB944",
    "A test server (or its processes) did not reach a state in time.",
    _TEST_SERVER,
    "Check whether the machine is overloaded, and read the server's log.",
)
SERVER_REFUSED = Message(
    "UB945",
    "A test server answered a statement or a setting with an error.",
    _TEST_SERVER,
    "Correct the statement or setting: the message has the server's error.",
)
SERVER_GONE = Message(
    "UB946",
    "A test server does not answer on its administration socket, or closed it.",
    _TEST_SERVER,
    "Read the server's log.",
)
DOWNLOAD = Message(
    "UB947",
    "Programs of a test server could not be downloaded or unpacked.",
    "Nothing was started.",
    "Check the network and the mirror that the message names, and try again.",
)
FOLDER = Message(
    "UB948",
    "There is no folder, port or user that a test server can use safely.",
    "Nothing was started.",
    "Set `TMPDIR` to a private folder, or do as the message says.",
)
