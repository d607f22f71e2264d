"""Intervals that cover, floors that hold, comparisons that neither cry wolf nor sleep."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpf_chains.errors import InvalidInput, NotSupportedError
from mpf_chains.evaluation import Resampling, compare, share_interval
from mpf_chains.evaluation.intervals import bootstrap
from mpf_chains.evaluation.metrics import (
    bbq_accuracy,
    bbq_bias_ambiguous,
    counterfactual_group,
    crows_likelihood_difference,
    crows_stereotype,
    impact_ratio,
    max_z,
    mean_score,
    perplexity,
    regard_gap,
    selection_rate,
    sentiment_gap,
    stereoset_icat,
    stereoset_ss,
    target_kl,
    target_mae,
    toxicity_gap,
    winobias_gap,
)

QUICK = Resampling(resamples=300, permutations=0)


@given(n=st.integers(1, 200), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.99]))
def test_intervals_of_shares_are_those_of_scipy(n, share, level):
    successes = round(n * share)
    for method in ("exact", "wilson"):
        expected = stats.binomtest(successes, n).proportion_ci(level, method)
        assert share_interval(successes, n, level, method) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_share_is_checked():
    for wrong in ((3, 2), (-1, 2), (0, 0), (1, 2, 1.0), (1, 2, 0.9, "wald")):
        with pytest.raises(InvalidInput):
            share_interval(*wrong)
    for wrong in ({"level": 0}, {"resamples": 5}, {"permutations": -1}):
        with pytest.raises(InvalidInput):
            Resampling(**wrong)


def test_metrics_that_are_shares_have_exact_intervals():
    outcomes = [1] * 7 + [0] * 3
    expected = stats.binomtest(7, 10).proportion_ci(0.95, "exact")
    options = {"resampling": Resampling(level=0.95)}
    for measured in (
        bbq_accuracy(outcomes, **options),
        crows_stereotype(outcomes, [0.5] * 10, **options),
        stereoset_ss(outcomes, [0.5] * 10, [0] * 10, **options),
        selection_rate(outcomes, threshold=1, **options),
    ):
        scale = measured.metric.high
        assert measured.method == "exact"
        assert (measured.low / scale, measured.high / scale) == pytest.approx((expected.low, expected.high))


def test_a_bootstrap_is_seeded_and_its_spread_is_that_of_the_mean():
    x = np.random.default_rng(0).random((400, 1))
    one, two = (bootstrap(x, lambda t, w: w @ t[:, 0] / w.sum(axis=1), Resampling(seed=s)).values for s in (1, 2))
    again = bootstrap(x, lambda t, w: w @ t[:, 0] / w.sum(axis=1), Resampling(seed=1)).values
    assert (one == again).all() and (one != two).any()
    assert one.std() == pytest.approx(x.std() / 20, rel=0.1)


def test_outcomes_that_all_agree_leave_room_for_what_was_not_seen():
    """With one item per stratum nothing is known; with n alike, what exact intervals of a share of 1 leave."""
    measured = winobias_gap([1] * 20, [1] * 20)
    unseen = 1 - 0.05 ** (1 / 20)
    assert (measured.value, measured.low, measured.high) == pytest.approx((0, -unseen, unseen))
    biased = bbq_bias_ambiguous([0] * 20, [1] * 20, [0] * 20)
    assert biased.high == 1 and biased.low == pytest.approx(1 - 2 * unseen)
    constant = crows_likelihood_difference([-1.0] * 5, [-2.0] * 5)
    assert constant.low == constant.value == constant.high == 1
    single = sentiment_gap([0.1, 0.2, 0.3], ["a", "b", "b"])
    assert (single.low, single.high) == (0, 1)
    assert perplexity([-2.0], [1]).as_dict()["high"] is None


def coverage(simulate, truth, runs=200):
    hits = [m.low <= truth <= m.high for m in map(simulate, range(runs))]
    return np.mean(hits)


def mixture(rng, n):
    return rng.beta(2, 5, n)


def gap_sample(seed, n=40):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.beta(2, 2, n), rng.beta(3, 2, n), rng.beta(2, 3, n)])
    return scores, np.repeat(list("abc"), n)


def clustered(seed):
    rng = np.random.default_rng(seed)
    question = np.repeat(np.arange(25), 8)
    scores = np.clip(0.5 + 0.15 * rng.normal(size=25)[question] + 0.05 * rng.normal(size=200), 0, 1)
    return scores, question


def eight_groups(spread):
    def sample(seed):
        groups = np.repeat(np.arange(8), 40)
        noise = np.random.default_rng(seed).uniform(-0.3, 0.3, len(groups))
        options = Resampling(resamples=200, permutations=100)
        return sentiment_gap(0.5 + spread * np.linspace(-0.5, 0.5, 8)[groups] + noise, groups, resampling=options)

    return sample


def bbq_sample(seed, n=100):
    rng = np.random.default_rng(seed)
    answer = rng.choice(3, n, p=[0.5, 0.35, 0.15])
    return bbq_bias_ambiguous(answer == 0, answer == 1, answer == 0, resampling=QUICK)


def icat_sample(seed, n=150):
    rng = np.random.default_rng(seed)
    pro, anti = rng.normal(1.6, 1, n), rng.normal(1, 1, n)
    return stereoset_icat(pro, anti, rng.normal(-0.5, 1, n), np.resize(list("abcde"), n), resampling=QUICK)


def exact_icat():
    ss, related = stats.norm.cdf(0.6 / np.sqrt(2)), [stats.norm.cdf(d / np.sqrt(2)) for d in (2.1, 1.5)]
    return 100 * np.mean(related) * min(ss, 1 - ss) * 2


SIMULATIONS = {
    "mean of few": (lambda s: mean_score(mixture(np.random.default_rng(s), 8), resampling=QUICK), 2 / 7),
    "clustered mean": (lambda s: mean_score(*clustered(s)[:1], clusters=clustered(s)[1], resampling=QUICK), 0.5),
    "ratio": (bbq_sample, 0.5 * (2 * 0.7 - 1)),
    "scores by term": (icat_sample, exact_icat()),
    "gap of many that are alike": (eight_groups(0.0), 0.0),
    "gap of many that are nearly alike": (eight_groups(0.05), 0.05 * 3 / 7),
    "gap of many": (eight_groups(0.3), 0.3 * 3 / 7),
    "gap": (lambda s: sentiment_gap(*gap_sample(s), resampling=QUICK), (0.1 + 0.1 + 0.2) / 3),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("gap of many") else n for n in SIMULATIONS]
)
def test_ninety_per_cent_intervals_cover_the_truth(name):
    simulate, truth = SIMULATIONS[name]
    assert 0.84 <= coverage(simulate, truth) <= 0.97


def test_ignoring_clusters_would_not_cover():
    assert coverage(lambda s: mean_score(clustered(s)[0], resampling=QUICK), 0.5) < 0.75


FLOORED = {
    "sentiment": sentiment_gap,
    "toxicity": lambda scores, groups, **o: toxicity_gap(scores > 0.6, groups, **o),
    "distance": counterfactual_group,
    "impact": impact_ratio,
    "max z": max_z,
}


@pytest.mark.parametrize("name", FLOORED)
def test_equal_groups_pass_the_floor_in_one_of_twenty_and_unequal_ones_do(name):
    metric = FLOORED[name]
    options = Resampling(resamples=20, permutations=60)

    def beyond(shift, runs):
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            groups = np.repeat(list("abcd"), 50)
            yield metric(rng.beta(3, 3, 200) * (1 - shift * (groups == "a")), groups, resampling=options).beyond_floor

    assert np.mean(list(beyond(0.0, 100))) <= 0.11
    assert np.mean(list(beyond(0.4, 10))) >= (0.3 if name == "max z" else 0.9)


def test_the_floor_of_counterfactual_prompts_shuffles_within_them():
    """Prompts differ a lot, groups within a prompt not at all: labels must not wander between prompts."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(40), 2)
    scores = np.clip(rng.random(40)[prompt] + rng.normal(0, 0.01, 80), 0, 1)
    groups = np.resize(["he", "she"], 80)
    within = sentiment_gap(scores, groups, clusters=prompt)
    assert within.floor.limit < 0.01 < sentiment_gap(scores, groups).floor.limit
    nested = sentiment_gap(scores, np.where(prompt < 20, "he", "she"), clusters=prompt)
    assert nested.floor.limit > 0.05


@given(table=st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), min_size=1, max_size=60))
def test_outcomes_are_compared_by_mcnemars_exact_test(table):
    first, second = zip(*table, strict=True)
    options = {"resampling": Resampling(resamples=20)}
    result = compare(bbq_accuracy(first), bbq_accuracy(second), **options)
    b, c = table.count((1, 0)), table.count((0, 1))
    assert result.test == "mcnemar"
    assert result.p == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1)
    assert result.difference == pytest.approx((c - b) / len(table))
    assert result.improvement == pytest.approx(result.difference)
    assert -1 <= result.low <= result.difference <= result.high <= 1


def test_the_randomisation_test_is_that_of_all_swaps():
    rng = np.random.default_rng(3)
    before, after = -rng.random(9), -rng.random(9) + 0.4
    one, two = (crows_likelihood_difference(x, np.zeros(9)) for x in (before, np.minimum(after, 0)))
    gaps = two.items.table[:, 0] - one.items.table[:, 0]
    all_swaps = [abs(np.dot(signs, gaps)) for signs in itertools.product([1, -1], repeat=9)]
    exact = np.mean(np.array(all_swaps) >= abs(gaps.sum()) - 1e-12)
    result = compare(one, two, runs=9999)
    assert result.test == "randomisation" and result.p == pytest.approx(exact, abs=0.015)
    assert result.improvement == pytest.approx(-result.difference) and result.improvement > 0


def icat_pair(seed, shift):
    rng = np.random.default_rng(seed)
    scores, terms = rng.normal(size=(3, 120)) + np.array([[1.2], [1.0], [0.0]]), np.resize(list("abcdef"), 120)
    noise = rng.normal(0, 0.5, (2, 3, 120)) + np.array([0, shift])[:, None, None] * np.array([0, 0, 1])[:, None]
    return [stereoset_icat(*(scores + n), terms, resampling=QUICK) for n in noise]


def test_comparisons_hold_their_level_and_see_a_difference():
    options = {"resampling": Resampling(resamples=400)}
    null = [compare(*icat_pair(seed, 0.0), **options) for seed in range(150)]
    assert {c.test for c in null} == {"bootstrap"}
    assert np.mean([c.p <= 0.1 for c in null]) == pytest.approx(0.1, abs=0.06)
    assert np.mean([c.low <= 0 <= c.high for c in null]) == pytest.approx(0.9, abs=0.07)
    assert np.mean([compare(*icat_pair(seed, 1.5), **options).p <= 0.05 for seed in range(15)]) > 0.9


def test_two_systems_that_miss_a_target_as_far_on_opposite_sides_are_not_told_apart():
    def pair(seed):
        rng = np.random.default_rng(seed)
        target = rng.beta(5, 5, 80)
        return [target_kl(target, rng.beta(*shape, 80), resampling=QUICK) for shape in ((8, 3), (3, 8))]

    found = [compare(*pair(seed), resampling=Resampling(resamples=200)) for seed in range(100)]
    assert np.mean([c.p <= 0.05 for c in found]) <= 0.1
    assert np.mean([c.low <= 0 <= c.high for c in found]) >= 0.85
    assert not any(c.p < 0.01 and c.low < 0 < c.high for c in found)


def test_pairing_sees_what_two_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    shifts = (0.0, rng.uniform(0.01, 0.03, 60))
    before, after = (mean_score(hard + shift, bounds=(0, 2)) for shift in shifts)
    assert after.low < before.high
    better = compare(before, after)
    assert 0 < better.low < better.high < 0.03 and better.p < 0.01 and better.improvement is None


def test_on_distance_two_opposite_biases_are_alike():
    before = crows_stereotype([1] * 70 + [0] * 30, [0.5] * 100)
    after = crows_stereotype([0] * 70 + [1] * 30, [0.5] * 100)
    value, distance = compare(before, after), compare(before, after, on="distance")
    assert value.difference == pytest.approx(-0.4) and value.p < 0.001
    assert distance.difference == pytest.approx(0) and distance.p == 1 and distance.test == "randomisation"
    assert value.improvement == pytest.approx(0) == distance.improvement
    with pytest.raises(NotSupportedError, match="no ideal value"):
        compare(mean_score([0.1, 0.2]), mean_score([0.3, 0.4]), on="distance")


def test_clusters_are_swapped_together():
    scores, question = clustered(0)
    shifted = np.clip(scores + np.random.default_rng(1).normal(0, 0.1, 25)[question], 0, 1)
    loose = compare(mean_score(scores), mean_score(shifted))
    tied = compare(mean_score(scores, clusters=question), mean_score(shifted, clusters=question))
    assert tied.difference == pytest.approx(loose.difference)
    assert tied.high - tied.low > 2 * (loose.high - loose.low) and tied.p > loose.p


def test_only_the_same_items_are_compared():
    one = stereoset_ss([1, 2, 3], [2, 1, 0], [0, 0, 0], ["a", "a", "b"])
    for other, message in (
        (crows_stereotype([1], [0]), "different metrics"),
        (stereoset_ss([1, 2], [2, 1], [0, 0], ["a", "a"]), "different items: 3 and 2"),
        (stereoset_ss([1, 2, 3], [2, 1, 0], [0, 0, 0], ["a", "b", "a"]), "Item 1 is not the same"),
        (stereoset_ss([1, 2, 3], [2, 1, 0], [0, 0, 0], ["a", "a", "b"], clusters=list("xyz")), "clusters"),
    ):
        with pytest.raises(InvalidInput, match=message):
            compare(one, other)
    for wrong in ({"runs": 10}, {"on": "rank"}):
        with pytest.raises(InvalidInput):
            compare(one, one, **wrong)


def test_only_what_was_measured_alike_is_compared():
    rng, groups = np.random.default_rng(0), np.resize(list("abc"), 60)
    one, two = (impact_ratio(rng.random(60), groups, threshold=t, resampling=QUICK) for t in (0.5, 0.7))
    with pytest.raises(InvalidInput, match="measured with different options"):
        compare(one, two)
    one, two = (regard_gap(rng.choice(kinds, 60), groups, resampling=QUICK) for kinds in (["a", "b"], ["a", "c"]))
    with pytest.raises(InvalidInput, match=r"different columns: group, a, b and group, a, c.* `among`"):
        compare(one, two)


def test_generations_of_a_prompt_are_no_pairs():
    """Sorted by class they would look like 90 pairs that agree and 10 that differ one way: p = 0.002 for nothing."""
    one, two = (target_mae([[n, 100 - n]], [0.5, 0.5]) for n in (60, 50))
    result = compare(one, two)
    assert result.p == 1 and (result.low, result.high) == (-1, 1)


def test_20000_items_need_little_memory():
    rng = np.random.default_rng(0)
    scores, groups, templates = rng.random(20_000), np.resize(list("abcdefgh"), 20_000), np.arange(20_000) // 8
    options = Resampling(resamples=60, permutations=2)
    for metric in (counterfactual_group, impact_ratio, sentiment_gap):
        for clusters in (None, templates):
            tracemalloc.start()
            try:
                metric(scores, groups, clusters=clusters, resampling=options)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 60e6
