"""May this server serve us? What it says of its role, held against what a pool wants.

Pure. The roles come from :data:`unbroken.ledger.questions.Question.ROLE`.
"""

from __future__ import annotations

from difflib import get_close_matches
from enum import StrEnum


class Role(StrEnum):
    """What a server says of itself."""

    PRIMARY = "takes writes"
    STANDBY = "is read-only"
    UNREADY = "is not ready"  #: a node of Galera that is outside of the cluster, or turns us away


class Wanted(StrEnum):
    """The setting ``target``: which of a cluster's servers a pool uses."""

    ANY = "any"
    PRIMARY = "primary"
    STANDBY = "standby"
    PREFER_STANDBY = "prefer-standby"


#: libpq's words for ``target_session_attrs``, which mean the same here.
ALIASES = {"read-write": Wanted.PRIMARY, "read-only": Wanted.STANDBY}
WORDS = (*(each.value for each in Wanted), *ALIASES)


def wanted(word: object) -> Wanted:
    """What *word* means: one of ours, or of libpq's. Raises ValueError with the remedy."""
    text = word.replace("_", "-").lower() if isinstance(word, str) else ""
    found = ALIASES.get(text) or next((each for each in Wanted if each.value == text), None)
    if found is not None:
        return found
    near = get_close_matches(text, WORDS, 1)
    raise ValueError(f"did you mean {near[0]!r}?" if near else f"known: {', '.join(WORDS)}")


def objection(role: Role | None, want: Wanted, *, took_writes: bool, patient: bool) -> str | None:
    """Why a server with this *role* must not serve a pool that wants *want*; None: it may.

    *role* None: it could not be asked, which forbids nothing. *took_writes*: a server at this
    address has taken writes since this process began, so one that takes none was demoted.
    *patient*: callers have not waited for a better one for as long as the pool lets them. After
    that, a server that can only be read is better than none, where the pool wants any.
    """
    if role is Role.UNREADY:
        return role.value
    if role is Role.STANDBY and want is Wanted.PRIMARY:
        return f"{role.value}, and target=primary"
    if role is Role.PRIMARY and want is Wanted.STANDBY:
        return f"{role.value}, and target=standby"
    if role is Role.STANDBY and want is Wanted.ANY and took_writes and patient:
        return f"{role.value}, and took writes before"
    return None
