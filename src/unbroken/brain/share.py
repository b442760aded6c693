"""How many connections each pool of one host may hold, if they share a server's limit.

Pure. A pool holds one *slot* for each connection, and there are as many slots as connections are
granted. There is no central authority. Each pool knows the number of pools and which of them want
more. It decides for itself whether to take a free slot or give one back.

* A pool with waiting callers and no free slot is *hungry*. Other pools release their unused slots.
* A hungry pool with less than its fair share (slots divided by pools) *starves*. Others release
  the slots above their own share, even if they could use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: This fraction of the server's limit is left to others: to administrators, and to sessions that
#: have not quite ended yet …
MARGIN = 0.1
#: … but never more than this many connections.
LARGEST_MARGIN = 10
#: A connection that was unused for this many seconds is released for a hungry pool …
LEND_AFTER = 0.1
#: … and the last one of a pool after this many.
LEND_LAST_AFTER = 1.0
#: If there are more pools than slots, each keeps its slot for this many seconds before another pool
#: has its turn.
TURN = 0.25
#: Seconds for which a pool takes no free slots after it released one for a starving pool.
STAND_BACK = 0.15
#: Seconds for which the slot of a dead process stays unused: the server may still have its session
#: open.
MOURNED = 0.25


@dataclass(frozen=True, slots=True)
class Shares:
    """The state of a pool's share, for :class:`unbroken.Stats`."""

    limit: int | None  #: maximum connections of all pools together; None: not known yet
    held: int  #: slots of this pool
    free: int | None  #: slots that no pool has; None: unknown, because nothing is open here
    pools: int  #: pools that use the share now, including this one; 0: not counted
    lent: int  #: slots that this pool has released so far because others needed them
    is_waiting: bool = False  #: whether callers of this pool wait for a slot
    off_because: str = ""  #: why nothing is shared; "": it is shared


def usable(granted: int) -> int:
    """How many of *granted* connections the pools of a host take."""
    return max(1, granted - min(LARGEST_MARGIN, math.ceil(granted * MARGIN)))


def fair(limit: int, pools: int) -> int:
    """How many slots a pool may keep while another one starves. 0 if there are more pools than
    slots.
    """
    return limit // max(1, pools)


def starves(limit: int, pools: int, held: int) -> bool:
    """Whether a hungry pool with *held* slots has less than its share."""
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
    """How many slots a pool releases now.

    *hungry* and *starving* count other pools. *waits*: callers wait here. *idle*: seconds since the
    last use of each idle connection. *kept*: seconds for which this pool has had slots without a
    break.
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
