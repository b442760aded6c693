"""How the MySQL drivers undo everything that was left on a session, and restore the settings made
at its opening.

COM_RESET_CONNECTION rolls back and drops settings, user variables, temporary tables, table locks,
named locks and prepared statements, and keeps the database. The session then has the server's
global settings, MySQL's also for the character set. So when a session is opened, the server is
asked once for the settings that differ from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from unbroken.ledger.residue import VAGUE, Left, left_by

COM_RESET_CONNECTION = 0x1F

#: Always asked for, even if they do not differ: drivers set them, and a new global value must not
#: change them.
_ALWAYS = (
    "autocommit", "character_set_client", "character_set_connection", "character_set_results",
    "collation_connection", "sql_mode", "time_zone", "transaction_isolation", "tx_isolation",
    "sql_auto_is_null",
)  # fmt: skip
#: Cannot be set, or report the server's own actions.
_NEVER = (
    "character_set_database",
    "collation_database",
    "max_allowed_packet",
    "net_buffer_length",
    "timestamp",
)
_NAMES = ", ".join(f"'{name}'" for name in _ALWAYS)

#: One text for both servers: MariaDB executes the first comment, MySQL (5.7.8 and newer) the
#: second.
ASK = f"""SELECT
/*M! VARIABLE_NAME, SESSION_VALUE FROM information_schema.SYSTEM_VARIABLES WHERE READ_ONLY = 'NO'
AND GLOBAL_VALUE IS NOT NULL AND (SESSION_VALUE <> GLOBAL_VALUE OR VARIABLE_NAME IN ({_NAMES})) */
/*!50708 s.VARIABLE_NAME, s.VARIABLE_VALUE FROM performance_schema.session_variables s
JOIN performance_schema.global_variables g ON g.VARIABLE_NAME = s.VARIABLE_NAME
WHERE s.VARIABLE_VALUE <> g.VARIABLE_VALUE OR s.VARIABLE_NAME IN ({_NAMES}) */"""

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def set_again(rows: Iterable[Any]) -> str:
    """Return the statement that sets the variables *rows*, the answer to :data:`ASK`."""
    given = {_text(name).lower(): _text(value) for name, value in rows}
    names = sorted(
        (n for n in given if n not in _NEVER), key=lambda name: name.startswith("collation")
    )
    return "SET " + ", ".join(f"SESSION {name} = {_literal(name, given[name])}" for name in names)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, (bytes, bytearray)) else str(value)


def _literal(name: str, value: str) -> str:
    if _NUMBER.fullmatch(value):
        return value
    if not value and name == "character_set_results":
        return "NULL"
    # In hexadecimal, because the meaning of a quote and a backslash depends on the current
    # sql_mode. Never in a character set.
    return f"_utf8mb4 0x{value.encode().hex()}" if value else "''"


_FILES = (
    "read_default_file",
    "read_default_group",
    "default_file",
    "default_group",
    "option_files",
)


def sets_nothing_else(options: Mapping[str, Any]) -> bool:
    """Return whether a session that is opened with *options* differs from a new one only in its
    settings.
    """
    if any(options.get(name) for name in _FILES):
        return False  # it may name an init-command
    command = options.get("init_command")
    return not command or left_by(command, "mysql") <= {Left.SETTING}


def may_have_moved(left: Iterable[Left]) -> bool:
    """Return whether the session may be in another database."""
    return not (VAGUE | {Left.DATABASE}).isdisjoint(left)
