"""Intervals that cover, a floor that holds, diagnoses that point the right way, draws that keep their quotas."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mpf_chains.core import (
    Grid,
    IIDSampler,
    Objective,
    QuotaSampler,
    alignment_test,
    bootstrap_many,
    bootstrap_statistics,
    bootstrap_weights,
    fit_weights,
    missing_perspective,
    pareto_front,
)
from mpf_chains.errors import InvalidInput
from tests.core.test_fit import planted_problem, problem

pytestmark = pytest.mark.filterwarnings("ignore::mpf_chains.errors.MPFWarning")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "n", "overlap"), [(3, 50, True), (5, 200, False), (5, 200, True), (8, 200, True)])
def test_ninety_per_cent_intervals_cover_the_planted_weights(size, n, overlap):
    """500 runs; the share of intervals that hold the truth lies in 86-94 %."""
    planted = np.random.default_rng(1).dirichlet(np.full(size, 5.0))
    problems = [planted_problem(np.random.default_rng([run, n]), planted, n, overlap) for run in range(500)]
    options = {"objective": Objective(kl=1, calibration=0), "bins": 24 if size in (3, 8) else 20, "seed": 1}
    covered = [(b.low <= planted) & (planted <= b.high) for b in bootstrap_many(problems, **options)]
    assert 0.86 <= np.mean(covered) <= 0.94


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
def test_batched_refits_equal_single_fits(mode):
    scores, target = problem(0, 4, 50)
    draws = bootstrap_weights(scores, target, mode=mode, resamples=20, seed=3)
    rng = np.random.default_rng(3)
    counts = rng.multinomial(50, np.full(50, 1 / 50), size=20)
    for i in range(20):
        chosen = np.repeat(np.arange(50), counts[i])
        single = fit_weights(scores[:, chosen], target[chosen], mode=mode)
        assert np.abs(single.weights - draws.draws[i]).max() < 5e-3
    assert draws.gap < 1e-6


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
def test_repetitions_of_a_question_count_as_one(mode):
    """Weights, intervals and objective are those of the questions asked once, whatever the order of the columns."""
    scores, target = problem(0, 3, 40)
    order = np.random.default_rng(0).permutation(200)
    columns = np.repeat(np.arange(40), 5)[order]
    once = fit_weights(scores, target, mode=mode)
    repeated = fit_weights(scores[:, columns], target[columns], mode=mode, groups=columns)
    assert repeated.weights == pytest.approx(once.weights, abs=1e-6)
    assert (repeated.objective, repeated.kl) == pytest.approx((once.objective, once.kl), abs=1e-8)
    plain = bootstrap_weights(scores, target, mode=mode, seed=1)
    grouped = bootstrap_weights(scores[:, columns], target[columns], mode=mode, seed=1, groups=columns)
    assert (grouped.high - grouped.low).sum() == pytest.approx((plain.high - plain.low).sum(), rel=0.25)


def test_alignment_test_holds_its_level_and_sees_a_shift():
    rng = np.random.default_rng(0)

    def p_values(runs, entities=1, tracking=0.0, shift=0.0):
        for seed in range(runs):
            target = rng.beta(5, 3, 40)
            answers = np.clip(
                tracking * np.tile(target, entities) + (1 - tracking) * rng.beta(5, 3, 40 * entities) + shift, 0, 1
            )
            groups = np.tile(np.arange(40), entities)
            yield alignment_test(np.tile(target, entities), answers, groups=groups, seed=seed, runs=199)

    assert np.mean(np.fromiter(p_values(200), float) <= 0.05) < 0.09
    assert np.mean(np.fromiter(p_values(100, entities=2), float) <= 0.05) < 0.14
    assert np.mean(np.fromiter(p_values(20, shift=0.1), float) <= 0.05) > 0.5
    assert np.mean(np.fromiter(p_values(20, tracking=0.9, shift=0.2), float) <= 0.05) > 0.9


def test_statistics_of_generated_answers():
    rng = np.random.default_rng(0)
    target, generated = rng.random(60), rng.random(60)
    result = bootstrap_statistics(target, generated)
    assert result["calibration"][0] == pytest.approx(np.abs(target - generated).mean())
    assert all(low <= high for _, low, high in result.values())
    with pytest.raises(InvalidInput):
        bootstrap_statistics(target, generated[:-1])


def test_pareto_front_trades_kl_against_calibration():
    front = [fit for _, fit in pareto_front(*problem(2, 5, 100))]
    assert len(front) == 21
    assert (np.diff([fit.kl for fit in front]) <= 1e-8).all()
    assert (np.diff([fit.calibration for fit in front]) >= -1e-8).all()
    assert front[0].kl > front[-1].kl


def test_missing_perspective_is_found_and_adding_it_lowers_kl():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.beta(2, 8, 200), rng.beta(4, 6, 200)])
    target = np.where(rng.random(200) < 0.3, rng.beta(30, 3, 200), scores[0])
    fit = fit_weights(scores, target, objective=Objective(1, 0))
    missing = missing_perspective(scores, target, fit.weights)
    low, high = missing.score_range
    assert low >= 0.8 and high <= 1
    useful, useless = rng.beta(30, 3, 200), rng.beta(4, 6, 200)
    assert missing.gain(Grid().density(useful)) > 1
    assert missing.gain(Grid().density(useless)) < 0.1
    used = Grid().density(scores)[fit.weights > 0]
    assert [missing.gain(density) for density in used] == pytest.approx([0] * len(used), abs=1e-4)  # optimality
    better = fit_weights(np.vstack([scores, useful]), target, objective=Objective(1, 0))
    same = fit_weights(np.vstack([scores, useless]), target, objective=Objective(1, 0))
    assert better.kl < fit.kl - 0.1 and same.kl > fit.kl - 0.01


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.floats(0.001, 1), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_quota_draws_stay_within_one_at_every_prefix(weights, seed):
    shares = {f"p{i}": w / sum(weights) for i, w in enumerate(weights)}
    sampler, counts = QuotaSampler(seed), dict.fromkeys(shares, 0)
    for n in range(1, 200):
        counts[sampler.draw(shares, entity="e")] += 1
        assert all(abs(counts[k] - n * shares[k]) < 1 + 1e-6 for k in shares)


def test_quota_counts_survive_threads_pickle_and_other_entities():
    sampler, shares = QuotaSampler(), {"a": 0.5, "b": 0.3, "c": 0.2, "never": 0.0}
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: sampler.draw(shares, entity="x"), range(1000)))
    assert [drawn.count(k) for k in shares] == [500, 300, 200, 0]
    copy = pickle.loads(pickle.dumps(sampler))
    assert [copy.draw(shares, entity="x") for _ in range(5)] == [sampler.draw(shares, entity="x") for _ in range(5)]
    changing = [{"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8}] * 5
    drawn = [each.draw_changing(shares, entity="z") for shares in changing for each in (sampler, copy)]
    assert drawn[::2] == drawn[1::2] and abs(drawn[::2].count("a") - 5.5) < 1
    again = pickle.loads(pickle.dumps(sampler))
    assert again.draw_changing(changing[0], entity="z") == sampler.draw_changing(changing[0], entity="z")


@pytest.mark.parametrize("weights", [(0.6, 0.4), (0.05, 0.95), (0.6, 0.3, 0.1), (0.4, 0.2, 0.2, 0.1, 0.1)])
def test_few_quota_draws_are_right_on_average_over_seeds(weights):
    """Without a phase the largest name is first, and 0.95 would be 1 for 19 draws."""
    shares, seeds, n = {f"p{i}": w for i, w in enumerate(weights)}, 1000, 9
    ways = [lambda s: s.draw(shares, entity="e")]
    ways += [lambda s: s.draw_changing(shares, entity="e")] if len(weights) == 2 else []
    for draw in ways:
        counts = np.zeros((n, len(shares)))
        for seed in range(seeds):
            sampler = QuotaSampler(seed)
            counts += np.cumsum([[draw_ == k for k in shares] for draw_ in [draw(sampler) for _ in range(n)]], axis=0)
        error = np.abs(counts / seeds - np.arange(1, n + 1)[:, None] * np.array(weights)).max()
        assert error < (0.06 if len(weights) == 2 else 0.2)


def test_iid_draws_are_keyed_and_follow_the_weights():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2, "never": 0.0}
    sampler = IIDSampler(seed=3)
    drawn = [sampler.draw(shares, key=str(i)) for i in range(100_000)]
    assert drawn[:50] == [IIDSampler(seed=3).draw(dict(reversed(shares.items())), key=str(i)) for i in range(50)]
    counts = [drawn.count(k) for k in ("a", "b", "c")]
    assert stats.chisquare(counts, [50_000, 30_000, 20_000]).pvalue > 0.001 and "never" not in drawn


def test_quota_draws_lower_the_variance_of_the_realised_mean():
    scores, shares = {"a": 0.1, "b": 0.5, "c": 0.9}, {"a": 0.3, "b": 0.45, "c": 0.25}
    truth = sum(scores[k] * shares[k] for k in shares)

    def error(sampler, run):
        draws = [sampler.draw(shares, key=f"{run}/{i}") for i in range(37)]
        return (np.mean([scores[d] for d in draws]) - truth) ** 2

    iid = np.mean([error(IIDSampler(), r) for r in range(200)])
    assert error(QuotaSampler(), 0) < iid / 4
