"""Report pages in a real browser: charts, sorting, widths, dark, and hostile names.

Skipped where there is no Chromium with its driver: on Debian, `apt install chromium-driver`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.pages import HOSTILE, ablation, bare_run, page_of, run_report
from tser_cli.engine.page.page import render

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE = 60.0  # seconds, on a machine with other work
SIZES = ((390, 844), (1400, 900))
ARGUMENTS = (
    *("--headless=new", "--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking"),
)

pytestmark = [
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="there is no chromium with chromedriver"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that keeps its console and its requests."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with runs, an ablation, hostile names, and a run that has nothing to show."""
    page = page_of(run_report(), run_report("run-b"), bare_run(), ablations=(ablation(),))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render(page).encode())
    return path


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Callable[..., Any]:
    """`opened(390, 844)`: the browser with the page drawn in a window of that size."""

    def open_page(width: int = 1400, height: int = 900, scheme: str = "light") -> Any:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": wanted})
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(page_file.as_uri())
        end = time.monotonic() + PATIENCE
        while not browser.execute_script("return document.documentElement.dataset.ready"):
            assert time.monotonic() < end, browser.get_log("browser")
            time.sleep(0.05)
        return browser

    return open_page


def count(browser: Any, selector: str) -> int:
    """How many elements there are."""
    script = "return document.querySelectorAll(arguments[0]).length"
    return int(browser.execute_script(script, selector))


def column(browser: Any, table: str, cell: int) -> list[str]:
    """The texts of a column of the first table in there, from above."""
    script = (
        "return [...document.querySelector(arguments[0]).tBodies[0].rows]"
        ".map(row => row.cells[arguments[1]].textContent)"
    )
    found: list[str] = browser.execute_script(script, f"{table} table.sortable", cell)
    return found


def click(browser: Any, table: str, cell: int) -> Any:
    """Click the header of a column; return its button."""
    path = f"{table} table.sortable thead th:nth-child({cell + 1}) button"
    button = browser.find_element("css selector", path)
    browser.execute_script("arguments[0].click()", button)
    return button


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everything_is_drawn_without_an_error_or_a_request(
    opened: Callable[..., Any], width: int, height: int, scheme: str
) -> None:
    browser = opened(width, height, scheme)
    places = count(browser, "[data-chart]")
    assert places >= 25 and count(browser, "[data-chart][data-drawn]") == places
    assert count(browser, "[data-chart] svg") == places
    assert count(browser, ".failed") == 0
    assert browser.get_log("browser") == []  # neither an error nor a warning
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    sent = [params["request"]["url"] for params in requests]
    assert {url.split(":")[0] for url in sent} <= {"file", "data"}
    assert len([url for url in sent if url.startswith("file:")]) == 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_is_wider_than_the_window(
    opened: Callable[..., Any], width: int, height: int
) -> None:
    browser = opened(width, height)
    root = "return document.documentElement"  # a scroll bar takes its part of the window
    inside = browser.execute_script(f"{root}.clientWidth")
    assert browser.execute_script(f"{root}.scrollWidth") == inside <= width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0


def test_each_chart_holds_marks(opened: Callable[..., Any]) -> None:
    browser = opened()
    empty = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].filter(one =>"
        " !one.querySelector('.mark-symbol path, .mark-rect path, .mark-line path'))"
        ".map(one => one.dataset.chart)"
    )
    assert empty == []


def test_hostile_names_are_text_and_run_nothing(opened: Callable[..., Any]) -> None:
    browser = opened()
    assert count(browser, "[onerror], [onload]") == 0
    assert count(browser, "script") == 3
    assert HOSTILE in browser.execute_script("return document.querySelector('h2').textContent")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('#r1 svg text')].map(one => one.textContent)"
    )
    assert any(text.startswith("</script>") for text in drawn)


def test_the_policy_stops_what_would_be_injected(opened: Callable[..., Any]) -> None:
    browser = opened()
    browser.execute_script(
        "const one = document.createElement('script'); one.textContent = 'window.injected = 1';"
        "document.body.append(one);"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png';"
        "document.body.append(image);"
    )
    assert browser.execute_script("return window.injected === undefined")
    told = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert "Content Security Policy" in told


def test_a_table_is_sorted_by_mouse_and_by_keyboard(opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser, table = opened(), "#r1-accuracy"
    before = column(browser, table, 1)
    button = click(browser, table, 1)
    assert column(browser, table, 1) == sorted(before)
    button.send_keys(Keys.ENTER)
    assert column(browser, table, 1) == sorted(before, reverse=True) != before
    header = browser.find_element("css selector", f"{table} thead th:nth-child(2)")
    assert header.get_attribute("aria-sort") == "descending"


def test_numbers_are_sorted_as_numbers(opened: Callable[..., Any]) -> None:
    browser = opened()
    click(browser, "#r1-energy", 2)
    assert column(browser, "#r1-energy", 2) == ["40 pJ", "920 pJ"]


def test_dark_and_light_differ_and_charts_follow(opened: Callable[..., Any]) -> None:
    looks = []
    for scheme in ("light", "dark"):
        browser = opened(scheme=scheme)
        script = (
            "const mark = document.querySelector('#r1-accuracy .mark-symbol path');"
            "const page = getComputedStyle(document.body).backgroundColor;"
            "return [page, getComputedStyle(mark).fill]"
        )
        looks.append(browser.execute_script(script))
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]


def test_each_thing_to_click_is_reached_by_the_keyboard(opened: Callable[..., Any]) -> None:
    browser = opened()
    unreachable = browser.execute_script(
        "return [...document.querySelectorAll('a, button, summary, .scroll')]"
        ".filter(one => one.tabIndex < 0).length"
    )
    assert unreachable == 0
    assert count(browser, "img:not([alt])") == 0
    assert count(browser, "[data-chart]:not([aria-label])") == 0  # what a screen reader says
