"""The language of scenarios: what it takes, and what it refuses in one line."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigurationError
from unbroken_drill import FaultProxy
from unbroken_drill.drill.scenarios import IDLE_OPTION, SCENARIOS, SMALL, choose, scenario
from unbroken_drill.drill.stage import _BY_ACTOR, _DO, _POSITIONAL
from unbroken_drill.drill.steps import VERBS, read, read_all


def test_values_are_read_by_place_and_by_name() -> None:
    step = read("latency 0.2 jitter=0.05")
    assert step.verb.name == "latency"
    assert step.values == {"seconds": 0.2, "jitter": 0.05, "on": "all"}
    assert read("blackhole").values == {"mode": "hold", "on": "all"}
    assert read("rst").values == {"on": "existing"}
    assert read("rst on=3").values == {"on": 3}
    assert read('cut_at "INSERT INTO items"').values == {"statement": "INSERT INTO items"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("latncy 1", "unknown step 'latncy' (did you mean 'latency'?)"),
        ("latency", "seconds is missing"),
        ("latency fast", "seconds must be a number of at least 0"),
        ("latency -1", "must be a number of at least 0"),
        ("latency nan", "must be a number of at least 0"),
        ("latency 1 2 all 4", "unexpected '4'; latency takes seconds [jitter] [on]"),
        ("latency 1 seconds=2", "unexpected 'seconds=2'"),
        ("blackhole keep", "mode must be hold or drop"),
        ("slice 0", "bytes must be a whole number of at least 1"),
        ("idle_limit 1 reset=true", "reset must be yes or no"),
        ("cut_at 'COMMIT", "No closing quotation"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (["stop", "run 1"], "no 'start' follows 'stop'"),
        (["freeze", "start", "run 1"], "no earlier step that it could end"),
        (["run 1", "stop", "crash", "start", "run 1"], "the server is already down"),
        (["quiet 1"], "has no traffic"),
        (["run 1", "kill"], "end with 'run SECONDS'"),
    ],
)
def test_a_story_that_would_say_nothing_is_refused(steps: list[str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        read_all(steps)


@given(st.text())
def test_any_text_is_a_step_or_a_clear_error(text: str) -> None:
    try:
        step = read(text)
    except ConfigurationError:
        return
    assert step.text == text


def test_every_verb_of_the_proxy_is_a_method_that_takes_its_values() -> None:
    for verb in VERBS.values():
        if verb.actor == "proxy":
            method = getattr(FaultProxy, verb.name)
            by_name = [value.name for value in verb.values if value.name not in _POSITIONAL]
            positional = [value.name for value in verb.values if value.name in _POSITIONAL]
            inspect.signature(method).bind(None, *positional, **dict.fromkeys(by_name))
        else:
            assert verb.name in _DO or verb.actor in _BY_ACTOR


def test_usual_scenarios_have_names_that_fit_and_say_what_they_cannot_do() -> None:
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)
    by_name = {each.name: each for each in SCENARIOS}
    assert by_name["idle"].obstacle("mongodb", private=True) == "mongodb has no idle limit"
    assert by_name["kill"].obstacle("mongodb", private=True) == "mongodb cannot kill sessions"
    assert (
        by_name["restart"].obstacle("mysql", private=False) == "it needs a private server, not --db"
    )
    assert by_name["reset"].obstacle("mysql", private=False) is None
    for backend in IDLE_OPTION:
        assert all(each.obstacle(backend, private=True) is None for each in SCENARIOS)
        assert by_name["idle"].options(backend)


def test_a_project_may_redefine_a_usual_scenario_and_add_its_own() -> None:
    own = [
        scenario("restart", "longer", ["run 1", "stop", "run 9", "start", "run 1"]),
        scenario("mine", "", ["run 1"]),
    ]
    assert [each.title for each in choose(["mine", "restart"], own)] == ["longer", ""]
    assert len(choose(None, own)) == len(SCENARIOS) + 1
    with pytest.raises(ConfigurationError, match="did you mean 'restart'"):
        choose(["restrat"], own)


def test_what_happens_inside_of_an_app_only_a_small_one_can_play() -> None:
    for each in SMALL:
        own = any(step.verb.actor == "contender" for step in each.steps)
        assert (each.obstacle("postgresql") is not None) == own
        assert each.obstacle("postgresql", small=True) is None
    story = scenario("mine", "", ["fork 3", "run 1"])
    assert story.obstacle("mysql") == "only the drill's own small apps support fork"
    assert story.processes == 4
    assert [each.name for each in SMALL if each.is_outage] == ["restart", "crash", "storm"]
