"""Whatever stands in names and answers: a report shows it, and nothing acts on it as markup, link or formula."""

import csv
import re
from html.parser import HTMLParser

import pytest
from langchain_core.messages import HumanMessage

from mpf_chains.reporting import report_html, report_markdown, write_report, write_tables
from mpf_chains.runtime import Call, Completion, Ledger
from tests.reporting.made_up import evaluation, made

HOSTILE = [
    "<script>window.ran = 1</script>",
    '"><img src=x onerror="window.ran = 1">',
    "</style></title></svg><iframe src=//evil.example>",
    "&lt;b&gt; &#x3C;i>",
    '=HYPERLINK("http://evil.example","click")',
    "+1+1", "-2+3", "@SUM(A1)", " =1+1", "\t=1+1", "\u200b=1+1", "＝1+1", "\n=1",
    "[x](javascript:alert(1)) ![i](http://evil.example/i.png) <http://evil.example> http://evil.example www.evil.com",
    "| a | b |\n| --- | --- |\n# heading\n---\n- item\n1. one\n> quote\n~~~\n```\ncode `tick` **bold** _it_",
    "\x1b[31mred\x07\x00 \u202egnirts\u2066 zero\u200bwidth\u00ad\ufeff \ud800",
    "\u2068\u2069</bdi>",
    '{"lc":1,"type":"secret","id":["OPENAI_API_KEY"]}',
    "../../etc/passwd {{ 7*7 }} ${7*7} %s {0}",
    "x" * 5000,
]  # fmt: skip
TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "a", "header", "h1", "h2", "h3", "h4", "p", "nav", "ul",
    "li", "main", "section", "div", "table", "caption", "span", "thead", "tbody", "tr", "th", "td", "br", "bdi", "b",
    "figure", "figcaption", "blockquote", "details", "summary", "footer", "svg", "desc", "line", "rect", "circle",
    "path", "text", "tspan",
}  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def hostile(text):
    """What a report shows of data, all of it replaced by one text."""
    storable = text.encode("utf-8", "replace").decode()  # as ledgers and benchmarks keep it: without lone surrogates
    entities, names = (f"E {storable}", storable), (f"1{storable}", f"2{storable}")
    ledger = Ledger()
    for name in names:
        call = Call((HumanMessage("q"),), label=f"{entities[0]} / row / {name} / draw 0")
        ledger.record(Completion(call.key(name), "ok", text), call)
    calibration = made(
        entities=entities,
        names=names,
        diagnostics={"notes": [text], "pooled_fit": {"warnings": [text]}},
        provenance={text: text, "model": text, "benchmark": {"name": text}, "library": text, "settings": {"n": text}},
    )
    measured = evaluation(text, notes=[text], model=text, library=text)
    measured["measured"] = {text: {**measured["measured"]["stereotype_score"], "title": text, "unit": text}}
    measured["measured"][text]["parts"] = {text: {"value": 1.0, "low": 0.0, "high": 2.0, "n": 3}}
    return {"calibrations": {text: calibration}, "evaluations": [measured], "ledger": ledger, "title": text}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_html_holds_no_markup_of_others(text, tmp_path):
    path = write_report(tmp_path / "report.html", **hostile(text))
    page = Tags(path.read_bytes().decode("utf-8"))
    assert page.tags <= TAGS
    for name, value in page.attributes:
        assert not name.startswith("on") and name not in {"src", "style", "srcdoc", "action", "formaction"}
        if name in {"href", "xlink:href"}:
            assert re.fullmatch("#part[0-9]+|#main|data:,", value)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", page.text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_holds_no_markup_of_others(text):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")

    def shape(said):
        """Kinds of the blocks and spans that a reader sees, texts and line breaks aside."""
        tokens = markdown.parse(report_markdown(**hostile(said)))
        inner = {child.type for token in tokens for child in token.children or ()}
        assert inner <= {"text", "softbreak", "hardbreak", "strong_open", "strong_close", "em_open", "em_close"}
        return [token.type for token in tokens if token.level == 0 and "blockquote" not in token.type]

    assert shape(text) == shape("harmless")
    written = report_markdown(**hostile(text))
    assert "http://" not in written and "<" not in written  # what other readers take for links and HTML


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_cell_is_a_formula(text, tmp_path):
    cells = []
    for path in write_tables(tmp_path, **hostile(text)):
        assert path.parent == tmp_path
        with path.open(newline="", encoding="utf-8") as file:
            cells += [cell for row in csv.reader(file) for cell in row]
    page = report_html(**hostile(text))
    cells += [re.sub("<[^>]*>", "", cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", page, re.DOTALL)]
    for cell in cells:
        if cell.strip().startswith(("=", "+", "-", "@", "＝")):
            float(cell)  # a negative number may stay one


def test_a_record_that_names_a_secret_stays_text_and_no_key_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    record = '{"lc":1,"type":"secret","id":["OPENAI_API_KEY"]}'
    options = hostile(record)
    for suffix in ("html", "md"):
        written = write_report(tmp_path / f"report.{suffix}", **options).read_text("utf-8")
        assert "canary" not in written and "OPENAI" in written
    assert record in Tags(report_html(**options)).text
