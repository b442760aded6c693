"""The user and password of an attempt to connect: ask for them, and do not treat a refusal as final
if the next answer may differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unbroken.abc import Fault, FaultKind, Login
from unbroken.backends.fault import (
    is_own,
    is_the_systems,
    may_be_own,
    may_heal,
    refuses_login,
)
from unbroken.backends.system import one_line
from unbroken.brain.outage import FRESH
from unbroken.brain.tries import Try
from unbroken.drivers._diagnosis import Option, asks_for_password, diagnosed
from unbroken.errors import ConnectRejectedError, OutageError, UnbrokenError
from unbroken.logs import Part
from unbroken.messages.server import LOGIN_REFUSED, NO_LOGIN, OWN_TROUBLE
from unbroken.pool.admission import CannotServeError
from unbroken.pool.knowledge import AT_THE_LIMIT
from unbroken.pool.places import host_of
from unbroken.pool.secrets import LoginError, checked, late
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Consult, Flow
from unbroken.pool.wording import times

log = Part("pool")


def login_of(state: PoolState, attempt: Try) -> Flow[Login | None]:
    """The host and login of *attempt*. Its dialing may be replaced meanwhile. Raises LoginError."""
    secrets = state.secrets
    if not secrets.are_asked:
        return host_of(attempt)
    user = password = None
    if secrets.user is not None:
        user = yield from _ask(state, attempt, "user", secrets.user)
    if secrets.password is not None:
        password = yield from _ask(state, attempt, "password", secrets.password)
    host, port = attempt.address or (None, None)
    return Login(host, port, user, password)


def _ask(state: PoolState, attempt: Try, name: str, function: Any) -> Flow[str]:
    dialing = state.tries[attempt]
    dialing.asks = name
    with state.lock, state.server.lock:
        # a slow callable says nothing about the server
        state.server.outage.over(attempt)
    try:
        value = yield Consult(name, function, dialing)
    except Exception:
        if dialing.is_ended:
            raise late(name, state.settings.connect_timeout) from None
        raise
    if dialing.is_ended:
        raise late(name, state.settings.connect_timeout)
    value = checked(name, value)
    with state.lock, state.server.lock:
        if attempt.is_late:
            raise late(name, state.settings.connect_timeout)
        now = state.clock()
        state.server.outage.goes_on(attempt, now)
        state.tries[attempt] = state.runtime.dialing(max(AT_THE_LIMIT, attempt.until - now))
    return value


def time_left(state: PoolState, attempt: Try) -> float:
    """Seconds left for the connect, after asking for the login, or for a caller that has less
    time.
    """
    left = attempt.until - AT_THE_LIMIT - state.clock()
    if not state.secrets.are_asked and left > state.settings.connect_timeout - AT_THE_LIMIT:
        return state.settings.connect_timeout
    return max(AT_THE_LIMIT, left)


class ClientError(Exception):
    """An attempt was not begun, for a reason on the client's side: *fault*."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def options_of(state: PoolState) -> tuple[Option, ...]:
    """The options of the driver, for messages."""
    return getattr(state.driver, "options", ())


def check_keys(state: PoolState) -> None:
    """Raise ClientError if OpenSSL would ask for a password on the terminal."""
    if state.is_opened_outside:
        return
    found = asks_for_password(options_of(state))
    if found is not None:
        raise ClientError(found)


def fault_of(state: PoolState, exc: BaseException, *, is_open: bool = True) -> Fault:
    """The meaning of *exc*, which ended an attempt. Unless *is_open*, it names the client's option
    that caused it, if one did. Called without locks: it reads files.
    """
    if isinstance(exc, LoginError | CannotServeError | ClientError):
        return exc.fault
    fault = state.classify(exc)
    if is_open:
        return fault
    target, is_foreign = state.driver.target, state.is_opened_outside
    if is_foreign and getattr(state.driver, "is_async", False):
        return fault  # "no such file" may concern a socket that the application connects to
    found = diagnosed(fault, target, options_of(state), is_foreign=is_foreign)
    return found if found is fault else replace(found, text=text_of(state, found))


def is_put_off(state: PoolState, exc: BaseException, fault: Fault) -> bool:
    """Whether *exc*, with its *fault*, ended an attempt for a reason that concerns this pool alone
    and perhaps does not recur. Then the pool tries again, and its server is not considered down.
    """
    if isinstance(exc, LoginError):
        return fault.kind is not FaultKind.REJECTED
    if is_own(fault):
        return may_heal(fault, has_served=state.has_served) and not is_of_one_host(state, fault)
    if is_alone(state, fault):
        now = state.clock()
        state.is_apart = state.is_apart or now - state.server.outage.last_success < FRESH
        return state.is_apart
    return state.asks_login and refuses_login(fault, state.backend)


def is_of_one_host(state: PoolState, fault: Fault) -> bool:
    """Whether another host of the pool may be reachable in spite of *fault*."""
    return len(state.driver.target.hosts) > 1 and is_the_systems(fault)


def is_alone(state: PoolState, fault: Fault) -> bool:
    """Whether the pool has never been accepted, and *fault* may be its own."""
    return may_be_own(fault) and not state.has_served and state.backend != "sqlite"


def refused(state: PoolState, exc: BaseException, fault: Fault, started: float) -> None:
    """An attempt has ended with *exc*, for the pool's own reason: the next one may succeed."""
    with state.lock:
        state.refusals.is_apart = is_alone(state, fault)
        began = state.refusals.failed(started, state.clock(), fault, exc, state.random)
        state.rejected_at = state.clock()
        state.counters.connect_failures += 1
    if began:
        log.warning(
            "no login",
            OWN_TROUBLE(
                f"{state.name}: cannot connect to {state.driver.target.server}, and keeps trying:"
                f" {text_of(state, fault)}"
            )
            if state.refusals.is_apart or is_own(fault)
            else NO_LOGIN(
                f"{state.name}: no login for {state.driver.target.server}, and the pool keeps"
                f" asking: {text_of(state, fault)}"
            ),
            pool=state.name,
            server=state.driver.target.server,
        )


def let_in(state: PoolState) -> None:
    """An attempt did not fail at its login. The caller holds the pool's lock."""
    fault = state.refusals.fault
    since = state.refusals.over()
    if since is not None:
        own = state.refusals.is_apart or (fault is not None and is_own(fault))
        what = "can connect again" if own else "has a login again"
        seconds = state.clock() - since
        log.info(
            "login",
            f"{state.name}: the pool {what} after {seconds:.2f} s",
            pool=state.name,
            seconds=seconds,
        )


def text_of(state: PoolState, said: Fault | str) -> str:
    """The text of *said*, as one line without a password."""
    shown = getattr(state.driver, "shown", one_line)
    return str(shown(said.text if isinstance(said, Fault) else said))


def scrub(state: PoolState, exc: BaseException) -> None:
    """Mask passwords in *exc*, which callers see as the cause of their error."""
    clean = getattr(state.driver, "scrub", None)
    if clean is not None:
        clean(exc)


def login_error(state: PoolState, now: float) -> UnbrokenError:
    """The error for a caller that has waited for a login for long enough."""
    refusals, fault = state.refusals, state.refusals.fault
    assert fault is not None
    what = text_of(state, fault)
    age, tries = refusals.age(now), refusals.tries
    if refusals.is_apart or (is_own(fault) and not isinstance(refusals.error, LoginError)):
        told: UnbrokenError = state.error(
            OutageError,
            OWN_TROUBLE(
                f"no connection to {state.driver.target.label} ({state.describe_load()}): {what};"
                f" failing for {age:.1f} s, tried {times(tries)}; {_whose(state, fault)}"
            ),
            retry_after=1.0,
        )
    elif fault.kind is FaultKind.REJECTED:
        told = state.error(
            ConnectRejectedError,
            LOGIN_REFUSED(
                f"cannot connect to {state.driver.target.label}: {what}; refused {times(tries)}"
                f" within {age:.1f} s, each time with a newly requested login"
            ),
        )
    else:
        told = state.error(
            OutageError,
            NO_LOGIN(
                f"no connection to {state.driver.target.label} ({state.describe_load()}): {what};"
                f" failing for {age:.1f} s, asked {times(tries)}; the pool keeps asking"
            ),
            retry_after=1.0,
        )
    error = refusals.error
    told.__cause__ = error.__cause__ if isinstance(error, LoginError) else error
    return told


def _whose(state: PoolState, fault: Fault) -> str:
    if state.refusals.is_apart:
        return (
            "the server accepts other pools of this process, but never accepted this one: check its"
            " own settings (TLS, connect_timeout); it keeps trying"
        )
    if fault.kind is FaultKind.TOO_MANY:
        return "the server is up, and accepts other clients; the pool keeps trying"
    return "the pool has had connections before and keeps trying; the server was not contacted"


def still_asking(state: PoolState) -> str | None:
    """The name of the secret that an attempt is being asked for now. None if there is none."""
    return next((each.asks for each in list(state.tries.values()) if each.asks), None)
