"""The page, in a real browser: the plot is there, nothing overlaps, and what an app said is only
text.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from unbroken_drill.drill import html, options, plot
from unbroken_drill.drill.apps.actor import OwnApp
from unbroken_drill.drill.apps.plan import Variant
from unbroken_drill.drill.apps.replies import Reply
from unbroken_drill.drill.apps.results import AppResult
from unbroken_drill.drill.results import Mark
from unbroken_drill.drill.scenarios import SCENARIOS

PLANTED = (
    "<script>document.title = 'planted'</script><img src=x onerror=\"document.title='planted'\">"
)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
NAMES = ("unbroken", "a plain app", "<b>bold</b>")


def rows() -> list[AppResult]:
    """Every scenario with every app: well, failing, hanging, not measured; faults close together
    and long ones.
    """
    chance = random.Random(5)
    made = []
    for number, scenario in enumerate(SCENARIOS):
        for name in NAMES:
            row = AppResult("mariadb", scenario.name, name, name, is_ours=False)
            made.append(row)
            if (number, name) == (3, NAMES[2]):
                row.failure = f"it does not start: {PLANTED}"
                continue
            dues = [100 + at / 20 + chance.random() / 20 for at in range(160)]
            replies = [
                Reply(due, due, due + math.exp(chance.uniform(-6, 0)), 200, "", 0) for due in dues
            ]
            if name != NAMES[0]:
                replies[60] = replies[60]._replace(status=500, line=f"{PLANTED} {'long ' * 40}")
                replies[61] = replies[61]._replace(
                    status=0, line="no answer within 10 s", end=replies[61].due + 10
                )
            marks = [
                Mark(text, 102 + at, 102.1 + at)
                for at, text in enumerate(("kill", f"{PLANTED}", "kill"))
            ]
            if number % 2:
                marks = [
                    Mark("blackhole hold on=existing", 102.0, 105.0),
                    Mark("rst", 102.01, 102.01),
                    Mark("latency 0.1", 105.0, 105.3),
                ]
            row.take(replies, marks, 100.0)
            row.sessions = 5
            if name == NAMES[1]:
                row.unwell, row.needed_restart, row.restart_helped = 5, True, True
    return made


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    commands = tuple(
        f"{name}: python3 app.py" if "<" not in name else "python3 app.py" for name in NAMES
    )
    given: dict[str, Any] = {
        "url": ["http://127.0.0.1:{port}/"],
        "env": ["X"],
        "compare": True,
        "arguments": commands,
        "seed": 1,
    }
    order = options.order(given)
    assert order.app is not None
    facts = {"command": f"unbroken drill -- {PLANTED}", "versions": {"Python": "3.11"}}
    plan = replace(order.app, backend="mariadb")
    players = [OwnApp(Variant(name, ("python3",)), plan) for name in NAMES]
    file = tmp_path_factory.mktemp("page") / "drill.html"
    file.write_text(html.page(rows(), players, plan, order.judge, f"MariaDB {PLANTED}", facts))
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "no chromium here: scripts/setup-servers python3 browser"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=program, args=FLAGS) as chromium,
    ):
        yield chromium


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, page_file: Path) -> Iterator[Page]:
    width, scheme = request.param
    with browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    ) as context:
        opened = context.new_page()
        opened.asked = []  # type: ignore[attr-defined]
        opened.on("request", lambda request: opened.asked.append(request.url))  # type: ignore[attr-defined]
        opened.goto(page_file.as_uri())
        yield opened


#: Boxes of the words and pictures of one figure that must not lie on one another.
OVERLAPS = """figure => {
    const boxes = [...figure.querySelectorAll(
        'figcaption > *, .faults > span, .y > span, .x > span, svg.latency, svg.rate, .said > li')].map(element => {
            const box = element.getBoundingClientRect();
            return {what: element.tagName + ' ' + element.textContent.slice(0, 20), left: box.left, right: box.right,
                    top: box.top, bottom: box.bottom};
        }).filter(box => box.right > box.left && box.bottom > box.top);
    const found = [];
    for (const [at, a] of boxes.entries()) {
        for (const b of boxes.slice(at + 1)) {
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (wide > 1 && high > 1) { found.push(a.what + ' | ' + b.what); }
        }
    }
    return found;
}"""  # noqa: E501


def test_every_scenario_and_app_has_its_plot(page: Page) -> None:
    assert page.locator("section").count() == len(SCENARIOS)
    assert page.locator("figure").count() == len(SCENARIOS) * len(NAMES)
    assert page.locator("figure .plot").count() == len(SCENARIOS) * len(NAMES) - 1
    first = page.locator("section#idle figure").nth(1)
    assert first.locator("svg.latency path.ok").bounding_box()["width"] > 200  # type: ignore[index]
    assert first.locator("svg.latency path.error").count() == 1
    assert first.locator("svg.latency path.hung").count() == 1
    assert (first.locator("svg.latency path.ok").get_attribute("d") or "").count("h0") == 158
    assert first.locator("svg.rate path.bar").count() == 3
    assert first.locator("svg.latency rect.fault").count() == 3
    picture = first.locator("svg.latency")
    seen = picture.screenshot()
    picture.locator("path.ok").evaluate("element => element.style.visibility = 'hidden'")
    assert picture.screenshot() != seen  # the dots can be seen, and not only found
    colour = "element => getComputedStyle(element).stroke"
    assert first.locator("svg.latency path.ok").evaluate(colour) != first.locator(
        "svg.latency path.error"
    ).evaluate(colour)


def test_nothing_overlaps_and_nothing_is_wider_than_the_screen(page: Page) -> None:
    for figure in page.locator("figure").all():
        assert figure.evaluate(OVERLAPS) == []
    spoiled = page.locator("figure .x").first
    spoiled.evaluate("element => element.style.marginTop = '-60px'")
    assert page.locator("figure").first.evaluate(OVERLAPS) != []  # it would be seen
    spoiled.evaluate("element => element.style.marginTop = ''")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    blocks = (
        "[...document.querySelectorAll('body > *, main > *')].map(e =>"
        " e.getBoundingClientRect()).filter(b => b.height)"
    )
    assert page.evaluate(
        f"(() => {{ const b = {blocks}; return b.every(x => x.left >= 0 && x.right <="
        " window.innerWidth); })()"
    )


def test_what_an_app_said_is_text_and_nothing_is_fetched(page: Page) -> None:
    assert page.title() == "Drill: " + ", ".join(NAMES)
    assert page.locator("script, img, b b, link, iframe").count() == 0
    assert PLANTED in page.locator(".said").first.inner_text()
    assert [url for url in page.asked if not url.startswith("file:")] == []  # type: ignore[attr-defined]
    assert len(page.asked) == 1  # type: ignore[attr-defined]


def test_words_can_be_read_on_their_ground(page: Page) -> None:
    """Contrast by WCAG 2's formula, of the smallest words: 4.5 to 1."""
    pairs = page.evaluate(
        """() => ['.y span', '.x span', '.said', 'figcaption span', '.good', '.bad'].map(name => {
            const element = document.querySelector(name);
            let ground = element;
            while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') { ground = ground.parentElement; }
            return [name, getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
        })"""  # noqa: E501
    )
    assert {
        name: round(contrast(ink, paper), 1)
        for name, ink, paper in pairs
        if contrast(ink, paper) < 4.5
    } == {}


def contrast(ink: str, paper: str) -> float:
    bright, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_scale_is_the_same_for_all_and_keeps_its_ends() -> None:
    scale = plot.Scale(10.0, 10.0)
    assert (scale.x(-1), scale.x(5.0), scale.x(99.0)) == (0, 500, 1000)
    assert (scale.y(100.0), scale.y(0.1), scale.y(0.0)) == (0, 200, 400)
