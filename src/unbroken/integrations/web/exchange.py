"""The common part of the web integrations: their settings, which requests are run again, and the
answer to an outage.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from unbroken.abc import Fault
from unbroken.brain.ranks import Rank
from unbroken.integrations.web.answers import (
    Answer,
    Swallowed,
    answer_to,
    fault_of,
    printable,
)
from unbroken.integrations.web.settings import SAFE, HttpSettings
from unbroken.ledger import scope
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Fate
from unbroken.logs import Part
from unbroken.messages.units import NOT_RUN_AGAIN
from unbroken.pool import callers
from unbroken.pool.budget import may_replay
from unbroken.pool.undone import concerns, not_replayed

log = Part("web")

#: The key under which a WSGI environ or an ASGI scope holds the request's :class:`Exchange`.
KEY = "unbroken.exchange"


# -- errors ----------------------------------------------------------------------------------------


# -- one request -----------------------------------------------------------------------------------


class Exchange:
    """One request: the ledger that watches all of it, and the options that are left after an error.

    Each request has its own, also one that is made inside another (a test client's in a view). A
    part of the same request (a mounted app) shares the ledger of the whole.
    """

    #: the remedy: how another request like this one is run again
    remedy = "name its path in replay="
    #: the reason why it cannot be run again, though it is marked
    hindrance: str | None = None

    def __init__(self, method: str, path: str) -> None:
        self.method, self.path = method, path
        #: the bounds of its attempts; None: never run again
        self.limits: HttpSettings | None = None
        self.attempts = 0  #: the number of attempts begun, for one that may be run again
        self.begun = False  #: a part of the response was sent: no other attempt, no other answer
        self.heard: list[
            BaseException
        ] = []  #: the database's errors, even those that the app handled
        # an answer, not sent yet, and its reason
        self._said: tuple[Answer, BaseException] | None = None
        self._whole: Exchange | None = None
        self._own: Unit | None = None  # the unit of work of its attempts, if it is not another's
        self._token: scope.Token | None = None
        self._witness: Any = None
        self.rank: Rank | None = None  #: its class among callers that wait for a connection
        self._serving: callers.Token | None = None

    # -- the ledger --------------------------------------------------------------------------------

    def watch(self, whole: Exchange | None) -> None:
        """Collect the database's errors and follow all writes from now on.

        *whole*: the exchange that this one is a part of, if that is the same request. The caller's
        frame must call :meth:`unwatch` before it returns.
        """
        self._whole = whole
        rank = callers.caller()[0] if self.rank is None else self.rank
        self._serving = callers.enter((rank, self))
        self._witness = scope.witnesses(self.heard)
        watched = None if whole is None else scope.current()
        if watched is None:
            unit = Unit(observing=True)
            unit.subject = self
            self._token = scope.enter(unit, id(sys._getframe(1)))
        else:
            self._token = scope.Token(watched, False)

    def unwatch(self) -> None:
        """End the exchange. Call it in any case, in the context of :meth:`watch`."""
        self.begun = True  # no user waits for the work of a task that outlives it
        serving, self._serving = self._serving, None
        try:
            if serving is not None:
                callers.leave(serving)
        except ValueError:
            pass  # in another context than it was entered in
        if self._token is not None:
            scope.leave(self._token)
        if self._witness is not None:
            scope.no_longer_witnesses(self._witness)
        self.heard.clear()
        self._said = self._whole = self._own = None

    # -- descriptions ------------------------------------------------------------------------------

    def title(self) -> str:
        """Return ``POST /orders``: no query, which may hold a secret."""
        return f"{self.method} {printable(self.path)}"

    def why_not(self) -> tuple[str, str]:
        """Return the reason why the request is not run again although nothing of it was committed,
        and the remedy.
        """
        if self.begun:
            return "its response had already begun", ""
        if self.is_cut_off():
            most = 0 if self.limits is None else self.limits.max_body
            return f"its body is longer than max_body={most} bytes", "raise max_body"
        if self.hindrance is not None:
            return self.hindrance, ""
        if self.method in SAFE:
            return "its view, or the setting methods= or replay=, excludes it", ""
        return f"a {self.method} request is run again only if the app allows it", self.remedy

    @property
    def fate(self) -> Fate:
        """Return the ledger's knowledge of this request's writes."""
        return Fate.UNKNOWN if self._token is None else self._token.unit.fate()

    @property
    def is_troubled(self) -> bool:
        """Return whether a database raised an error in this attempt, even one that the app
        handled.
        """
        watching = None if self._token is None else self._token.unit
        return bool(self.heard) or any(
            unit is not None and unit.met for unit in (self._own, watching)
        )

    @property
    def unit(self) -> Unit | None:
        """Return the unit of work that an attempt at this request is now in; None: it is not run
        again from here.
        """
        unit = scope.current()
        return None if unit is None or unit.observing else unit

    def attempt(self) -> bool:
        """Begin an attempt, in its unit of work.

        Returns whether there was one before, which is discarded.
        """
        self.attempts += 1
        unit = scope.current()
        is_own = self._token is not None and unit is not self._token.unit
        self._own = unit if is_own else None
        self.heard.clear()
        self._said = None
        return self.attempts > 1

    def go_out(self) -> None:
        """Note that the response is being sent: it cannot be run again. Work of a stream or a
        background task from here on is no part of its unit of work.
        """
        self.begun = True
        if self._own is not None:
            self._own.close()

    # -- another attempt? --------------------------------------------------------------------------

    def is_cut_off(self) -> bool:
        """Return whether some of the client's body was read and not kept, so that no attempt can
        read it again.
        """
        return False

    def has_turn(self) -> Unit | None:
        """Return the unit of this attempt, if attempts and time are left for another one."""
        unit, limits = self.unit, self.limits
        if unit is None or limits is None or self.begun or self.is_cut_off():
            return None
        return unit if unit.attempts <= limits.max_replays and monotonic() < unit.until else None

    def would_replay(self, exc: BaseException) -> bool:
        """Return whether another attempt follows if the app raises *exc* now."""
        unit = self.has_turn()
        fault = None if unit is None else fault_of(unit, exc)
        return unit is not None and fault is not None and _follows(unit, exc, fault)

    def curable(self) -> BaseException | None:
        """Return the last error of the database's in this attempt that another attempt would
        cure.
        """
        unit = self.has_turn()
        if unit is not None:
            for exc, fault in reversed(unit.noted()):
                if _follows(unit, exc, fault):
                    return exc
        return None

    def too_late(self, exc: BaseException) -> None:
        """Note that an attempt failed with *exc*, and that none may follow, even if its unit allows
        one.
        """
        unit = self.unit
        fault = None if unit is None else fault_of(unit, exc)
        if unit is not None and fault is not None and concerns(fault):
            reason, then = self.why_not()
            text = f"unbroken did not run {self.title()} again: {reason}"
            text = f"{text}. If it may run twice, {then}" if then else text
            not_replayed(unit, exc, fault, NOT_RUN_AGAIN, text)

    def tell(self, exc: BaseException) -> None:
        """Report the exceptions behind *exc* to the unit, also through SQLAlchemy's wrappers and
        groups.
        """
        unit = self.unit
        if (
            unit is not None
            and unit.fault_of(exc) is None
            and (fault := fault_of(unit, exc)) is not None
        ):
            unit.note(exc, fault)

    # -- the answer --------------------------------------------------------------------------------

    def is_ours(self, exc: BaseException) -> bool:
        """Return whether the response to *exc* is ours, as far as is known before open work is
        rolled back.
        """
        fates = (Fate.NOTHING, self.fate)
        return any(answer_to(exc, self.heard, fate, self.method) is not None for fate in fates)

    def answer(self, exc: BaseException | None) -> Answer | None:
        """Return the response to *exc*; with None, the one to the errors behind the app's own error
        page.

        None: the app's own matter.
        """
        keeps = self._token is None or self._token.unit.may_keep_rows()
        answer = answer_to(exc, self.heard, self.fate, self.method, keeps=keeps)
        if answer is not None:
            self._say(answer, self.heard[-1] if exc is None else exc)
        return answer

    def _say(self, answer: Answer, cause: BaseException) -> None:
        self._said = answer, cause
        if self._whole is not None:
            self._whole._say(answer, cause)

    def reconsider(self, status: int) -> None:
        """Check the app's result, before *status* is sent. Raises Swallowed if another answer is
        due.

        That is so in three cases:

        - another attempt would cure an error that the app made a page of;
        - an outage made the app answer 500;
        - the app stored something after it was told that nothing is stored.
        """
        if status < 500:
            return
        cause = self.curable()
        if cause is None:
            cause = self._due(status)
        if cause is not None:
            raise Swallowed(f"answered with {status}") from cause

    def _due(self, status: int) -> BaseException | None:
        """Return the reason why an answer of ours must replace the app's page."""
        if self._said is not None and self._said[0].fate is not Fate.NOTHING:
            return None  # the page reports it, or the app chose another one
        if self._said is not None and self.fate is not Fate.NOTHING:
            return self._said[1]
        if status == 500 and answer_to(None, self.heard, self.fate, self.method) is not None:
            return self.heard[-1]
        return None


# -- pages -----------------------------------------------------------------------------------------


def _follows(unit: Unit, exc: BaseException, fault: Fault) -> bool:
    """Return whether another attempt follows *exc*: it is safe, and the retry budget allows it."""
    return unit.verdict(fault).action is Action.REPLAY and may_replay(unit, exc, fault)
