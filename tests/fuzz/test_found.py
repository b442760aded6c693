"""What the fuzzer's targets begin with, and what it ever found, is answered or refused in plain
words.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .targets import SEEDS, TARGETS

FOUND = sorted((Path(__file__).parent / "found").glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_examples_are_answered_or_refused_in_plain_words(name: str) -> None:
    for example in SEEDS[name]:
        TARGETS[name](example)


@pytest.mark.parametrize("file", FOUND, ids=lambda file: f"{file.parent.name}-{file.name[-8:]}")
def test_what_was_found_once_is_found_no_more(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_answered_or_refused_in_plain_words(name: str, data: bytes) -> None:
    TARGETS[name](data)
