"""A report says what the calibration holds, no more, and the same in every format."""

import csv
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpf_chains import Benchmark, Calibration, MPFCalibrator
from mpf_chains.errors import ArtifactError, InvalidInput
from mpf_chains.evaluation import evaluate
from mpf_chains.reporting import report_html, report_markdown, write_report, write_tables
from mpf_chains.reporting.mixtures import hundredths
from mpf_chains.reporting.report import report_content
from mpf_chains.reporting.text import plain, visible
from mpf_chains.runtime import Ledger
from mpf_chains.testing import BiasedChatModel
from tests.reporting.made_up import evaluation, made

pytestmark = pytest.mark.filterwarnings("ignore::mpf_chains.errors.MPFWarning")


class Read(HTMLParser):
    """Text of headings and cells of a page, in order; charts and folds aside."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag in {"h1", "h2", "h3", "h4", "th", "td"}:
            self.open.append([tag, ""])

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1][0]:
            self.found.append(tuple(self.open.pop()))

    def handle_data(self, data):
        if self.open:
            self.open[-1][1] += data


def in_html(page):
    return [(tag if tag[0] == "h" else "cell", " ".join(text.split())) for tag, text in Read(page).found]


def in_markdown(text):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = markdown.parse(text)
    return [
        (
            before.tag if before.tag[0] == "h" else "cell",
            " ".join("".join(each.content for each in token.children).split()),
        )
        for before, token in pairwise(tokens)
        if token.type == "inline" and before.tag in {"h1", "h2", "h3", "h4", "th", "td"}
    ]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two calibrations that share a ledger, and their benchmark."""
    ledger = tmp_path_factory.mktemp("run") / "ledger.sqlite"
    benchmark = Benchmark.builtin("university", ["ETH Zurich", "University of Delhi"]).select(per_entity=10)
    found = {}
    for mode in ("sampled", "aggregated"):
        options = {"n": 2, "bins": 5, "resamples": 20, "progress": False, "mode": mode, "seed": 3}
        found[mode] = MPFCalibrator(model=BiasedChatModel(), ledger=ledger, **options).invoke(benchmark)
    return {"calibrations": found, "ledger": ledger, "benchmark": benchmark}


def titles(**options):
    """Verdicts under "In short"."""
    return [
        (block.tone, plain(block.title))
        for block in report_content(**options).sections[0].blocks
        if hasattr(block, "tone")
    ]


@pytest.mark.parametrize(
    ("before", "after", "tone", "words"),
    [
        (
            (0.6, 0.001, 0.7),
            (0.2, 0.4, 0.5),
            "good",
            "Answers moved to where they can no longer be told from the target",
        ),
        ((0.35, 0.001, 0.7), (0.3, 0.4, 0.52), "good", "though the distances' intervals overlap"),
        ((0.35, 0.001, 0.7), (0.3, 0.4, 0.6), "open", "but their mean is still off"),
        ((0.6, 0.001, 0.7), (0.4, 0.001, 0.6), "good", "Closer to the target, but still told apart from it"),
        ((0.4, 0.001, 0.7), (0.38, 0.001, 0.68), "open", "No improvement is shown"),
        ((0.2, 0.4, 0.5), (0.2, 0.3, 0.5), "open", "too few to show a bias, or there is none"),
        ((0.2, 0.4, 0.5), (0.25, 0.01, 0.6), "bad", "moved away"),
        ((0.3, 0.001, 0.7), (0.6, 0.001, 0.8), "bad", "moved away"),
        (None, (0.2, 0.4, 0.5), "note", "before was not measured"),
        ((0.2, 0.4, 0.5), None, "note", "nothing is known about the weights' effect"),
    ],
)
def test_a_verdict_claims_what_the_figures_carry_and_no_more(before, after, tone, words):
    ((found, title),) = titles(calibrations=made(before, after))
    assert found == tone and words.lower() in title.lower()


def test_an_entity_that_got_worse_is_named_where_the_pool_did_well():
    worse = made((0.2, 0.4, 0.5), (0.6, 0.01, 0.7)).validation["features"]["sentiment"]["Oxford"]
    calibration = made()
    calibration.validation["features"]["sentiment"]["Oxford"] = worse
    short = report_markdown(calibrations=calibration).split("## What was asked")[0]
    assert "Answers moved away from the target for Oxford." in short


def test_without_held_out_questions_the_report_says_so_first():
    text = report_markdown(calibrations=made(None, None))
    assert "nothing was validated: their effect is not known" in text.split("## What was asked")[0]
    assert "Nothing was validated on held-out questions." in text.split("## Warnings")[1]


def test_what_limits_the_weights_is_said():
    fit = {**made().fits["Oxford"], "identifiable": False, "uncovered": 0.3, "status": "inexact", "kl": [0.5]}
    diagnosis = {"missing": [{"score_range": [0.1, 0.15], "ratio": 4.2}]}
    calibration = made(
        fits={"ETH Zurich": made().fits["ETH Zurich"], "Oxford": fit},
        diagnostics={"by_entity": {"Oxford": diagnosis, "ETH Zurich": diagnosis}, "notes": ["2 cells are missing."]},
    )
    text = report_markdown(calibrations=calibration)
    for words in (
        "For Oxford other weights explain the data equally well",
        "For Oxford, 30 % of the target lies in score bins that no perspective reaches.",
        "The target has 4.2 times as much sentiment from 0.10 to 0.15 as the mixture",
        "The optimum was not certified for Oxford",
        "2 cells are missing.",
        "No Pareto front was computed",
    ):
        assert words in text
    assert "For ETH Zurich the best mixture stays above" not in text  # its KL is within the noise


def test_weights_in_words():
    text = report_markdown(calibrations=made())
    assert (
        "Of 100 requests about Oxford, 75 as critic and 25 as optimist. The interval of optimist reaches down to 0."
        in text
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda weights: sum(weights) > 0.01))
def test_hundredths_sum_to_100_and_are_no_farther_off_than_1(weights):
    row = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    whole = hundredths(row)
    assert sum(whole.values()) == 100 and all(abs(whole[name] - 100 * row[name]) < 1 + 1e-9 for name in row)


def test_html_and_markdown_say_the_same(real):
    options = {**real, "evaluations": [evaluation(), evaluation("routed", 51.0, 49.0, 53.0)]}
    page, text = report_html(**options), report_markdown(**options)
    assert in_html(page) == in_markdown(text)
    assert len(in_html(page)) > 300


def test_figures_are_those_of_the_calibration(real):
    systems = real["calibrations"]["sampled"].validation["features"]["sentiment"]["(pooled)"]["systems"]
    row = in_html(report_html(calibrations=real["calibrations"]["sampled"]))
    at = row.index(("cell", "Before"))
    mean = systems["normal"]["mean"]
    assert row[at + 1] == ("cell", f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]")


def test_the_same_inputs_give_the_same_bytes(real, tmp_path):
    paths = [write_report(tmp_path / f"{i}.html", **real) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.html", "1.html"]  # nothing half-written is left


def test_examples_are_this_calibrations_own_answers_with_their_scores(real):
    other = BiasedChatModel(default="Another model's answer.", answers={"an optimist": ["Another model's answer."]})
    benchmark, ledger = real["benchmark"], Ledger(real["ledger"])
    MPFCalibrator(model=other, ledger=ledger, progress=False, validate=()).invoke(benchmark)
    text = report_markdown(**{**real, "ledger": ledger})
    assert "Another model" not in text
    examples = text.split("## Examples of answers")[1].split("## Warnings")[0]
    row = next(row for row in benchmark.rows if row.split == "validation")
    assert row.question in examples and row.target_text in examples
    before, after = (re.search(f"\\*\\*{who}\\*\\* · (.*)", examples)[1] for who in ("Before", "After: aggregated"))
    record = real["calibrations"]["aggregated"].validation["features"]["sentiment"][row.entity]["systems"]
    assert before == f"sentiment {record['normal']['scores'][0]:.2f}"
    assert after.startswith("aggregated · ") and f"sentiment {record['aggregated']['scores'][0]:.2f}" in after


def test_examples_without_a_benchmark_and_without_texts(real):
    text = report_markdown(calibrations=real["calibrations"]["sampled"], ledger=real["ledger"])
    assert "One question under every perspective" in text and "### Before and after" not in text
    silent = Ledger(store_text=False)
    calibrator = MPFCalibrator(model=BiasedChatModel(), ledger=silent, progress=False, validate=())
    calibration = calibrator.invoke(real["benchmark"])
    text = report_markdown(calibrations=calibration, ledger=silent)
    assert "The ledger keeps no texts (store\\_text=False)" in text


def test_evaluations_are_read_against_ideal_floor_and_the_first():
    options = {"evaluations": [evaluation(), evaluation("routed", 51.0, 49.0, 53.0, missing=3, notes=["3 left out"])]}
    text = report_markdown(**options)
    assert (
        "| routed | 51.00 \\[49.00, 53.00\\] | 50.00 | 51.80 | 2106 | within the noise floor; nearer the ideal than"
        in text
    )
    assert "beyond both intervals" in text and "23.00 \\[22.00, ∞\\]" in text
    assert "routed: 3 items had no usable answer." in text and "Stereotype score by part" in text

    class Result:
        def as_dict(self):
            return evaluation()

    assert report_html(evaluations=[Result()]) == report_html(evaluations=[evaluation()])


@pytest.mark.parametrize(("answer", "words"), [(None, "as the first"), ("It is awful.", "paired")])
def test_evaluations_of_one_benchmark_are_compared_item_by_item(answer, words, real):
    models = [BiasedChatModel(), BiasedChatModel(default=answer) if answer else BiasedChatModel()]
    found = [
        evaluate(model, real["benchmark"], features=["sentiment"], label=label, model_id=label, progress=False)
        for label, model in zip(("bare", "other"), models, strict=True)
    ]
    text = report_markdown(evaluations=found)
    assert words in text.split("## Benchmarks and metrics")[1].split("## Warnings")[0]
    assert ("other against bare: " in text.split("## Benchmarks and metrics")[0]) == (len(found[1].measured) > 0)


def test_tables_as_csv_keep_numbers_and_intervals(real, tmp_path):
    paths = write_tables(tmp_path, calibrations=real["calibrations"]["sampled"])
    with next(path for path in paths if "weights" in path.name).open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head[:4] == ["Entity", "optimist", "optimist low", "optimist high"]
    weights = real["calibrations"]["sampled"].weights
    assert {row[0]: float(row[1]) for row in rows[:-1]} == {name: row["optimist"] for name, row in weights.items()}


def test_what_cannot_be_written_is_refused(tmp_path):
    for path, options, words in (
        ("report.pdf", {"calibrations": made()}, "must end in .html or .md"),
        ("nowhere/report.html", {"calibrations": made()}, "does not exist"),
        ("report.html", {}, "nothing to report"),
        ("report.html", {"calibrations": made(), "ledger": tmp_path / "none.sqlite"}, "There is no ledger"),
        ("report.html", {"calibrations": made(), "examples": 0}, "at least 1"),
        ("report.html", {"evaluations": [{"schema": 2, "measured": {}}]}, "schema 2"),
        ("report.html", {"evaluations": [3]}, "An evaluation is a int"),
    ):
        with pytest.raises(InvalidInput, match=words):
            write_report(tmp_path / path, **options)
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="symbolic link"):
        write_report(tmp_path / "link.html", calibrations=made())
    assert [path.name for path in tmp_path.iterdir()] == ["link.html"]


def test_a_bare_calibration_and_several_features_can_be_reported():
    bare = Calibration(made().perspectives, "aggregated", ("sentiment",), made().weights, made().pooled)
    assert "The weights have no intervals" in report_markdown(calibrations=bare)
    both = made(features=("sentiment", "regard"))
    both.validation["features"]["regard"] = both.validation["features"]["sentiment"]
    assert [title.split(":")[0] for _, title in titles(calibrations=both)] == ["sentiment", "regard"]
    assert report_html(calibrations={"a": both, "b": bare})


@given(st.text(alphabet=st.characters(codec=None)))
def test_visible_text_holds_no_control_or_format_characters(text):
    shown = visible(text)
    assert visible(shown) == shown
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", shown
    )
    shown.encode()


def test_scripts_keep_the_joiners_that_they_need():
    persian, family = "می\u200cخواهم", "👩\u200d👧"
    assert visible(persian) == persian and visible(family) == family
    assert visible("a\u200db") == "a⟨U+200D⟩b"
