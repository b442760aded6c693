"""What the tests run with lies within what the extras allow, and each driver's file says the same
as its extra.
"""

from __future__ import annotations

import runpy
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from unbroken.drivers import Known, known
from unbroken.drivers._seams import installed_version, is_within

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
LIBRARIES = [each for each in known() if each.distribution is not None]


def allowed(each: Known) -> str:
    """The versions in its extra: ``>=1.1,<1.3``."""
    requirement: str = EXTRAS[each.name][0]
    return requirement.removeprefix(str(each.distribution))


@pytest.mark.parametrize("each", LIBRARIES, ids=lambda each: each.name)
def test_the_extra_has_a_lower_and_an_upper_bound(each: Known) -> None:
    low, high = allowed(each).split(",")
    assert low.startswith(">=")
    assert high.startswith("<")


@pytest.mark.parametrize("each", LIBRARIES, ids=lambda each: each.name)
def test_the_installed_version_is_one_that_the_extra_allows(each: Known) -> None:
    if not each.installed:
        pytest.skip("not installed")
    version = installed_version(each.module, each.distribution)
    assert version is not None
    assert is_within(version, allowed(each)), (
        f"{version} is new: run scripts/test-driver-versions, then raise the bound"
    )


@pytest.mark.parametrize("each", LIBRARIES, ids=lambda each: each.name)
def test_a_drivers_file_names_the_versions_of_its_extra(each: Known) -> None:
    assert allowed(each) == import_module(each.file).TESTED


def test_the_script_that_runs_the_tests_with_both_ends_knows_every_driver() -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "test-driver-versions"))
    assert set(script["requirements"]()) == {each.name for each in LIBRARIES}
