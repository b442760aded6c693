"""A driver's own arguments, adapted to the host and the user of one attempt to connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from unbroken.abc import Login, Target, is_path
from unbroken.backends.masking import MASK, masked
from unbroken.backends.system import chain, one_line
from unbroken.drivers._diagnosis import Option, options_of

#: The number of passwords from logins that are kept out of errors: the last ones.
_REMEMBERED = 200
#: Other names that some libraries use for a host, a user and a password.
_ALSO = (("hostaddr", "unix_sock"), ("username",), ("passwd",))


def aimed(
    arguments: Mapping[str, Any], login: Login | None, password: str, socket: str | None
) -> dict[str, Any]:
    """Return *arguments* with the host, the user and the password of *login*, if it gives them.

    *password* and *socket* are the library's names for a password and for the path of a unix
    socket. *socket* None: a path is given as the host.
    """
    out = dict(arguments)
    if login is None:
        return out
    if login.host is not None:
        for name in ("host", "port", socket):
            out.pop(name, None)  # type: ignore[arg-type] # None is in no dictionary of these
        out[socket if socket is not None and is_path(login.host) else "host"] = login.host
        if login.port is not None:
            out["port"] = login.port
    if login.user is not None:
        out["user"] = login.user
    if login.password is not None:
        out[password] = login.password
    return out


def turned(
    arguments: Mapping[str, Any], login: Login | None, password: str, socket: str | None
) -> dict[str, Any]:
    """Do the same as :func:`aimed` for a framework's *arguments*, some of which may have other
    names.
    """
    out = dict(arguments)
    said = () if login is None else (login.host, login.user, login.password)
    for value, names in zip(said, _ALSO, strict=False):
        for name in names if value is not None else ():
            out.pop(name, None)
    return aimed(out, login, password, socket)


def as_latin(secret: str) -> str:
    """Return *secret* for a library that encodes it as Latin-1. The bytes sent are then those of
    UTF-8, or those that were percent-encoded in the URL.
    """
    return secret.encode("utf-8", "surrogateescape").decode("latin-1")


def is_unicode(secret: str) -> bool:
    """Return whether *secret* is text. Otherwise it stands for bytes that are not text."""
    try:
        secret.encode()
    except UnicodeEncodeError:
        return False
    return True


class Opener:
    """An integration's ``connect=``, which receives the login of each attempt.

    *function* takes a login and opens a connection of the framework's. None: the framework's own
    settings apply.
    """

    def __init__(self, function: Callable[[Login | None], Any]) -> None:
        self.function = function

    def __call__(self) -> Any:
        """Open a connection with the framework's settings."""
        return self.function(None)


def target_of(target: Target, login: Login | None) -> Target:
    """Return *target* with the values of *login*."""
    if login is None:
        return target
    if login.host is not None:
        path = login.host if is_path(login.host) else None
        host = None if path else login.host
        target = replace(target, host=host, port=login.port, unix_socket=path, others=())
    if login.user is not None:
        target = replace(target, user=login.user)
    return target if login.password is None else replace(target, password=login.password)


class _Masked:
    """A text that no ``repr`` and no pickle shows."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> Any:
        raise TypeError("a password cannot be pickled")


class Logins:
    """The base class of every driver: arguments for a login, and errors that quote no password."""

    target: Target
    _arguments: dict[str, Any]
    #: The library's names for a password and for a unix socket's path; see :func:`aimed`.
    _names: tuple[str, str | None] = ("password", None)
    #: The caller's own ``connect=``.
    _connect: Callable[[], Any] | None
    #: Whether the application's own code gives the user or the password of each connect. A login
    #: that was refused may then be another one the next time.
    login_may_change: bool = False
    #: Passwords of logins, the last ones.
    _brought: tuple[_Masked, ...] = ()
    #: Users of logins, the last ones.
    _users: tuple[str, ...] = ()

    #: Whether the library encodes a password as Latin-1, and not as UTF-8 as others do. Then any
    #: bytes can be sent.
    sends_latin = False

    #: The options of each connect, where a framework has them; None: those of the URL.
    given: tuple[Option, ...] | None = None

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of each connect, for messages that say which one is wrong."""
        if self.given is not None:
            return self.given
        return options_of(self.target.options, "in the URL")

    @property
    def secrets(self) -> tuple[str | None, ...]:
        """Texts that no error may quote."""
        among = (each.value for each in self.options if each.is_secret)
        return (self.target.password, *among, *(each.text for each in self._brought))

    @property
    def known(self) -> tuple[str | None, ...]:
        """Texts that errors show on purpose. They are not secrets, even if a password equals
        one.
        """
        target = self.target
        where = [each for host, port in target.hosts for each in (host, str(port or ""))]
        return (*where, target.user, target.database, target.scheme, target.backend, *self._users)

    def shown(self, text: object) -> str:
        """Return *text* as one line for people, without the password of any login so far."""
        return one_line(text, *self.secrets, known=self.known)

    def scrub(self, exc: BaseException) -> None:
        """Mask the passwords in the texts of *exc*, which ended a connect, and of its causes. This
        covers their ``repr``, and the values that a traceback shows of them.
        """
        for link in chain(exc):
            if isinstance(link, UnicodeEncodeError):
                if link.object in self.secrets:
                    link.object = MASK
                    link.args = (link.encoding, MASK, 0, len(MASK), link.reason)
            elif any(isinstance(each, str) for each in link.args):
                args = tuple(self._masked(each) for each in link.args)
                if args != link.args:
                    link.args = args

    def _masked(self, arg: Any) -> Any:
        if not isinstance(arg, str):
            return arg
        found = masked(arg, self.secrets, self.known)
        return arg if arg.startswith(found) else found

    def brings(self, login: Login | None) -> None:
        """Keep the password of *login* out of errors from now on."""
        secret, user = (None, None) if login is None else (login.password, login.user)
        if user and user not in self._users:
            self._users = (*self._users[1 - _REMEMBERED :], user)
        if secret and secret not in (each.text for each in self._brought):
            self._brought = (*self._brought[1 - _REMEMBERED :], _Masked(secret))

    def aimed(self, login: Login | None) -> dict[str, Any]:
        """Return the arguments of a connect as *login*."""
        self.brings(login)
        out = aimed(self._arguments, login, *self._names)
        secret = out.get(self._names[0])
        if self.sends_latin and isinstance(secret, str):
            out[self._names[0]] = as_latin(secret)
        return out

    def turned(self, arguments: Mapping[str, Any], login: Login | None) -> dict[str, Any]:
        """Return a framework's *arguments* for the library, adapted to *login*."""
        self.brings(login)
        return turned(arguments, login, *self._names)

    def own(self, login: Login | None) -> Any:
        """Return the result of the caller's own ``connect=``. An integration's receives *login*."""
        connect = self._connect
        assert connect is not None
        if isinstance(connect, Opener):
            self.brings(login)
            return connect.function(login)
        return connect()
