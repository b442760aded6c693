"""What a pool wants of a server, in its own words and in libpq's."""

from __future__ import annotations

import pytest

from unbroken.errors import ConfigurationError
from unbroken.roles import Wanted, wanted
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
