"""Settings say at once, in one line, what is wrong with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unbroken
from unbroken.errors import ConfigurationError
from unbroken.settings import Settings, shared

NAMES = [f.name for f in dataclasses.fields(Settings)]
COUNTS = ["max_size", "min_size", "max_replays"]
OTHERS = {"follow_dns", "heal", "reclaim", "reset", "name", "units", "share", "retry_budget"}
SECONDS = sorted(set(NAMES) - {*COUNTS, *OTHERS})

#: What people may write by mistake.
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.complex_numbers(), st.decimals(), st.sampled_from([10**400, -(10**400)]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.none(), max_size=1),
)  # fmt: skip


def refusal(make: Callable[[], Any]) -> str | None:
    """What *make* is refused with, in one line; None when it is not."""
    try:
        make()
    except ConfigurationError as error:
        return one_line(error)
    return None


def one_line(error: ConfigurationError) -> str:
    text = str(error)
    assert "\n" not in text
    assert text
    return text


def test_the_defaults_are_fit_for_use() -> None:
    assert Settings.of() == Settings()


def test_they_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().max_size = 5  # type: ignore[misc]


@given(st.sampled_from(NAMES), ODD)
def test_whatever_is_given_is_taken_or_refused_in_one_clear_line(name: str, value: Any) -> None:
    said = refusal(lambda: Settings.of(**{name: value}))
    assert name in (said or name)
    if said is None:
        settings = Settings.of(**{name: value})
        assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value)
        assert settings.min_size <= settings.max_size


@given(st.sampled_from(NAMES), st.text())
def test_whatever_text_a_url_holds_is_taken_or_refused_in_one_clear_line(
    name: str, text: str
) -> None:
    said = refusal(lambda: Settings.of(**Settings.from_text({name: text})))
    assert name in (said or name)


@given(st.text(max_size=60))
def test_an_unknown_name_is_told(name: str) -> None:
    if name not in NAMES:
        with pytest.raises(ConfigurationError) as caught:
            Settings.of(**{name: 1})
        assert repr(name)[:60] in one_line(caught.value)


def test_a_slip_of_the_pen_gets_a_hint() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'max_size'"):
        Settings.of(max_sise=5)


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, "5", True, -math.inf])
def test_seconds_are_numbers_that_are_not_negative(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Settings.of(**{name: value})


@pytest.mark.parametrize("name", ["connect_timeout", "ping_timeout"])
def test_what_must_end_is_not_infinite(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}=inf would wait forever"):
        Settings.of(**{name: math.inf})


@pytest.mark.parametrize(
    "name", ["acquire_timeout", "max_age", "max_idle", "leak_after", "keepalive", "outage_wait"]
)
def test_never_is_infinity_where_that_makes_sense(name: str) -> None:
    assert getattr(Settings.of(**{name: math.inf}), name) == math.inf


def test_callers_may_choose_not_to_wait_for_an_outage_at_all() -> None:
    assert Settings.of(outage_wait=0).outage_wait == 0


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 1.5, "3", None, True, math.inf])
def test_counts_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}=.* whole number"):
        Settings.of(**{name: value})


def test_min_size_does_not_exceed_max_size() -> None:
    with pytest.raises(ConfigurationError, match="min_size=5 exceeds max_size=2"):
        Settings.of(min_size=5, max_size=2)


def test_a_change_is_validated_too() -> None:
    assert Settings().changed(max_size=3).max_size == 3
    with pytest.raises(ConfigurationError):
        Settings(min_size=2).changed(max_size=1)


@pytest.mark.parametrize(
    ("share", "parts"),
    [
        ("auto", (None, None)), (24, (None, 24)), ("24", (None, 24)), ("shop:auto", ("shop", None)),
        ("shop:24", ("shop", 24)), ("shop.eu-1:1", ("shop.eu-1", 1)),
    ],
)  # fmt: skip
def test_what_is_shared_is_a_number_or_auto_with_a_name_or_without(share: Any, parts: Any) -> None:
    assert shared(Settings.of(share=share).share or "") == parts


@pytest.mark.parametrize(
    "share",
    ["", "shop", "on", 0, -1, 1.5, True, False, "0", ":24", "a b:24", "shop:", "a:b:4", 10**7],
)
def test_what_is_shared_otherwise_is_refused(share: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"share=.* must be 'auto'"):
        Settings.of(share=share)


@pytest.mark.parametrize("off", ["off", math.inf])
def test_the_retry_budget_is_a_part_or_off(off: Any) -> None:
    assert Settings().retry_budget == 0.2
    assert Settings.of(retry_budget=off).retry_budget == math.inf
    assert Settings().changed(retry_budget=off).retry_budget == math.inf
    assert Settings.from_text({"retry_budget": "OFF"}) == {"retry_budget": math.inf}
    assert Settings.from_text({"retry_budget": "0.1"}) == {"retry_budget": 0.1}
    assert Settings.of(retry_budget=0).retry_budget == 0


@pytest.mark.parametrize("value", [-0.1, math.nan, "some", None, True, 10**400])
def test_another_retry_budget_is_refused(value: Any) -> None:
    said = refusal(lambda: Settings.of(retry_budget=value))
    assert "must be a number of at least 0, such as 0.2 for a fifth, or 'off'" in str(said)


def test_a_url_says_it_in_the_same_words() -> None:
    assert Settings.from_text({"share": "auto"}) == {"share": "auto"}
    assert Settings.from_text({"share": "24"}) == {"share": 24}
    assert Settings.from_text({"share": "none"}) == {"share": None}


@pytest.mark.parametrize("reset", ["commit", "", 0, True, []])
def test_reset_is_rollback_nothing_or_a_callable(reset: Any) -> None:
    with pytest.raises(ConfigurationError, match="reset="):
        Settings.of(reset=reset)
    assert Settings.of(reset=None).reset is None
    assert callable(Settings.of(reset=print).reset)


def test_a_urls_query_is_parted_into_ours_and_the_drivers() -> None:
    assert Settings.split({"max_size": "5", "charset": "utf8mb4"}) == (
        {"max_size": "5"},
        {"charset": "utf8mb4"},
    )


def test_text_becomes_what_it_says() -> None:
    given = {
        "max_size": "5",
        "max_age": "none",
        "reclaim": "on",
        "heal": "off",
        "acquire_timeout": "2.5",
        "leak_after": "inf",
        "name": "shop",
    }
    meant = {
        "max_size": 5,
        "max_age": None,
        "reclaim": True,
        "heal": False,
        "acquire_timeout": 2.5,
        "leak_after": math.inf,
        "name": "shop",
    }
    assert Settings.from_text(given) == meant
    assert Settings.from_text({"reset": "None"}) == {"reset": None}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_size", "five"),
        ("max_size", "2.5"),
        ("max_age", "1h"),
        ("reclaim", "maybe"),
        ("heal", "2"),
    ],
)
def test_text_that_says_nothing_is_refused_with_its_name_and_value(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='{text}'"):
        Settings.from_text({name: text})


@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "mysql+pymysql", "postgresql+pg8000"])
def test_libpq_s_name_for_the_target_is_understood_with_every_driver(scheme: str) -> None:
    with unbroken.Pool(f"{scheme}://db1,db2/shop?target_session_attrs=read-write") as pool:
        assert pool.settings.target == "read-write"
        assert not pool._driver.target.options
    with unbroken.Pool(f"{scheme}://db1,db2/shop", target_session_attrs="standby") as pool:
        assert pool.settings.target == "standby"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("target=primry", "did you mean 'primary'"),
        ("target_session_attrs=readwrite", "did you mean 'read-write'"),
        ("target=primary&target_session_attrs=any", "are the same setting"),
    ],
)
def test_a_target_that_says_nothing_is_told_in_one_line(query: str, says: str) -> None:
    with pytest.raises(unbroken.ConfigurationError) as caught:
        unbroken.Pool(f"mysql+pymysql://app:planted-secret@db1,db2/shop?{query}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "planted-secret" not in str(caught.value)
