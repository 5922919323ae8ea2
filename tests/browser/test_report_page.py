"""The report's page in headless Chromium: what it says on hover, and its tables, at the width of a desk and a phone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mzsane.report.answers import Answer
from mzsane.report.page.page import render_report
from tests.report.made_up import make_large, make_small

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = (1400, 900), (390, 844)
PATIENCE = 20_000  # milliseconds

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of an ablation of the demo's size, and of one with 21 compositions, as files."""
    folder = tmp_path_factory.mktemp("report")
    found = {}
    for name, make in (("small", make_small), ("large", make_large)):
        found[name] = folder / f"{name}.html"
        answers = [Answer("What should a zoo be made of?", "Doubling the models adds 1.1 points (95 %: +0.4 to +1.8).")]
        found[name].write_text(render_report(answers=answers, **make()), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """The opener of a page, without a network; at the end nothing may have been said on its console."""
    contexts, said = [], []

    def open_page(name: str = "small", size: tuple[int, int] = WIDE, **options: Any) -> Any:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(pages[name].as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def draw_everything(page: Any) -> None:
    """Bring every figure into sight, for it is drawn only then."""
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.and_(page.locator("[data-drawn]")).wait_for()


def read_column(table: Any, heading: str) -> list[str]:
    """The texts of a column that are shown."""
    heads = table.locator("thead th").all_inner_texts()
    place = heads.index(heading) + 1
    return table.locator(f"tbody td:nth-child({place})").all_inner_texts()


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_mark_tells_its_method_and_accuracy_on_hover(open_page: Callable[..., Any], size: tuple[int, int]) -> None:
    page = open_page(size=size)
    plot = page.locator("#novelty-0")
    plot.scroll_into_view_if_needed()
    page.locator("#novelty-0[data-drawn]").wait_for()
    plot.locator("path[aria-roledescription=point]").last.hover(force=True)
    hint = page.locator("#hint")
    hint.wait_for()
    lines = dict(line.split(": ", 1) for line in hint.inner_text().splitlines())
    assert lines["method"] in ("samples", "selected")  # generated networks are on top
    assert lines["composition"] in ("digits", "letters", "digits+letters-equal", "digits+letters-double")
    assert 0 < float(lines["accuracy"]) < 1
    page.mouse.move(1, 1)
    hint.wait_for(state="hidden")


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_tables_sort_and_filter(open_page: Callable[..., Any], size: tuple[int, int]) -> None:
    page = open_page(size=size)
    table = page.locator("#measurements")
    table.scroll_into_view_if_needed()
    assert "504 of 504 rows" in table.locator("output").inner_text()
    table.get_by_role("button", name="accuracy", exact=True).click()
    down = [float(text) for text in read_column(table, "accuracy")]
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 10
    table.get_by_role("button", name="accuracy", exact=True).click()
    up = [float(text) for text in read_column(table, "accuracy")]
    assert up == sorted(up)
    assert up[0] < down[-1]
    table.get_by_label("method").select_option("samples")
    assert set(read_column(table, "method")) == {"samples"}
    table.get_by_label("words to find").fill("double font-digits")
    assert set(read_column(table, "composition")) == {"digits+letters-double"}
    assert set(read_column(table, "target")) == {"font-digits"}
    artifacts = page.locator("#table-provenance")
    artifacts.get_by_label("stage").select_option("backbone")
    assert set(read_column(artifacts, "stage")) == {"backbone"}
    assert len(read_column(artifacts, "stage")) == 4


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_screen(
    open_page: Callable[..., Any], name: str, size: tuple[int, int]
) -> None:
    page = open_page(name, size)
    draw_everything(page)
    assert page.locator(".plot").count() > 10
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_first_screen_holds_accuracies_and_novelty(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.locator("#novelty-0[data-drawn]").wait_for()
    for selector in ("h1", ".answer", "#accuracy", "#novelty .panels"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= WIDE[1], selector


def test_duels_tell_their_interval_on_hover_and_by_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    grid = page.locator(".duel").first
    grid.locator("td").first.hover()
    hint = page.locator("#hint")
    assert "95 %" in hint.inner_text()
    page.mouse.move(1, 1)
    grid.locator("td").first.focus()
    first = hint.inner_text()
    page.keyboard.press("ArrowRight")
    assert hint.inner_text() != first
    assert "digits on letters" in hint.inner_text()


def test_accuracies_of_another_method_can_be_chosen(open_page: Callable[..., Any]) -> None:
    page = open_page()
    before = page.locator("#accuracy tbody td").all_inner_texts()
    page.locator("#views").select_option(label="selected, zero-shot, sees labels")
    after = page.locator("#accuracy tbody td").all_inner_texts()
    assert len(after) == len(before) == 12
    assert after != before


def test_a_row_of_the_accuracies_brings_its_composition_out(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.locator("#novelty-0[data-drawn]").wait_for()
    count = "path => [...path].filter(mark => Number(getComputedStyle(mark).opacity) > 0.5).length"
    marks = page.locator("#novelty-0 path[aria-roledescription=point]")
    everything = marks.count()
    assert marks.evaluate_all(count) == everything
    page.locator("#accuracy tbody tr").nth(1).hover()
    page.wait_for_function(
        f"most => ({count})(document.querySelectorAll('#novelty-0 path[aria-roledescription=point]')) === most",
        arg=everything // 4,
    )
    page.mouse.move(1, 1)
    page.wait_for_function(
        f"most => ({count})(document.querySelectorAll('#novelty-0 path[aria-roledescription=point]')) === most",
        arg=everything,
    )


def test_figures_follow_the_change_to_dark(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="light")
    label = page.locator("#novelty-0 svg text").first
    label.wait_for()
    light = label.evaluate("text => getComputedStyle(text).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "light => getComputedStyle(document.querySelector('#novelty-0 svg text')).fill !== light", arg=light
    )


def test_answer_accuracies_and_duels_can_be_read_without_scripts(open_page: Callable[..., Any]) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#accuracy tbody td").count() == 12
    assert page.locator(".duel td").first.is_visible()
    assert "95 %" in page.locator(".duel td").first.get_attribute("title")
    assert page.locator("#table-provenance tbody tr").count() == 34
    assert page.locator("noscript p", has_text="This figure needs scripts.").count() > 5
