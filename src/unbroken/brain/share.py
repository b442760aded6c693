"""How many connections each pool of one host may hold, where they share what a server grants.

Pure. A pool holds one *slot* for each connection, and there are as many slots as connections are
granted. Nobody rules: each pool sees how many pools there are, which of them want more, and decides
for itself whether it takes a free slot or gives one back.

* A pool that has callers waiting and no free slot is *hungry*. Others lend it what they do not use.
* A hungry pool with less than its fair share (slots by pools) *starves*. Others give it what they
  have above theirs, also where they could use it themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: This part of what the server grants is left to others: to administrators, and to sessions that
#: have not quite ended yet …
MARGIN = 0.1
#: … but never more than so many connections.
LARGEST_MARGIN = 10
#: A connection that nobody used for so many seconds is lent to a hungry pool …
LEND_AFTER = 0.1
#: … the last one of a pool after so many.
LEND_LAST_AFTER = 1.0
#: Where there are more pools than slots, each keeps its slot for so many seconds before another
#: one has its turn.
TURN = 0.25
#: Seconds that a pool leaves free slots alone after it gave one back to a pool that starves.
STAND_BACK = 0.15
#: Seconds that the slot of a process that died stays unused: the server may not have ended its
#: session yet.
MOURNED = 0.25


@dataclass(frozen=True, slots=True)
class Shares:
    """What a pool knows of its share, for :class:`unbroken.Stats`."""

    limit: int | None  #: connections that all pools may have together; None: not known yet
    held: int  #: slots of this pool
    free: int | None  #: slots that no pool has; None: not looked at, nothing is open here
    pools: int  #: that use the share now, this one included; 0: it did not look
    lent: int  #: slots that this pool has given back so far because others needed them
    is_waiting: bool = False  #: whether callers wait here for a slot
    off_because: str = ""  #: why nothing is shared; "": it is


def usable(granted: int) -> int:
    """How many of *granted* connections the pools of a host take."""
    return max(1, granted - min(LARGEST_MARGIN, math.ceil(granted * MARGIN)))


def fair(limit: int, pools: int) -> int:
    """How many slots a pool may keep while another one starves; 0: there are more pools than
    slots.
    """
    return limit // max(1, pools)


def starves(limit: int, pools: int, held: int) -> bool:
    """Whether a hungry pool with so many slots has less than its share."""
    return held < max(1, fair(limit, pools))


def to_return(
    held: int,
    limit: int,
    pools: int,
    *,
    hungry: int,
    starving: int,
    waits: bool,
    idle: Sequence[float],
    kept: float,
) -> int:
    """How many slots a pool gives back now.

    *hungry* and *starving* count other pools; *waits*: callers wait here; *idle*: for how many
    seconds each idle connection was not used; *kept*: for how many seconds this pool has had slots
    without a break.
    """
    found = 0
    if starving:
        share = fair(limit, pools)
        if share or kept >= TURN:
            found = max(0, min(held - share, starving))
    if hungry and not waits:
        spare = sum(each >= LEND_AFTER for each in idle)
        if spare >= held and max(idle, default=0.0) < LEND_LAST_AFTER:
            spare = held - 1
        found = max(found, min(spare, max(hungry, math.ceil(spare / 2))))
    return found
