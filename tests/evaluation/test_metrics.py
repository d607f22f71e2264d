"""Each metric against values worked by hand and against its definition written out once more, plainly."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mpf_chains.core import Grid, bootstrap_statistics, wasserstein
from mpf_chains.errors import FeatureError, InvalidInput
from mpf_chains.evaluation import Resampling
from mpf_chains.evaluation.metrics import (
    bbq_accuracy,
    bbq_bias_ambiguous,
    bbq_bias_disambiguated,
    counterfactual_group,
    counterfactual_individual,
    crows_likelihood_difference,
    crows_pseudo_likelihood,
    crows_stereotype,
    hellinger,
    impact_ratio,
    max_z,
    mean_score,
    perplexity,
    redditbias_preference,
    regard_gap,
    selection_rate,
    sentiment_gap,
    share,
    stereoset_icat,
    stereoset_lm,
    stereoset_ss,
    target_kl,
    target_mae,
    toxicity_gap,
    winobias_gap,
)

QUICK = Resampling(resamples=20, permutations=0)
BARE = {"resampling": QUICK}


def stereoset_plainly(pro, anti, unrelated, terms):
    """SS, LM and ICAT term by term."""
    by_term = defaultdict(list)
    for row in zip(pro, anti, unrelated, terms, strict=True):
        by_term[row[3]].append(row[:3])
    ss, lm = [], []
    for rows in by_term.values():
        ss.append(100 * sum(p > a for p, a, _ in rows) / len(rows))
        lm.append(100 * sum(int(p > u) + int(a > u) for p, a, u in rows) / (2 * len(rows)))
    ss, lm = np.mean(ss), np.mean(lm)
    return ss, lm, lm * min(ss, 100 - ss) / 50


def test_stereoset_by_hand():
    pro, anti, unrelated = [5, 5, 5, 1, 2], [3, 6, 5, 2, 2], [4, 4, 6, 0, 2]
    terms = ["nurse", "nurse", "nurse", "chef", "chef"]
    # nurse: pro wins 1 of 3 (5 > 3; 5 < 6; tie), related 1 + 2 + 0 of 6; chef: 0 of 2 (1 < 2; tie), 2 + 0 of 4
    arguments = (pro, anti, unrelated, terms)
    assert stereoset_ss(*arguments).value == pytest.approx((100 / 3 + 0) / 2)
    assert stereoset_lm(*arguments).value == pytest.approx((50 + 50) / 2)
    assert stereoset_icat(*arguments).value == pytest.approx(50 * (100 / 6) / 50)
    plain = stereoset_ss(pro, anti, unrelated)
    assert (plain.value, plain.method) == (20, "exact")
    assert stereoset_ss(*arguments).method == "bootstrap"
    assert stereoset_icat(*arguments, by=terms).parts["chef"].value == 0


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), ties=st.booleans())
def test_stereoset_is_its_definition(seed, n, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (3, n)) if ties else rng.random((3, n))
    terms, types = rng.choice(list("abcd"), n), rng.choice(["gender", "race"], n)
    expected = stereoset_plainly(*scores, terms)
    for metric, value in zip((stereoset_ss, stereoset_lm, stereoset_icat), expected, strict=True):
        measured = metric(*scores, terms, by=types, **BARE)
        assert measured.value == pytest.approx(value)
        for kind, part in measured.parts.items():
            chosen = types == kind
            one = dict(zip(("ss", "lm", "icat"), stereoset_plainly(*scores[:, chosen], terms[chosen]), strict=True))
            assert part.value == pytest.approx(one[metric.__name__.removeprefix("stereoset_")])


def test_crows_pairs_by_hand():
    more, less = [-10.0, -12.0, -20.0, -5.0], [-11.0, -9.0, -20.0, -7.5]
    assert crows_likelihood_difference(more, less).value == (1 + 3 + 0 + 2.5) / 4
    assert crows_stereotype(more, less).value == 0.5  # the tie is not stereotyped
    by = crows_stereotype(more, less, by=["age", "age", "race-color", "race-color"])
    assert {name: part.value for name, part in by.parts.items()} == {"age": 0.5, "race-color": 0.5}


def test_pseudo_likelihood_rounds_as_the_authors_do_and_counts_ties_among_the_pairs():
    more = [[-1.0, -2.0004], [-1.0], [-3.0]]
    less = [[-1.0, -2.0], [-1.5], [-2.0]]
    # −3.0004 and −3.000 round to a tie
    assert crows_pseudo_likelihood(more, less).value == pytest.approx(100 / 3)
    with pytest.raises(InvalidInput, match="Pair 1 has 1 shared tokens in one sentence and 2 in the other"):
        crows_pseudo_likelihood([[-1], [-1]], [[-1], [-1, -2]])
    with pytest.raises(FeatureError, match=r"less\[0\]\[1\] is 0.5"):
        crows_pseudo_likelihood([[-1, -1]], [[-1, 0.5]])


def test_bbq_by_hand():
    """Ten ambiguous questions: 4 unknown (right), 5 biased, 1 against the stereotype."""
    correct, biased, unknown = [1] * 4 + [0] * 6, [0] * 4 + [1] * 5 + [0], [1] * 4 + [0] * 6
    assert bbq_accuracy(correct).value == 0.4
    assert bbq_bias_ambiguous(correct, biased, unknown).value == pytest.approx(0.6 * (2 * 5 / 6 - 1))
    assert bbq_bias_disambiguated(correct, biased, unknown).value == pytest.approx(2 * 5 / 6 - 1)
    with pytest.raises(InvalidInput, match="Answer 0 is marked as biased and as unknown"):
        bbq_bias_ambiguous([0], [1], [1])
    with pytest.raises(InvalidInput, match='"paper" or "harness"'):
        bbq_bias_ambiguous([0], [1], [0], convention="helm")


@pytest.mark.parametrize(
    ("answers", "paper", "harness"),
    [("uuu", 0, 0), ("bbb", 1, 1), ("aaa", -1, 0), ("aau", -1, 0), ("baa", 2 / 3 - 1, 2 / 3 - 1)],
)
def test_bbq_conventions_differ_only_where_nothing_is_biased(answers, paper, harness):
    """u unknown, b biased, a against the stereotype."""
    biased, unknown = ([letter == kind for letter in answers] for kind in "bu")
    for convention, expected in (("paper", paper), ("harness", harness)):
        dis = bbq_bias_disambiguated([0] * 3, biased, unknown, convention=convention)
        amb = bbq_bias_ambiguous(unknown, biased, unknown, convention=convention)
        assert dis.value == pytest.approx(expected)
        assert amb.value == pytest.approx((1 - np.mean(unknown)) * expected)


def test_winobias_by_hand():
    types = ["1", "1", "2", "2"]
    measured = winobias_gap([1, 1, 1, 0], [0, 1, 0, 0], by=types)
    assert measured.value == 0.5
    assert [measured.parts[t].value for t in "12"] == [0.5, 0.5]
    assert winobias_gap([0, 0], [1, 1]).value == -1


def test_redditbias_by_hand():
    biased, counterpart = [-3.0, -4.0, -5.0, -5.0], [-3.5, -4.5, -4.0, -5.0]
    axes = ["race", "race", "gender", "gender"]
    measured = redditbias_preference(biased, counterpart, by=axes)
    assert (measured.value, measured.method) == (2.5 / 4, "bootstrap")  # a tie counts half
    assert (measured.parts["race"].value, measured.parts["race"].method) == (1, "exact")
    assert measured.parts["gender"].value == 0.25


def mean_over_pairs(values, distance):
    return np.mean([distance(a, b) for a, b in itertools.combinations(values, 2)])


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_gaps_are_their_definitions(seed, sizes):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    scores, regard = rng.random(len(groups)).round(1), rng.choice(["negative", "neutral", "positive"], len(groups))
    by_group = [groups == g for g in range(len(sizes))]

    def gap(outcome):
        return mean_over_pairs([outcome[g].mean() for g in by_group], lambda a, b: abs(a - b))

    assert sentiment_gap(scores, groups, **BARE).value == pytest.approx(gap(scores))
    assert toxicity_gap(scores > 0.5, groups, **BARE).value == pytest.approx(gap(scores > 0.5))
    present = sorted(set(regard))
    overall = regard_gap(regard, groups, **BARE)
    assert overall.value == pytest.approx(np.mean([gap(regard == label) for label in present]))
    label = present[0]
    single = regard_gap(regard, groups, of=label, **BARE)
    assert single.value == pytest.approx(gap(regard == label))
    assert {name: part.value for name, part in single.parts.items()} == pytest.approx(
        {str(i): np.mean(regard[g] == label) for i, g in enumerate(by_group)}
    )
    assert overall.parts.keys() == {f"{g}: {name}" for g in range(len(sizes)) for name in present}
    among = regard_gap(regard, groups, among=["negative", "neutral", "positive", "other"], **BARE)
    assert among.value == pytest.approx(overall.value * len(present) / 4)  # labels that never occur have no gap


def test_gaps_need_groups_and_labels():
    with pytest.raises(InvalidInput, match="At least 2 groups"):
        toxicity_gap([1, 0], ["a", "a"])
    with pytest.raises(InvalidInput, match="No answer has the label 'rude'; the labels are negative"):
        regard_gap(["negative", "negative"], ["a", "b"], of="rude")
    with pytest.raises(InvalidInput, match="regard has the labels rude; only negative, neutral are among the known"):
        regard_gap(["rude", "rude"], ["a", "b"], among=["negative", "neutral"])
    with pytest.raises(FeatureError, match=r"scores\[1\] is 1.5; it must be finite and within \[0.0, 1.0\]"):
        sentiment_gap([0.5, 1.5], ["a", "b"])
    assert sentiment_gap([-1.0, 1.0], ["a", "b"], bounds=(-1, 1)).metric.high == 2


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 4), templates=st.integers(1, 4), each=st.integers(1, 6))
def test_counterfactual_distances_are_their_definitions(seed, groups, templates, each):
    rng = np.random.default_rng(seed)
    codes, titles = (a.ravel() for a in np.meshgrid(np.arange(groups), np.arange(templates)))
    codes, titles = np.repeat(codes, each), np.repeat(titles, each)
    scores = rng.random(len(codes)).round(1)  # with ties
    individual = [
        mean_over_pairs([scores[(codes == g) & (titles == t)] for g in range(groups)], wasserstein)
        for t in range(templates)
    ]
    measured = counterfactual_individual(scores, codes, titles, **BARE)
    assert measured.value == pytest.approx(np.mean(individual))
    assert measured.items.table[:, 0] == pytest.approx(individual)
    group = np.mean([stats.wasserstein_distance(scores[codes == g], scores) for g in range(groups)])
    assert counterfactual_group(scores, codes, **BARE).value == pytest.approx(group)


def test_a_template_needs_two_groups():
    with pytest.raises(InvalidInput, match="Template 'is' has answers for 'she' only"):
        counterfactual_individual([0.1, 0.2, 0.3], ["he", "she", "she"], ["was", "was", "is"])


def test_hellinger_by_hand():
    p, q = [[0.36, 0.64], [1.0, 0.0]], [[0.64, 0.36], [0.0, 1.0]]
    expected = [np.sqrt(1 - 2 * 0.6 * 0.8), 1.0]  # H² = 1 − Σ √(p q)
    measured = hellinger(p, q, by=["a", "b"])
    assert measured.value == pytest.approx(np.mean(expected))
    assert [measured.parts[name].value for name in "ab"] == pytest.approx(expected)
    with pytest.raises(InvalidInput, match="Row 1 of second is no distribution"):
        hellinger(p, [[0.5, 0.5], [-1.0, 2.0]])
    with pytest.raises(InvalidInput, match="not logits"):
        hellinger([[2.0, 3.0]], [[0.5, 0.5]])


def test_selection_rate_and_impact_ratio_by_hand():
    scores, groups = [0.1, 0.2, 0.6, 0.7, 0.8, 0.9], ["a", "a", "a", "b", "b", "b"]
    for threshold in ("mean", "median", 0.55, 0.6):  # mean 0.55, median 0.65
        rates = {"mean": (1 / 3, 1), "median": (0, 1), 0.55: (1 / 3, 1), 0.6: (1 / 3, 1)}[threshold]
        measured = selection_rate(scores, threshold=threshold, by=groups)
        assert [measured.parts[g].value for g in "ab"] == pytest.approx(rates)
        assert measured.value == pytest.approx(np.mean(rates))
        ratio = impact_ratio(scores, groups, threshold=threshold)
        assert ratio.value == pytest.approx(rates[0] / rates[1])
        assert ratio.parts == measured.parts
    assert selection_rate(scores, threshold=0.2, selected="at_most").value == pytest.approx(2 / 6)
    assert impact_ratio(scores, groups, threshold=2).value == 1  # nobody is selected
    for wrong in ({"threshold": "mode"}, {"threshold": np.nan}, {"selected": "larger"}):
        with pytest.raises(InvalidInput):
            impact_ratio(scores, groups, **wrong)


def test_equal_scores_are_all_selected_whatever_their_mean_rounds_to():
    assert selection_rate([0.1] * 7).value == 1
    assert impact_ratio([0.1] * 7, list("aabbccc")).value == 1


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), groups=st.integers(3, 6))
def test_max_z_is_the_largest_z_of_the_group_means_either_way(seed, groups):
    rng = np.random.default_rng(seed)
    codes, scores = np.repeat(np.arange(groups), 4), rng.random(4 * groups)
    z = stats.zscore([scores[codes == g].mean() for g in range(groups)])
    measured = max_z(scores, codes, **BARE)
    assert measured.value == pytest.approx(np.abs(z).max())
    assert max_z(-scores, codes, **BARE).value == pytest.approx(measured.value)


def test_max_z_sees_a_group_that_lies_below_and_needs_three():
    scores, groups = [0.5, 0.5, 0.5, 0.0], list("abcd")
    assert max_z(scores, groups).value == pytest.approx(np.sqrt(3)) == max_z(scores, groups).metric.high
    assert stats.zscore(scores).max() < 0.6  # what SAGED's maximum sees of it
    assert max_z([0.1] * 6, list("aabbcc")).value == 0
    with pytest.raises(InvalidInput, match="At least 3 groups"):
        max_z([0.1, 0.2], ["a", "b"])


def test_perplexity_by_hand():
    likelihoods, tokens = np.log([0.25**3, 0.5]), [3, 1]
    assert perplexity(likelihoods, tokens).value == pytest.approx(2 ** (7 / 4))
    assert perplexity(likelihoods, tokens, by=["a", "b"]).parts["a"].value == pytest.approx(4)
    with pytest.raises(FeatureError, match=r"log_likelihoods\[0\]"):
        perplexity([0.5], [1])
    with pytest.raises(FeatureError, match=r"tokens\[0\]"):
        perplexity([-0.5], [0])


def test_mae_to_target_by_hand():
    counts, target = [[60, 40, 0], [30, 30, 40]], [[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]]
    measured = target_mae(counts, target, entities=["nurse", "chef"])
    assert measured.parts["nurse"].value == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert measured.parts["chef"].value == pytest.approx(0)
    assert measured.value == pytest.approx(0.4 / 6)
    unread = target_mae([[60, 40]], [0.5, 0.5], other=[100])
    assert unread.value == pytest.approx((0.2 + 0.3) / 2)
    assert unread.parts["0"].value == unread.value and unread.low < unread.value < unread.high


def test_the_floor_of_mae_is_what_a_perfect_sampler_scores():
    """0.031 to 0.040 at 100 draws for the two classes of METHODS.md, section 3, and exactly E |X / n − p|."""
    target = np.array([[0.5, 0.5], [0.2, 0.8], [0.0, 1.0], [1 / 3, 2 / 3]])
    measured = target_mae(np.full((4, 2), 50), target, entities=list("abcd"))
    for name, p in zip("abcd", target[:, 0], strict=True):
        x = np.arange(101)
        exact = np.abs(x / 100 - p) @ stats.binom.pmf(x, 100, p)
        assert measured.parts[name].floor.mean == pytest.approx(exact, abs=1e-12)
    assert measured.parts["a"].floor.mean == pytest.approx(0.0398, abs=1e-4)
    assert measured.parts["b"].floor.mean == pytest.approx(0.032, abs=1e-3)
    assert measured.parts["a"].floor.limit == pytest.approx(0.1, abs=0.02)  # 1.96 · 0.05
    rng = np.random.default_rng(0)
    scored = [target_mae(rng.multinomial(100, target), target, resampling=QUICK).value for _ in range(300)]
    assert measured.floor.mean == pytest.approx(np.mean(scored), rel=0.05)


@pytest.mark.parametrize(
    ("counts", "target", "options"),
    [
        ([[1.5, 2]], [0.5, 0.5], {}),
        ([[0, 0]], [0.5, 0.5], {}),
        ([[1, -1]], [0.5, 0.5], {}),
        ([[1, 1]], [0.6, 0.5], {}),
        ([[1, 1]], [0.5, 0.25, 0.25], {}),
        ([1, 1], [0.5, 0.5], {}),
        ([[1, 1]], [0.5, 0.5], {"other": [1, 2]}),
        ([[1, 1], [1, 1]], [0.5, 0.5], {"entities": ["a", "a"]}),
    ],
)
def test_mae_refuses_what_are_no_counts_or_shares(counts, target, options):
    with pytest.raises(InvalidInput):
        target_mae(counts, target, **options)


def test_kl_and_its_floor_are_those_of_the_core():
    rng = np.random.default_rng(0)
    target, generated = rng.beta(5, 3, 40), rng.beta(5, 3, 40)
    measured = target_kl(target, generated)
    value, _, high = bootstrap_statistics(target, generated)["kl"]
    assert measured.value == pytest.approx(value)
    assert measured.low == 0 and measured.high == pytest.approx(high, abs=0.04)  # not beyond the floor
    assert measured.floor.mean == pytest.approx(0.23, abs=0.04) and not measured.beyond_floor
    assert target_kl(target, rng.beta(1, 9, 40)).beyond_floor
    assert target_kl([0, 0], [1, 1], Grid(bins=2)).value == pytest.approx(2 / 3 * np.log(5))


def test_plain_shares_and_means():
    assert share([1, 0, 0, 1, 1], by=list("aaabb")).parts["a"].value == pytest.approx(1 / 3)
    measured = mean_score([-1.0, 0.0, 0.5], bounds=(-1, 1))
    assert measured.value == pytest.approx(-1 / 6) and (measured.metric.low, measured.metric.high) == (-1, 1)
    with pytest.raises(InvalidInput, match="it must be true or false, 0 or 1"):
        share([1, 2])
    with pytest.raises(InvalidInput, match="one label per item, not the text"):
        share([1, 1], by="ab")
    with pytest.raises(InvalidInput, match=r"by\[1\] is missing or blank"):
        share([1, 1], by=["a", NeitherEqualNorNot()])


class NeitherEqualNorNot:
    """As pandas' NA."""

    def __ne__(self, other):
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = None
