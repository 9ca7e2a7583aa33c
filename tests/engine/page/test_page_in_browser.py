"""Report pages in a real browser: figures, widths, dark, paper, and hostile names.

Skipped where there is no Chromium with its driver: on Debian, `apt install chromium-driver`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.engine.page.pages import HOSTILE, ablation, bare_run, page_of, run_report
from tser_cli.engine.page.page import render
from tser_cli.report.style import overlap

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
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

    def open_page(
        width: int = 1400, height: int = 900, scheme: str = "light", media: str = ""
    ) -> Any:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": wanted})
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(page_file.as_uri())
        return browser

    return open_page


def count(browser: Any, selector: str) -> int:
    """How many elements there are."""
    script = "return document.querySelectorAll(arguments[0]).length"
    return int(browser.execute_script(script, selector))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everything_is_drawn_without_an_error_or_a_request(
    opened: Callable[..., Any], width: int, height: int, scheme: str
) -> None:
    browser = opened(width, height, scheme)
    assert count(browser, ".chart svg") == count(browser, ".chart") >= 20
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
        "return [...document.querySelectorAll('.card, .tiles')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth).length"
    )
    assert wide == 0


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_figures_are_readable_and_their_labels_apart(
    opened: Callable[..., Any], width: int, height: int
) -> None:
    browser = opened(width, height)
    texts = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')].map(figure =>"
        " [...figure.querySelectorAll('text')].map(text => {"
        "  const box = text.getBoundingClientRect();"
        "  return [box.left, box.top, box.right, box.bottom]; }))"
    )
    lows = [min(box[2] - box[0], box[3] - box[1]) for boxes in texts for box in boxes]
    assert min(lows) >= 5 and sum(lows) / len(lows) > 8  # pixels: a digit is narrower than high
    inner = [[(a + 1, b + 1, c - 1, d - 1) for a, b, c, d in boxes] for boxes in texts]
    assert [pair for boxes in inner for pair in combinations(boxes, 2) if overlap(*pair)] == []


def test_each_mark_tells_its_values_on_hovering(opened: Callable[..., Any]) -> None:
    browser = opened()
    point = browser.find_element("css selector", "#r1-accuracy .chart use:has(> title)")
    told = point.get_attribute("textContent")
    assert told == "step 1: 70.00 % (48.10 to 85.45), 14 of 20 images"
    hit = browser.execute_script(
        "const point = arguments[0]; point.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const box = point.getBoundingClientRect();"
        "return point.contains(document.elementFromPoint("
        " (box.left + box.right) / 2, (box.top + box.bottom) / 2))",
        point,
    )
    assert hit  # a hollow point, too


def test_hostile_names_are_text_and_run_nothing(opened: Callable[..., Any]) -> None:
    browser = opened()
    assert count(browser, "[onerror], [onload]") == 0
    assert count(browser, "script") == 0
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


def test_figures_follow_the_page_from_light_to_dark_and_to_paper(
    opened: Callable[..., Any],
) -> None:
    looks = []
    for scheme, media in (("light", ""), ("dark", ""), ("dark", "print")):
        browser = opened(scheme=scheme, media=media)
        script = (
            "const mark = document.querySelector('#r1-layers .chart path:has(> title)');"
            "const page = getComputedStyle(document.body).backgroundColor;"
            "return [page, getComputedStyle(mark).fill]"
        )
        looks.append(browser.execute_script(script))
    (light, blue), (dark, pale), paper = looks
    assert light != dark and blue != pale
    assert paper == ["rgb(255, 255, 255)", blue]


def test_each_thing_to_click_is_reached_by_the_keyboard(opened: Callable[..., Any]) -> None:
    browser = opened()
    unreachable = browser.execute_script(
        "return [...document.querySelectorAll('a, summary, .scroll')]"
        ".filter(one => one.tabIndex < 0).length"
    )
    assert unreachable == 0
    assert count(browser, "img:not([alt])") == 0
    assert count(browser, ".chart svg:not([aria-labelledby])") == 0  # what a screen reader says
