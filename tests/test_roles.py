"""What a pool wants of a server, in its own words and in libpq's."""

from __future__ import annotations

import pytest

from unbroken.errors import ConfigurationError
from unbroken.roles import Role, Wanted, objection, wanted
from unbroken.settings import Settings


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("any", Wanted.ANY),
        ("primary", Wanted.PRIMARY),
        ("read-write", Wanted.PRIMARY),
        ("standby", Wanted.STANDBY),
        ("read-only", Wanted.STANDBY),
        ("prefer-standby", Wanted.PREFER_STANDBY),
        ("prefer_standby", Wanted.PREFER_STANDBY),
        ("Primary", Wanted.PRIMARY),
    ],
)
def test_libpqs_words_are_understood(word: str, means: Wanted) -> None:
    assert wanted(word) is means
    assert Settings.of(target=word).target == word


@pytest.mark.parametrize(
    ("word", "remedy"),
    [("primry", "'primary'"), ("w", "known: any"), ("", "known"), (None, "known"), (1, "any")],
)
def test_a_wrong_word_is_refused_with_the_nearest(word: object, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        Settings.of(target=word)


@pytest.mark.parametrize(
    ("role", "want", "took_writes", "patient", "objects"),
    [
        (Role.PRIMARY, Wanted.ANY, False, True, False),
        (Role.STANDBY, Wanted.ANY, False, True, False),
        (Role.STANDBY, Wanted.ANY, True, True, True),
        (Role.STANDBY, Wanted.ANY, True, False, False),
        (Role.STANDBY, Wanted.PRIMARY, False, False, True),
        (Role.PRIMARY, Wanted.STANDBY, True, False, True),
        (Role.STANDBY, Wanted.STANDBY, True, True, False),
        (Role.PRIMARY, Wanted.PREFER_STANDBY, True, True, False),
        (Role.UNREADY, Wanted.ANY, False, False, True),
        (None, Wanted.PRIMARY, True, True, False),
    ],
)
def test_a_server_may_serve_or_not(
    role: Role | None, want: Wanted, took_writes: bool, patient: bool, objects: bool
) -> None:
    said = objection(role, want, took_writes=took_writes, patient=patient)
    assert (said is not None) is objects
