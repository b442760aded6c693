"""Who takes a slot and who gives one back, told by pools that know nothing of each other but
flags.
"""

from __future__ import annotations

from random import Random

import pytest

from unbroken.brain import share


@pytest.mark.parametrize(
    ("granted", "left"), [(1, 1), (2, 1), (10, 9), (27, 24), (97, 87), (100, 90), (500, 490)]
)
def test_a_tenth_is_left_to_others_but_at_most_ten(granted: int, left: int) -> None:
    assert share.usable(granted) == left


def returned(held: int, **other: object) -> int:
    given: dict[str, object] = {
        "hungry": 1, "starving": 0, "waits": False, "idle": [], "kept": 9.0, **other,
    }  # fmt: skip
    return share.to_return(held, 24, 8, **given)  # type: ignore[arg-type]


def test_what_is_idle_is_lent_and_what_was_just_used_is_not() -> None:
    assert returned(3, idle=[5.0, 5.0, 0.01]) == 1  # one at a time, for one that is hungry
    assert returned(3, idle=[5.0, 5.0, 0.01], hungry=2) == 2
    assert returned(3, idle=[0.05, 0.01]) == 0
    assert returned(3, idle=[5.0], waits=True) == 0


def test_the_last_one_is_lent_after_a_longer_while() -> None:
    assert returned(1, idle=[0.5]) == 0
    assert returned(1, idle=[1.5]) == 1


def test_nothing_is_given_back_where_nobody_wants_it() -> None:
    assert returned(10, hungry=0, idle=[50.0] * 10) == 0


def test_who_is_busy_gives_what_it_has_above_its_share_to_those_who_starve() -> None:
    assert returned(10, starving=1, waits=True) == 1
    assert returned(10, starving=20, waits=True) == 7
    assert returned(3, starving=5, waits=True) == 0
    assert returned(10, starving=0, hungry=5, waits=True) == 0


def test_where_pools_outnumber_slots_each_has_its_turn() -> None:
    def alone(kept: float) -> int:
        return share.to_return(1, 5, 8, hungry=3, starving=3, waits=True, idle=[], kept=kept)

    assert alone(kept=share.TURN / 2) == 0
    assert alone(kept=share.TURN) == 1


class Member:
    """A pool whose callers want *want* connections all the time."""

    def __init__(self, want: int) -> None:
        self.want, self.held, self.since, self.not_before, self.served = want, 0, 0.0, 0.0, 0

    def waits(self) -> bool:
        return self.held < self.want

    def starves(self, limit: int, pools: int) -> bool:
        return self.waits() and share.starves(limit, pools, self.held)


@pytest.mark.parametrize("seed", range(100))
def test_all_get_their_share_and_no_slot_is_left_while_somebody_is_hungry(seed: int) -> None:
    """The rule of :mod:`unbroken.pool.share`, in the order in which chance has the pools look."""
    random = Random(seed)
    limit = random.randint(1, 40)
    members = [Member(random.choice([0, 1, 3, 10])) for _ in range(random.randint(1, 16))]
    hoarder = random.choice(members)
    hoarder.held = limit  # one was first
    pools, steps = len(members), 8000
    for step in range(steps):
        now, each = step * 0.005, random.choice(members)
        others = [other for other in members if other is not each]
        starving = sum(other.starves(limit, pools) for other in others)
        number = share.to_return(
            each.held,
            limit,
            pools,
            hungry=sum(other.waits() for other in others),
            starving=starving,
            waits=each.waits(),
            idle=[9.0] * max(0, each.held - each.want),
            kept=now - each.since,
        )
        each.held -= number
        if number and starving:
            each.not_before = now + share.STAND_BACK
        free = limit - sum(other.held for other in members)
        assert free >= 0
        while (
            each.waits()
            and free
            and not (
                starving and (now < each.not_before or not share.starves(limit, pools, each.held))
            )
        ):
            each.since = now if not each.held else each.since
            each.held, free = each.held + 1, free - 1
        if step > steps // 2:
            each.served += each.held
    for each in members:
        if each.want:
            assert each.served, "it never had a connection"
        least = min(each.want, share.fair(limit, pools))
        assert each.held >= least
    if any(each.waits() for each in members) and limit >= pools:
        assert limit == sum(each.held for each in members)
