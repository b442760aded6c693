"""Which host of a cluster gets the next attempt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unbroken.abc import Address, Fault, FaultKind
from unbroken.brain.hosts import LEAVE_AFTER, LOOK_AGAIN, REJECTED_FOR, After, Hosts
from unbroken.brain.tries import Try

A, B, C = ("a", 1), ("b", 2), ("c", None)
REFUSED = Fault(FaultKind.REFUSED, text="nobody listens")
ROLE = Fault(FaultKind.WRONG_SERVER, text="it is read-only")
REJECTED = Fault(FaultKind.REJECTED, text="wrong password")


class World:
    """Hosts, with a clock and attempts that are kept account of."""

    def __init__(self, *addresses: Address, prefers_standby: bool = False) -> None:
        self.hosts = Hosts(addresses, prefers_standby=prefers_standby)
        self.now = 100.0
        self.silent: list[Try] = []

    def begin(self) -> Try:
        attempt = Try(None, self.now, 1)
        attempt.address = self.hosts.next(self.now, self.silent)
        return attempt

    def fall_silent(self, attempt: Try) -> None:
        self.silent.append(attempt)

    def _over(self, attempt: Try) -> None:
        if attempt in self.silent:
            self.silent.remove(attempt)

    def fail(self, attempt: Try, fault: Fault = REFUSED) -> After:
        self._over(attempt)
        return self.hosts.failed(attempt, self.now, fault, self.silent)

    def succeed(self, attempt: Try) -> bool:
        self._over(attempt)
        return self.hosts.succeeded(attempt, self.now, self.silent)


def test_a_single_server_is_where_the_url_says() -> None:
    world = World(A)
    attempt = world.begin()
    assert attempt.address is None
    assert world.fail(attempt) is After.AWAY
    assert world.fail(attempt, REJECTED) is After.REJECTED
    assert world.succeed(attempt)
    assert world.hosts.told(0.0, []) == ""


def test_hosts_are_tried_in_the_order_of_the_url_and_at_once() -> None:
    world = World(A, B, C)
    for host, after in ((A, After.ELSEWHERE), (B, After.ELSEWHERE), (C, After.AWAY)):
        attempt = world.begin()
        assert attempt.address == host
        assert world.fail(attempt) is after
    assert world.begin().address == A  # after the pace


def test_the_place_of_the_last_connection_comes_first() -> None:
    world = World(A, B, C)
    world.fail(world.begin())
    assert world.succeed(attempt := world.begin())
    assert attempt.address == B
    world.now += 60
    assert world.begin().address == B
    world.fail(world.begin())
    assert world.begin().address == A


def test_beside_a_silent_attempt_another_host_is_asked() -> None:
    world = World(A, B)
    world.fall_silent(first := world.begin())
    second = world.begin()
    assert (first.address, second.address) == (A, B)
    assert world.succeed(second)
    assert world.hosts.place == B


def test_attempts_that_are_not_silent_share_the_first_host() -> None:
    world = World(A, B)
    assert {world.begin().address for _ in range(4)} == {A}


def test_a_host_that_fails_is_asked_at_its_pace_while_another_is_silent() -> None:
    world = World(A, B)
    assert world.fail(world.begin()) is After.ELSEWHERE
    world.fall_silent(world.begin())
    for _ in range(5):
        attempt = world.begin()
        assert attempt.address == A
        assert world.fail(attempt) is After.AWAY


def test_where_all_are_silent_the_one_with_the_fewest_attempts_is_next() -> None:
    world = World(A, B, C)
    for _ in range(6):
        world.fall_silent(world.begin())
    assert sorted(str(each.address) for each in world.silent) == sorted(map(str, [A, B, C] * 2))


def test_a_place_that_fails_is_left_for_the_host_that_lets_us_in() -> None:
    world = World(A, B)
    world.succeed(world.begin())
    world.now += 1
    world.fail(world.begin())
    world.now += 0.1
    moves = world.hosts.moves
    assert world.succeed(world.begin())
    assert (world.hosts.place, world.hosts.moves) == (B, moves + 1)


def test_a_place_that_is_slow_is_not_left_for_the_attempt_beside_it() -> None:
    world = World(A, B)
    world.succeed(world.begin())
    world.now += 10
    world.fall_silent(slow := world.begin())
    world.now += 0.2
    beside = world.begin()
    world.now += 0.1
    assert world.succeed(beside)
    assert world.hosts.place == A
    assert world.succeed(slow)
    assert world.hosts.place == A
    assert world.begin().address == A


def test_a_place_that_stays_silent_is_left_without_another_attempt() -> None:
    world = World(A, B)
    world.succeed(world.begin())
    world.now += 10
    world.fall_silent(world.begin())
    world.now += 0.3
    world.succeed(world.begin())
    world.hosts.leave(world.now, world.silent)
    assert world.hosts.place == A
    world.now += LEAVE_AFTER
    world.hosts.leave(world.now, world.silent)
    assert world.hosts.place == B
    late = world.silent[0]
    assert not world.succeed(late)  # it thaws: nobody wants it any more
    assert world.hosts.place == B


def test_a_connection_that_comes_after_others_elsewhere_is_unwanted() -> None:
    world = World(A, B)
    world.fall_silent(slow := world.begin())
    world.now += 0.2
    assert world.succeed(world.begin())
    assert not world.succeed(slow)
    assert world.hosts.place == B


def test_a_failure_that_is_older_than_the_last_connection_says_nothing() -> None:
    world = World(A, B)
    world.fall_silent(hung := world.begin())
    world.now += 0.2
    world.succeed(world.begin())
    world.now += 5
    assert world.fail(hung) is After.NOTHING


def test_a_host_that_turns_us_down_hides_no_other() -> None:
    world = World(A, B)
    assert world.fail(world.begin(), REJECTED) is After.ELSEWHERE
    assert world.fail(world.begin()) is After.AWAY
    for _ in range(3):  # only the other one is asked for a while
        attempt = world.begin()
        assert attempt.address == B
        assert world.fail(attempt) is After.AWAY
    world.now += REJECTED_FOR
    assert world.begin().address == A


def test_what_all_hosts_turn_down_is_turned_down() -> None:
    world = World(A, B)
    assert world.fail(world.begin(), REJECTED) is After.ELSEWHERE
    assert world.fail(world.begin(), REJECTED) is After.REJECTED


def test_an_outage_has_a_kind_that_waiting_can_cure() -> None:
    world = World(A, B)
    world.fail(world.begin())
    world.fail(world.begin(), REJECTED)
    why = world.hosts.why_away(REJECTED, [])
    assert why.kind is FaultKind.REFUSED
    assert why.text == "a:1: nobody listens; b:2: wrong password"


def test_each_host_is_named_with_its_own_reason() -> None:
    world = World(A, B, C)
    world.fail(world.begin(), ROLE)
    world.fall_silent(world.begin())
    told = world.hosts.told(world.now, world.silent)
    assert told == "a:1: it is read-only; b:2: no answer; c: not asked yet"
    assert "\n" not in told


def primary_and_standby() -> World:
    world = World(A, B, prefers_standby=True)
    assert world.hosts.passes_over(world.begin(), world.now, world.silent)
    attempt = world.begin()
    assert attempt.address == B
    world.hosts.saw(attempt.address, False)
    assert world.succeed(attempt)
    return world


def test_a_standby_is_preferred() -> None:
    world = primary_and_standby()
    assert world.begin().address == B


def test_without_a_standby_the_primary_serves_and_the_standby_is_looked_for_again() -> None:
    world = primary_and_standby()
    world.now += 60
    assert world.fail(world.begin()) is After.ELSEWHERE
    attempt = world.begin()
    assert attempt.address == A
    assert not world.hosts.passes_over(attempt, world.now, world.silent)
    assert world.succeed(attempt)
    assert world.hosts.place == A
    world.now += LOOK_AGAIN - 1
    assert world.begin().address == A
    world.now += 2
    attempt = world.begin()
    assert attempt.address == B
    moves = world.hosts.moves
    assert world.succeed(attempt)
    assert (world.hosts.place, world.hosts.moves) == (B, moves + 1)


def test_a_silent_standby_does_not_hide_the_primary() -> None:
    world = primary_and_standby()
    world.now += 60
    world.fall_silent(world.begin())
    attempt = world.begin()
    assert attempt.address == A
    assert not world.hosts.passes_over(attempt, world.now, world.silent)


def test_a_primary_that_became_a_standby_is_preferred_again() -> None:
    world = primary_and_standby()
    world.hosts.saw(A, False)
    world.fail(world.begin())
    attempt = world.begin()
    assert attempt.address == A
    assert world.succeed(attempt)


steps = st.lists(st.sampled_from(["begin", "silent", "fail", "reject", "succeed", "wait"]))


@given(steps, st.booleans(), st.data())
def test_whatever_happens_a_host_that_is_free_is_asked_before_one_that_is_silent(
    steps: list[str], prefers_standby: bool, data: st.DataObject
) -> None:
    world = World(A, B, C, prefers_standby=prefers_standby)
    running: list[Try] = []
    for step in steps:
        if step == "wait":
            world.now += data.draw(st.sampled_from([0.01, 0.5, 20.0]))
        elif step == "begin" or not running:
            attempt = world.begin()
            waiting = {each.address for each in world.silent}
            assert attempt.address in (A, B, C)
            assert attempt.address not in waiting or waiting == {A, B, C}
            running.append(attempt)
        else:
            attempt = data.draw(st.sampled_from(running))
            if step == "silent":
                if attempt not in world.silent:
                    world.fall_silent(attempt)
                continue
            running.remove(attempt)
            if step == "succeed":
                wanted = world.succeed(attempt)
                assert wanted or attempt.address != world.hosts.place
            else:
                world.fail(attempt, REJECTED if step == "reject" else REFUSED)
        world.hosts.leave(world.now, world.silent)
    # after a full round of failures everybody has been asked
    asked = set()
    world.silent.clear()
    world.now += 60
    world.hosts.round.clear()
    while (after := world.fail(attempt := world.begin())) is After.ELSEWHERE:
        asked.add(attempt.address)
    assert after is After.AWAY
    assert asked | {attempt.address} == {A, B, C}
