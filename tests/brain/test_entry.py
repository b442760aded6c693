"""One connection's life."""

from __future__ import annotations

import inspect

from unbroken.abc import Cause
from unbroken.brain.entry import CONDEMNED, Entry, Place


class Conn:
    pass


def entry() -> Entry:
    return Entry(Conn(), 100.0, 3, 200.0)


def test_it_begins_unused_and_well() -> None:
    made = entry()
    assert (made.born, made.last_used, made.generation, made.uses, made.cause) == (
        100.0,
        100.0,
        3,
        0,
        None,
    )
    assert made.key == id(made.conn)
    assert made.place is None


def test_what_cannot_be_seen_counts_as_alive_and_uncounted() -> None:
    assert entry().poll(0) == []
    assert entry().count() is None


def test_the_first_cause_stands() -> None:
    made = entry()
    made.condemn(Cause.KILLED, "by an administrator")
    made.condemn(Cause.RESET_FAILED, "later")
    assert (made.cause, made.words, made.generation) == (
        Cause.KILLED,
        "by an administrator",
        CONDEMNED,
    )


def test_no_pool_has_the_generation_of_the_condemned() -> None:
    assert CONDEMNED < 0


def test_a_place_names_file_line_and_function() -> None:
    made = entry()
    frame = inspect.currentframe()
    assert frame is not None
    made.code, made.lasti = frame.f_code, frame.f_lasti
    line = frame.f_lineno
    assert made.place is not None
    assert made.place.file == __file__
    assert made.place.function == "test_a_place_names_file_line_and_function"
    assert abs(made.place.line - line) <= 1
    assert str(made.place) == f"{__file__}:{made.place.line} in {made.place.function}"


def test_a_place_without_an_instruction_is_the_functions_first_line() -> None:
    def somewhere() -> None:
        pass

    assert Place.of(somewhere.__code__, -1).line == somewhere.__code__.co_firstlineno


def test_its_name_for_people_says_what_it_went_through() -> None:
    made = entry()
    made.session, made.uses = "42", 7
    assert repr(made) == "<connection 42 used 7 times>"
    made.condemn(Cause.KILLED)
    assert "killed" in repr(made)
