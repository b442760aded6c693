"""A name that has moved is told from one that rotates."""

from __future__ import annotations

from random import Random

from unbroken.brain.names import LOOKS, MOST, RECENT, RETURNS, Name

EVERY = 3.0


def fed(*answers: str, every: float = EVERY) -> Name:
    """A name after lookups that gave these, addresses separated by blanks."""
    name = Name()
    for number, each in enumerate(answers):
        name.look(number * every, each.split())
    return name


def test_an_address_is_left_when_two_lookups_in_a_row_do_not_give_it() -> None:
    assert LOOKS == 2
    assert not fed("a").has_left("a", 0.0)
    assert not fed("a", "b").has_left("a", 3.0)
    name = fed("a", "b", "b")
    assert name.has_left("a", 6.0)
    assert not name.has_left("b", 6.0)


def test_an_address_that_the_name_never_gave_is_not_its_affair() -> None:
    assert not fed("a", "b", "b", "b").has_left("tunnel", 9.0)


def test_answers_in_another_order_are_the_same() -> None:
    name = fed("a b c", "c a b", "b c a", "a b c")
    assert not any(name.has_left(each, 9.0) for each in "abc")
    assert not name.rotates(9.0)


def test_one_of_several_addresses_can_be_left() -> None:
    name = fed("a b", "a c", "a c")
    assert name.has_left("b", 6.0)
    assert not name.has_left("a", 6.0)


def test_one_way_back_is_a_failback_and_is_followed() -> None:
    name = fed("a", "b", "b", "a", "a")
    assert not name.rotates(12.0)
    assert name.has_left("b", 12.0)


def test_a_name_that_gives_one_address_at_random_is_soon_left_alone() -> None:
    """As the reader endpoints of some services do."""
    for size in (2, 3, 15):
        random, name, churn = Random(size), Name(), 0
        addresses = [f"10.0.0.{number}" for number in range(size)]
        for number in range(400):
            name.look(number * EVERY, [random.choice(addresses)])
            churn += sum(name.has_left(each, number * EVERY) for each in addresses)
        assert churn <= 12, size
        assert name.rotates(400 * EVERY)


def test_a_cache_that_turns_once_a_minute_is_left_alone_too() -> None:
    name, churn = Name(), 0
    for number in range(2000):
        now = number * EVERY
        name.look(now, ["b" if int(now / 60.0) % 2 else "a"])
        churn += name.has_left("a", now) + name.has_left("b", now)
    assert churn < 3 * 60 / EVERY


def test_a_name_that_stands_still_again_is_followed_again() -> None:
    name = fed("a", "b", "a", "b")
    assert RETURNS == 2
    assert name.rotates(9.0)
    for number in range(4, 4 + int(RECENT / EVERY) + 2):
        name.look(number * EVERY, ["b"])
    assert name.has_left("a", number * EVERY)


def test_what_is_remembered_has_an_end() -> None:
    name = fed(*(f"10.0.{number // 250}.{number % 250}" for number in range(3 * MOST)))
    assert len(name.seen_at) <= MOST
    assert len(name.absent) <= MOST
