"""The page in a browser: it works from disk, on a desktop and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tinyfusion.report.page import page
from tinyfusion.report.reading import find_runs

MakeRun = Callable[..., Path]

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is installed; looked for {', '.join(NAMES)}")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def opened(
    request: pytest.FixtureRequest, browser: Any, make_run: MakeRun, tmp_path: Path
) -> Iterator[Any]:
    """The page of eight runs, at one size; what it says and fetches is checked at the end."""
    for place, fid in enumerate([10.5, 9.0, 2.5, 100.0, 4.0, 3.0, 7.0, 2.0]):
        make_run(
            f"run{place}", fid=fid, pruner=("learned", "random")[place % 2], keep=1 + place // 4,
            seed=place, steps=50, pictures=True, speed_up=3.0 - place / 4,
        )  # fmt: skip
    file = tmp_path / "page.html"
    file.write_text(page(find_runs([tmp_path / "runs"]), "Some runs", tmp_path), encoding="utf-8")
    width, height = SIZES[request.param]
    tab = browser.new_page(viewport={"width": width, "height": height})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    fetched: list[str] = []
    tab.on("request", lambda wanted: fetched.append(wanted.url))
    tab.goto(file.as_uri())
    tab.wait_for_selector("#kept svg")
    tab.wait_for_selector(".tabulator-row")
    yield tab
    tab.screenshot(path=str(tmp_path / f"{request.param}.png"), full_page=True)
    tab.close()
    assert not said
    assert [url for url in fetched if not url.startswith("data:")] == [file.as_uri()]


def column(tab: Any, title: str) -> list[str]:
    """The cells of a column in the order that is shown."""
    field = head(tab, title).get_attribute("tabulator-field")
    return tab.locator(f".tabulator-row .tabulator-cell[tabulator-field={field}]").all_inner_texts()


def head(tab: Any, title: str) -> Any:
    return tab.locator(".tabulator-col", has_text=title).first


def test_it_does_not_scroll_sideways(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_all_charts_are_drawn(opened: Any) -> None:
    charts = opened.locator(".chart")
    assert charts.count() == 3  # speed, loss, kept
    assert opened.locator(".chart svg").count() == 3


def test_numbers_are_sorted_as_numbers_best_first(opened: Any) -> None:
    title = head(opened, "FID ↓").locator(".tabulator-col-title")
    title.click()
    assert list(map(float, column(opened, "FID ↓"))) == [
        2.0, 2.5, 3.0, 4.0, 7.0, 9.0, 10.5, 100.0
    ]  # fmt: skip
    title.click()
    assert float(column(opened, "FID ↓")[0]) == 100.0
    head(opened, "IS ↑").locator(".tabulator-col-title").click()
    assert float(column(opened, "IS ↑")[0]) == 7.0


def test_columns_are_filtered_by_comparison_and_by_text(opened: Any) -> None:
    head(opened, "FID ↓").locator("input").press_sequentially("<3.5")
    opened.wait_for_function("document.querySelectorAll('.tabulator-row').length === 3")
    assert set(map(float, column(opened, "FID ↓"))) == {2.0, 2.5, 3.0}
    head(opened, "method").locator("input").press_sequentially("rand")
    opened.wait_for_function("document.querySelectorAll('.tabulator-row').length === 2")
    assert opened.locator("#count").inner_text() == "2 of 8 shown"


def test_the_search_finds_runs(opened: Any) -> None:
    opened.fill("#search", "learned")
    opened.wait_for_function("document.querySelectorAll('.tabulator-row').length === 4")
    assert set(column(opened, "method")) == {"learned"}


def test_ticked_runs_are_compared_by_what_differs(opened: Any) -> None:
    boxes = opened.locator(".tabulator-row input[type=checkbox]")
    boxes.nth(0).check()
    assert opened.locator("#compare table").count() == 0
    boxes.nth(1).check()
    keys = opened.locator("#compare tbody th").all_inner_texts()
    assert "seed" in keys and "training.recovery.steps" not in keys and "keep" not in keys
    head_cells = opened.locator("#compare thead th").all_inner_texts()
    assert len(head_cells) == 3 and len(set(head_cells)) == 3
    boxes.nth(0).uncheck()
    assert opened.locator("#compare table").count() == 0


def test_a_command_is_copied_or_selected(opened: Any) -> None:
    first = opened.locator("#commands ~ details").first
    first.locator("summary").click()
    button = first.locator("button.copy")
    button.click()
    opened.wait_for_function("/Copied|Selected/.test(document.querySelector('.copy').textContent)")


def test_on_a_phone_figures_follow_the_first_column(opened: Any) -> None:
    heads = opened.locator(".tabulator-col-title").all_inner_texts()
    titles = [title for title in heads if title.strip()]
    narrow = opened.evaluate("innerWidth") < 700
    assert titles[0] == "method" and (titles[1] == "FID ↓") == narrow


def test_the_pointer_tells_the_run_of_a_mark(opened: Any) -> None:
    opened.locator("#speed .mark-symbol path").first.hover()
    opened.wait_for_selector("#vg-tooltip-element.visible")
    told = opened.locator("#vg-tooltip-element").inner_text()
    assert "run" in told and "FID" in told and "keep=" in told
