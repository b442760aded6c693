"""docs/drill.md says what there is: options, scenarios, steps, and a drill.toml that can be
read.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unbroken_drill.drill import given_alone, options, project
from unbroken_drill.drill.command import drill
from unbroken_drill.drill.scenarios import SCENARIOS, SMALL
from unbroken_drill.drill.steps import VERBS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "drill.md").read_text()


@pytest.mark.parametrize("each", [*SCENARIOS, *(each for each in SMALL if each not in SCENARIOS)])
def test_every_scenario_stands_there_with_its_steps(each: object) -> None:
    steps = ", ".join(f"`{step.text}`" for step in each.steps)  # type: ignore[attr-defined]
    assert f"| `{each.name}` | {each.title} | {steps} |" in PAGE  # type: ignore[attr-defined]


def test_every_step_and_every_option_is_named() -> None:
    assert [verb for verb in VERBS if not re.search(rf"[`, ]{verb}\b", PAGE)] == []
    mine = {option for parameter in drill.params for option in parameter.opts}
    assert [
        option
        for option in mine
        if option.startswith("--") and not re.search(rf"[` ]{option}\b", PAGE)
    ] == []


def test_the_file_on_the_page_can_be_read(tmp_path: Path) -> None:
    text = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    file = tmp_path / project.CONFIG
    file.write_text(text[1])
    assert [each.name for each in project.read(file)["own"]] == [
        "failing network",
        "restart",
        "lost answer",
    ]
    file.write_text(
        text[1]
        .replace("# [compare]", "[compare]")
        .replace("# plain", "plain")
        .replace("# pooled", "pooled")
    )
    assert list(project.read(file)["compare"]) == ["plain", "pooled"]


@pytest.mark.parametrize("folder", ["examples/drill", "examples/drill/node"])
def test_the_examples_files_make_plans(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_alone, "runnable", lambda each, _: each)  # node need not be here
    order = options.order(project.read(ROOT / folder / project.CONFIG))
    assert len(order.drill.contenders) >= 2
    assert order.left_out == []
