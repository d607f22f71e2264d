"""The coloured page in a real browser: it asks for nothing, fits, can be read, answers the keyboard, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpf_chains.local.experts.explanation.records import ExplainedToken, Moved
from mpf_chains.local.experts.explanation.view import ExplanationView
from tests.reporting import test_report_in_browser as report_in_browser

pytestmark = report_in_browser.pytestmark
browser, opened, COLOURS = report_in_browser.browser, report_in_browser.opened, report_in_browser.COLOURS
HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [0.0, 0.3, 1.0, 3.0, -0.3, -1.0, -3.0]
    texts = [" word", " another", HOSTILE, "\n", " end", "long" * 60, " last"] * 12
    tokens = [
        ExplainedToken(
            i, text, 0.01, 0.02, {"gender": changes[i % 7], "race": 0.0, "religion": 0.0},
            tuple(Moved(j, "other" * 9, 0.5, 0.4) for j in range(5)),
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip
    view = ExplanationView(tokens, alphas={"gender": 3.0})
    return view.save(tmp_path_factory.mktemp("view") / "view.html", "What changed")


def test_nothing_runs_and_nothing_is_asked_for(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    shown = opened(browser, page)
    assert HOSTILE in shown.execute_script("return document.body.textContent")
    assert shown.execute_script("return window.ran === undefined && document.scripts.length === 0")
    assert shown.get_log("browser") == []
    assert shown.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_and_can_be_read(browser: Any, page: Path, scheme: str, width: int) -> None:
    shown = opened(browser, page, width=width, scheme=scheme)
    assert shown.execute_script("return document.documentElement.scrollWidth") <= width
    for each in shown.find_elements("css selector", ".t[tabindex]")[:7]:
        shown.execute_script("arguments[0].focus()", each)
        assert shown.execute_script("return document.documentElement.scrollWidth") <= width
        texts = shown.execute_script(COLOURS + report_in_browser.TEXTS)
        assert min(texts)[0] >= 4.5, min(texts)
    lines = """return [...document.querySelectorAll('.t[tabindex]')].map(e => {
        const style = getComputedStyle(e); return ratio(rgb(style.borderBottomColor), back(e.parentElement)); });"""
    assert min(shown.execute_script(COLOURS + lines)) >= 3
    back = shown.execute_script(f"{COLOURS} return light(back(document.querySelector('.answer')))")
    assert (back < 0.1) == (scheme == "dark")


def test_the_keyboard_reaches_what_changed(browser: Any, page: Path) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    shown = opened(browser, page, unfold=False)
    shown.find_element("tag name", "body").send_keys(keys.TAB)
    token = shown.switch_to.active_element
    about = token.find_element("css selector", ".about")
    assert token.text.startswith(" another") and about.is_displayed() and "gender +0.30" in about.text
    token.send_keys(keys.TAB)
    assert not about.is_displayed()


def test_it_prints_dark_on_white_with_the_table_unfolded(browser: Any, page: Path) -> None:
    shown = opened(browser, page, scheme="dark", media="print", unfold=False)
    assert shown.execute_script("return document.querySelector('table').checkVisibility()")
    assert (
        shown.execute_script(f"{COLOURS} return light(rgb(getComputedStyle(document.querySelector('.answer')).color))")
        < 0.1
    )
    assert not opened(browser, page, unfold=False).execute_script(
        "return document.querySelector('table').checkVisibility()"
    )
