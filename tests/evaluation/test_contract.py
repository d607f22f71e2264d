"""What holds for every metric: one suite, one case each."""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.evaluation import METRICS, Resampling, compare, metrics

QUICK = Resampling(resamples=100, permutations=40)


@dataclass(frozen=True)
class Case:
    """How to call a metric: arrays with one entry per item, and an input for which it reaches its ideal."""

    name: str
    items: Callable[[np.random.Generator, int], dict]
    ideal: dict | None = None
    options: dict = field(default_factory=dict)
    numbers: str = ""  # the array in which a NaN is tried

    def __call__(self, arrays, **options):
        return getattr(metrics, self.name)(**arrays, **{"resampling": QUICK, **self.options, **options})


def coin(rng, n):
    return rng.integers(0, 2, n)


def stereoset(rng, n):
    return {k: rng.random(n) for k in ("stereotype", "anti", "unrelated")} | {"terms": rng.choice(list("abc"), n)}


def pairs(rng, n):
    return {"more": rng.normal(-30, 3, n), "less": rng.normal(-31, 3, n)}


def masked(rng, n):
    lengths = rng.integers(1, 9, n)
    return {name: [-rng.random(size) for size in lengths] for name in ("more", "less")}


def bbq(rng, n):
    answer = rng.integers(0, 3, n)  # 0 unknown, 1 biased, 2 neither
    return {"correct": (answer == 0) * 1, "biased": (answer == 1) * 1, "unknown": (answer == 0) * 1}


def grouped(values):
    return lambda rng, n: {**values(rng, n), "groups": np.resize(list("xyz"), n)}


def templated(rng, n):
    return {
        "scores": rng.random(n),
        "groups": np.resize(["he", "she"], n),
        "templates": np.repeat(np.arange(n), 6)[:n],
    }


def next_tokens(rng, n):
    return {"first": rng.dirichlet(np.ones(7), n), "second": rng.dirichlet(np.ones(7), n)}


def counts(rng, n):
    return {"counts": rng.multinomial(50, [0.5, 0.3, 0.2], n), "target": rng.dirichlet(np.ones(3), n)}


SCORES = {"scores": [0.25, 0.75, 0.25, 0.75], "groups": ["x", "x", "y", "y"]}
CASES = [
    Case(
        "stereoset_ss", stereoset, {"stereotype": [2, 1], "anti": [1, 2], "unrelated": [0, 0]}, numbers="anti"
    ),
    Case("stereoset_lm", stereoset, {"stereotype": [2], "anti": [1], "unrelated": [0]}, numbers="unrelated"),
    Case(
        "stereoset_icat", stereoset, {"stereotype": [2, 1], "anti": [1, 2], "unrelated": [0, 0]}, numbers="stereotype"
    ),
    Case("crows_likelihood_difference", pairs, {"more": [-1, -2], "less": [-1, -2]}, numbers="less"),
    Case("crows_stereotype", pairs, {"more": [-1, -2], "less": [-2, -1]}, numbers="more"),
    Case("crows_pseudo_likelihood", masked, {"more": [[-1], [-2]], "less": [[-2], [-1]]}),
    Case("bbq_accuracy", lambda rng, n: {"correct": coin(rng, n)}, {"correct": [1, 1]}, numbers="correct"),
    Case(
        "bbq_bias_ambiguous", bbq, {"correct": [1, 1], "biased": [0, 0], "unknown": [1, 1]}, numbers="correct"
    ),
    Case(
        "bbq_bias_disambiguated", bbq, {"correct": [1, 1], "biased": [1, 0], "unknown": [0, 0]}, numbers="biased"
    ),
    Case(
        "winobias_gap", lambda rng, n: {"pro": coin(rng, n), "anti": coin(rng, n)}, {"pro": [1, 0], "anti": [0, 1]},
        numbers="pro",
    ),
    Case(
        "redditbias_preference", lambda rng, n: {"biased": rng.normal(-3, 1, n), "counterpart": rng.normal(-3, 1, n)},
        {"biased": [-1, -2], "counterpart": [-2, -1]}, numbers="counterpart",
    ),
    Case(
        "regard_gap", grouped(lambda rng, n: {"regard": rng.choice(["negative", "neutral", "positive"], n)}),
        {"regard": ["negative", "positive"] * 2, "groups": ["x", "x", "y", "y"]},
    ),
    Case(
        "toxicity_gap", grouped(lambda rng, n: {"toxic": coin(rng, n)}),
        {"toxic": [1, 0, 1, 0], "groups": ["x", "x", "y", "y"]}, numbers="toxic",
    ),
    Case("sentiment_gap", grouped(lambda rng, n: {"scores": rng.random(n)}), SCORES, numbers="scores"),
    Case("counterfactual_individual", templated, {**SCORES, "templates": [1, 1, 1, 1]}, numbers="scores"),
    Case("counterfactual_group", grouped(lambda rng, n: {"scores": rng.random(n)}), SCORES, numbers="scores"),
    Case("hellinger", next_tokens, {"first": [[0.25, 0.75]], "second": [[0.25, 0.75]]}),
    Case("selection_rate", lambda rng, n: {"scores": rng.random(n)}, numbers="scores"),
    Case("impact_ratio", grouped(lambda rng, n: {"scores": rng.random(n)}), SCORES, numbers="scores"),
    Case(
        "max_z", grouped(lambda rng, n: {"scores": rng.random(n)}),
        {"scores": [1, 3, 2, 2, 0, 4], "groups": ["x", "x", "y", "y", "z", "z"]}, numbers="scores",
    ),
    Case(
        "perplexity", lambda rng, n: {"log_likelihoods": -90 * rng.random(n), "tokens": rng.integers(20, 40, n)},
        {"log_likelihoods": [0.0], "tokens": [3]}, numbers="log_likelihoods",
    ),
    Case("target_mae", counts, {"counts": [[25, 75]], "target": [[0.25, 0.75]]}),
    Case(
        "target_kl", lambda rng, n: {"target": rng.random(n), "generated": rng.random(n)},
        {"target": [0.1, 0.9], "generated": [0.9, 0.1]}, numbers="generated",
    ),
    Case("share", lambda rng, n: {"outcomes": coin(rng, n)}, numbers="outcomes"),
    Case("mean_score", lambda rng, n: {"scores": rng.random(n)}, numbers="scores"),
]  # fmt: skip
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BREAKS_DOWN = [case for case in CASES if "by" in inspect.signature(getattr(metrics, case.name)).parameters]


def arrays(case, n=36, seed=0):
    return case.items(np.random.default_rng(seed), n)


def reordered(given, order):
    return {name: [values[i] for i in order] for name, values in given.items()}


def test_every_metric_has_its_case():
    assert [case.name for case in CASES] == list(METRICS)


@each
def test_the_docstring_says_what_the_description_says(case):
    metric, text = METRICS[case.name], inspect.getdoc(getattr(metrics, case.name))
    if metric.ideal is None:
        assert "No ideal of its own" in text and metric.better == ""
    else:
        better = "closer to the ideal" if metric.better == "closer" else metric.better
        assert (
            f"Ideal {metric.ideal:g}, range {metric.low:g} to {metric.high:g}, unit {metric.unit}, {better} is better"
            in text
        )
        assert metric.low <= metric.ideal <= metric.high
    assert f"unit {metric.unit}" in text and "Source: " in text and metric.source and metric.title


@each
def test_a_value_lies_in_its_interval_and_the_interval_in_the_range(case):
    for seed in range(3):
        measured = case(arrays(case, seed=seed))
        for part in (measured, *measured.parts.values()):
            assert part.metric.low <= part.low <= part.value <= part.high <= part.metric.high
            assert np.isfinite(part.value) and part.n >= 1 and part.level == 0.9
        assert measured.low < measured.high


@each
def test_the_order_of_items_changes_nothing(case):
    given = arrays(case)
    order = np.random.default_rng(1).permutation(36)
    one, other = case(given), case(reordered(given, order))
    if case.name == "target_mae":  # its parts are named by position where no names are given
        one, other = ({**m.as_dict(), "parts": None} for m in (one, other))
        assert one["value"] == pytest.approx(other["value"]) and one["low"] == pytest.approx(other["low"])
    elif case.name == "counterfactual_individual":
        assert one == other
    else:
        assert one.as_dict() == other.as_dict()


@each
def test_ideal_input_reaches_the_ideal_value(case):
    if case.ideal is None:
        with pytest.raises(NotSupportedError):
            METRICS[case.name].distance(0.5)
    else:
        measured = case(case.ideal)
        assert measured.value == METRICS[case.name].ideal
        assert measured.metric.distance(measured.value) == 0
        assert not measured.beyond_floor


@each
def test_arrays_that_do_not_fit_are_refused(case):
    given = arrays(case)
    empty = {name: values[:0] for name, values in given.items()}
    with pytest.raises(InvalidInput):
        case(empty)
    for name in list(given)[1:]:
        with pytest.raises(InvalidInput):
            case({**given, name: given[name][:-1]})
    for name in given:
        with pytest.raises(InvalidInput):
            case({**given, name: "nonsense"})
    if case.numbers:
        for bad in (np.nan, np.inf):
            broken = np.array(given[case.numbers], dtype=np.float64)
            broken[7] = bad
            with pytest.raises(InvalidInput, match="7"):
                case({**given, case.numbers: broken})
    for name in {"groups", "terms", "templates"} & given.keys():
        blank = np.array(given[name], dtype=object)
        blank[3] = None
        with pytest.raises(InvalidInput, match=rf"{name}\[3\]"):
            case({**given, name: blank})


@each
def test_a_row_that_counts_twice_is_a_row_that_is_there_twice(case):
    """Statistics of weighted rows, which the bootstrap draws many of at once, are those of the rows repeated."""
    items, rng = case(arrays(case)).items, np.random.default_rng(1)
    counts = rng.integers(0, 3, (4, len(items.table)))
    for order in (slice(None), slice(None, None, -1)):
        table = items.table[order]
        drawn = items.statistic(table, counts.astype(np.float64))
        for one, value in zip(counts, drawn, strict=True):
            repeated = np.repeat(table, one, axis=0)
            assert value == pytest.approx(items.statistic(repeated, np.ones((1, len(repeated))))[0])


@each
def test_measurements_are_plain_data(case):
    measured = case(arrays(case))
    again = pickle.loads(pickle.dumps(measured))
    assert again == measured and again.items.value() == measured.value == measured.items.value()
    plain = json.loads(json.dumps(measured.as_dict(), allow_nan=False))
    assert plain["metric"] == case.name and plain["value"] == measured.value
    assert plain.get("parts", {}).keys() == measured.parts.keys()
    assert "table" not in repr(measured)


@each
def test_a_system_does_not_differ_from_itself(case):
    measured = case(arrays(case))
    same = compare(measured, measured, runs=99, resampling=QUICK)
    assert (same.difference, same.p) == (0, 1) and same.low <= 0 <= same.high
    json.dumps(same.as_dict(), allow_nan=False)


@pytest.mark.parametrize("case", BREAKS_DOWN, ids=lambda case: case.name)
def test_a_part_is_what_its_items_alone_would_give(case):
    given = arrays(case)
    by = np.resize(["one", "two"], 36)
    options = {"threshold": 0.5} if case.name == "selection_rate" else {}
    parts = case(given, by=by, **options).parts
    assert list(parts) == ["one", "two"]
    for name, part in parts.items():
        alone = case(reordered(given, np.flatnonzero(by == name)), **options)
        assert part.as_dict() == alone.as_dict()


@pytest.mark.parametrize("case", BREAKS_DOWN, ids=lambda case: case.name)
def test_one_item_has_a_value_and_an_interval_that_admits_not_knowing(case):
    given = {name: values[:1] for name, values in arrays(case).items()}
    measured = case(given)
    assert measured.metric.low <= measured.low <= measured.value <= measured.high <= measured.metric.high
    reach = min(measured.metric.high, 200) - max(measured.metric.low, -200)
    assert min(measured.high, 200) - max(measured.low, -200) >= 0.9 * reach


@pytest.mark.parametrize("case", BREAKS_DOWN, ids=lambda case: case.name)
def test_items_of_one_cluster_count_as_one(case):
    """Every item five times over, as one cluster: the interval of the items once, not one of 1 / √5."""
    given = arrays(case)
    copies = np.repeat(np.arange(36), 5)
    once = case(given, clusters=range(36))
    repeated = case(reordered(given, copies), clusters=copies)
    independent = case(reordered(given, copies))
    assert repeated.value == pytest.approx(once.value)
    assert repeated.method == "bootstrap"
    assert repeated.high - repeated.low == pytest.approx(once.high - once.low, rel=0.35)
    assert independent.high - independent.low < 0.7 * (repeated.high - repeated.low)
