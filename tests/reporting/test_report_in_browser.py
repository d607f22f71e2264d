"""The report in a real browser: it runs nothing, asks for nothing, fits, can be read, and prints."""

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from mpf_chains.reporting import write_report
from mpf_chains.runtime import Call, Completion, Ledger
from tests.reporting.made_up import evaluation, made

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; `make test` installs it")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no Chromium; Debian has it: apt-get install chromium chromium-driver"
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
ARABIC = "الجامعة جيدة جدا، والطلاب سعداء."
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'> " + "long" * 300
COLOURS = """
const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const back = element => { for (let e = element; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; }
    return [255, 255, 255]; };
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
"""
TEXTS = """
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) { const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.getClientRects().length || e.closest('title, desc')) continue;
    const style = getComputedStyle(e), ink = rgb(e.closest('svg') ? style.fill : style.color);
    found.push([ratio(ink, back(e)), walker.currentNode.data.slice(0, 40)]); }
return found;
"""
MARKS = """
return [...document.querySelectorAll('svg .line, svg .dot, svg .bar, svg .whisker, svg .mean, svg .axis')].map(e => {
    const style = getComputedStyle(e), ink = style.stroke === 'none' ? style.fill : style.stroke;
    return [ratio(rgb(ink), back(e)), e.getAttribute('class')]; });
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every kind of section, and answers that would like to do something."""
    ledger = Ledger()
    for entity, text in (("ETH Zurich", SCRIPT), ("東京大学", ARABIC)):
        for who in ("optimist", "critic"):
            call = Call((HumanMessage(f"{entity} {who}"),), label=f"{entity} / row 1 / {who} / draw 0")
            ledger.record(Completion(call.key("m"), "ok", text), call)
    entities = (
        "ETH Zurich",
        "東京大学",
        "جامعة القاهرة",
        "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" * 2,
    )
    calibrations = {
        "sampled": made(entities=entities),
        "worse": made((0.2, 0.4, 0.5), (0.6, 0.01, 0.7), entities=entities),
        "open": made((0.4, 0.01, 0.7), (0.4, 0.01, 0.7), entities=entities),
        "not validated": made((0.4, 0.01, 0.7), None, entities=entities),
    }
    evaluations = [evaluation(), evaluation("routed", 51.0, 49.0, 53.0, notes=["A note."])]
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, calibrations=calibrations, evaluations=evaluations, ledger=ledger)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser, path, *, width=1280, scheme="light", media="screen", unfold=True):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    if unfold:
        browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    return browser


def test_nothing_runs_and_nothing_is_asked_for(browser, report):
    browser.get_log("performance")
    page = opened(browser, report)
    assert SCRIPT in page.execute_script("return document.body.textContent")
    assert page.execute_script("return window.ran === undefined && document.scripts.length === 0")
    assert page.get_log("browser") == []
    log = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in log
        if message["method"] == "Network.requestWillBeSent"
        and not message["params"]["documentURL"].startswith("chrome:")  # the browser's own first page
    }
    assert asked <= {report.as_uri(), "data:,"} and report.as_uri() in asked


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_does_not_scroll_sideways_and_labels_do_not_meet(browser, report, width):
    page = opened(browser, report, width=width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    meeting = page.execute_script("""
        return [...document.querySelectorAll('svg[role=img]')].flatMap(svg => {
            const boxes = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
            const edge = svg.getBoundingClientRect();
            const out = boxes.filter(([, box]) => box.left < edge.left - 1 || box.right > edge.right + 1);
            return [...out, ...boxes.filter(([, a], i) => boxes.slice(i + 1).some(([, b]) => a.left < b.right - 1 &&
                b.left < a.right - 1 && a.top < b.bottom - 5 && b.top < a.bottom - 5))].map(([words]) => words); });""")
    assert meeting == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(browser, report, scheme):
    page = opened(browser, report, scheme=scheme)
    texts, marks = page.execute_script(COLOURS + TEXTS), page.execute_script(COLOURS + MARKS)
    assert len(texts) > 500 and min(texts)[0] >= 4.5, min(texts)
    assert len(marks) > 50 and min(marks)[0] >= 3, min(marks)
    back = page.execute_script(f"{COLOURS} return light(back(document.querySelector('main h2')))")
    assert (back < 0.1) == (scheme == "dark")


def test_a_page_for_every_reader(browser, report):
    page = opened(browser, report, unfold=False)
    levels = page.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.execute_script("return document.documentElement.lang") == "en"
    nameless = """return [...document.querySelectorAll('svg, img')].filter(e => !e.closest('[aria-hidden=true]') &&
        !e.parentElement.closest('svg') && !(e.getAttribute('role') === 'img' && e.querySelector('title').textContent
        && e.querySelector('desc').textContent)).length"""
    assert page.execute_script(nameless) == 0
    assert page.execute_script("return document.querySelectorAll('svg[role=img]').length") > 20
    tables = """return [...document.querySelectorAll('table')].filter(e => !e.caption || !e.caption.textContent ||
        [...e.querySelectorAll('th')].some(th => !th.scope)).length"""
    assert page.execute_script(tables) == 0
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)


def test_arabic_runs_right_to_left(browser, report):
    page = opened(browser, report)
    directions = """return [...document.querySelectorAll('blockquote')].filter(e => e.textContent === arguments[0])
        .map(e => getComputedStyle(e).direction)"""
    assert page.execute_script(directions, ARABIC) == ["rtl", "rtl"]


def test_the_keyboard_reaches_the_content_and_opens_what_is_folded(browser, report):
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    page = opened(browser, report, unfold=False)
    page.find_element("tag name", "body").send_keys(keys.TAB)
    skip = page.switch_to.active_element
    assert skip.text == "Skip to the content" and skip.rect["y"] >= 0
    skip.send_keys(keys.ENTER)
    assert page.execute_script("return document.activeElement.id") == "main"
    summary = page.find_element("css selector", "details:not([open]) > summary")
    summary.send_keys(keys.ENTER)
    assert summary.find_element("xpath", "..").get_attribute("open")


def test_it_prints_dark_on_white_with_nothing_left_folded(browser, report):
    page = opened(browser, report, scheme="dark", media="print", unfold=False)
    assert page.execute_script("return document.querySelectorAll('details:not([open])').length") > 5
    hidden = "return [...document.querySelectorAll('details > div')].filter(e => !e.checkVisibility()).length"
    assert page.execute_script(hidden) == 0
    opened(browser, report, unfold=False)
    assert page.execute_script(hidden) > 5
    opened(browser, report, scheme="dark", media="print", unfold=False)
    assert page.execute_script(f"{COLOURS} return light(rgb(getComputedStyle(document.body).color))") < 0.1
    printed = page.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")


def test_the_report_is_one_file(report):
    assert [path.name for path in Path(report).parent.iterdir()] == ["report.html"]
