"""The meaning of an error, or of a server's last packet, for the connection it came from and for
callers that wait for one. The tables are in :mod:`mysql`, :mod:`postgresql` and :mod:`system`
beside this file.

Pure tables and functions: a driver takes the code and the text from its exception and asks here.
Sources: the MySQL 8.4 and MariaDB 10.11 error references, errmsg.h of both clients, PostgreSQL's
errcodes.txt, the drivers' own sources, and faults provoked on real servers (tests/drivers). In
every function *connecting* means that the error came from an attempt to connect. A timeout then
means that the server is down; later it means that this one connection is lost.
"""

from __future__ import annotations

import re

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends import mysql, postgresql
from unbroken.backends.commits import is_of_the_server

#: MySQL's codes for a server that was not reached.
_NOT_CONNECTED = (2002, 2003, 2005)
#: Kinds in which no server took part.
CLIENT_KINDS = frozenset({FaultKind.MISCONFIGURED, FaultKind.EXHAUSTED})
#: A limit of one user, role or database, in the texts of MySQL, PostgreSQL, PgBouncer and Odyssey.
_OF_ONE_USER = re.compile(
    r"max_user_connections|connections for (?:role|database)|max_(?:user|db)_client_connections"
    r"|clients for user",
    re.IGNORECASE,
)


def refuses_login(fault: Fault, backend: str) -> bool:
    """Return whether *fault*, of an attempt to connect, concerns the login: another password, or
    user, might be accepted.
    """
    if fault.kind is not FaultKind.REJECTED:
        return False
    if backend == "postgresql":
        return postgresql.refuses_login(fault)
    return fault.code in mysql.LOGIN_REFUSED


def shows_server(fault: Fault) -> bool:
    """Return whether *fault*, of an attempt to connect that was finally rejected, shows that the
    server is running.
    """
    if fault.kind is FaultKind.OTHER:
        return is_of_the_server(fault)
    return fault.kind not in CLIENT_KINDS and not is_the_systems(fault)


def is_the_systems(fault: Fault) -> bool:
    """Return whether the client's own system refuses to connect to this host (a firewall, the
    rights on a socket, a name of another family). It may let the pool connect to another host.
    """
    code = fault.code
    is_before = isinstance(code, int) and (code < 1000 or code in _NOT_CONNECTED)
    return fault.kind is FaultKind.REJECTED and is_before


def is_own(fault: Fault) -> bool:
    """Return whether *fault*, of an attempt to connect, affects only the pool that made it. Another
    pool of the same server, with other settings, or as another user, may be accepted. Such a fault
    tells nothing about the server.

    These are the client's own settings, files and limits; limits of one user, role or database; and
    errors that the application's own code raised. Refused logins and databases are the pool's own,
    too; they are REJECTED, which never makes an outage.
    """
    if fault.kind is FaultKind.TOO_MANY:
        return _OF_ONE_USER.search(fault.text) is not None
    return not shows_server(fault)


def may_be_own(fault: Fault) -> bool:
    """Return whether *fault*, of an attempt to connect, may come from the pool's own settings (TLS,
    a time limit that is too short) as well as from the server: no table knows its text.
    """
    kinds = (FaultKind.LOST, FaultKind.UNREACHABLE)
    return fault.kind in kinds and not is_of_the_server(fault)


def may_heal(fault: Fault, *, has_served: bool) -> bool:
    """Return whether waiting may cure *fault*, which is the pool's own (:func:`is_own`).

    *has_served*: the pool has had a connection. Then its settings are right, and their effect has
    changed: a file is being replaced, descriptors have run out. That may change back.
    """
    return has_served or fault.kind is FaultKind.TOO_MANY


def is_goodbye(code: int | str, text: str, backend: str) -> bool:
    """Return whether a server that sent *code* (MySQL errno or SQLSTATE) and *text* unrequested
    ends the session with it.
    """
    if backend == "postgresql":
        return postgresql.postgres_fault(str(code), text).is_lost
    return mysql.mysql_fault(int(code), text).is_lost


def cause_of_words(code: int | str | None, text: str, backend: str) -> Cause:
    """Return why a server ended an idle connection, from its last packet: *code* (MySQL errno or
    SQLSTATE) and *text*.

    *backend* is ``mysql``, ``mariadb`` or ``postgresql``. CLOSED_BY_PEER if the packet does not
    tell. PostgreSQL sends 57P01 with the same text for pg_terminate_backend and for a shutdown;
    KILLED then means "on an administrator's order".
    """
    if backend == "postgresql":
        return postgresql.cause_of_words(code, text)
    return mysql.cause_of_words(code, text)
