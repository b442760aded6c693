"""The role that a server reports, and the role that a pool wants."""

from __future__ import annotations

from difflib import get_close_matches
from enum import StrEnum


class Role(StrEnum):
    """The role that a server reports."""

    PRIMARY = "takes writes"
    STANDBY = "is read-only"
    #: a Galera node that is not in the cluster, or rejects this client
    UNREADY = "is not ready"


class Wanted(StrEnum):
    """The setting ``target``: which of a cluster's servers a pool uses."""

    ANY = "any"
    PRIMARY = "primary"
    STANDBY = "standby"
    PREFER_STANDBY = "prefer-standby"


#: libpq's values of ``target_session_attrs``, which mean the same here.
ALIASES = {"read-write": Wanted.PRIMARY, "read-only": Wanted.STANDBY}
WORDS = (*(each.value for each in Wanted), *ALIASES)


def wanted(word: object) -> Wanted:
    """Return the meaning of *word*: one of ours, or of libpq's. Raises ValueError with the
    remedy.
    """
    text = word.replace("_", "-").lower() if isinstance(word, str) else ""
    found = ALIASES.get(text) or next((each for each in Wanted if each.value == text), None)
    if found is not None:
        return found
    near = get_close_matches(text, WORDS, 1)
    raise ValueError(f"did you mean {near[0]!r}?" if near else f"known: {', '.join(WORDS)}")
