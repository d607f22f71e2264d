"""The solver: right, certified, the same whatever the order, and defined at the edges."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mpf_chains.core import Objective, bootstrap_weights, fit_weights
from mpf_chains.core.objective import Scores
from mpf_chains.core.solver import solve, solve_by_columns
from mpf_chains.errors import DataWarning, IdentifiabilityWarning, InvalidInput, MPFWarning

OBJECTIVES = [Objective(), Objective(1, 0), Objective(0, 1), Objective(0.2, 0.8, alpha=0.5)]
pytestmark = pytest.mark.filterwarnings("ignore::mpf_chains.errors.MPFWarning")


def problem(seed, perspectives, questions, spread=0.15):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.1, 0.9, (perspectives, 1))
    return np.clip(rng.normal(centres, spread, (perspectives, questions)), 0, 1), rng.beta(5, 3, questions)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 2, 5, 20, 70]),
    questions=st.sampled_from([1, 7, 40, 300]),
    mode=st.sampled_from(["sampled", "aggregated"]),
    objective=st.sampled_from(OBJECTIVES),
    duplicate=st.booleans(),
)
def test_every_fit_is_certified_and_on_the_simplex(seed, size, questions, mode, objective, duplicate):
    scores, target = problem(seed, size, questions)
    if duplicate and size > 1:
        scores[1] = scores[0]
    fit = fit_weights(scores, target, objective=objective, mode=mode)
    assert fit.gap <= 1e-8 and fit.status == "optimal"
    assert fit.weights.min() >= 0 and fit.weights.sum() == pytest.approx(1, abs=1e-12)
    # the certificate is a true bound: no vertex and no random point lies lower than it says
    program = Scores(scores, target).program([objective], mode)
    others = np.concatenate([np.eye(size), np.random.default_rng(seed).dirichlet(np.ones(size), 50)])
    assert all(program.value(w[None])[0] >= fit.objective - fit.gap - 1e-12 for w in others)


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("size", [2, 5, 20])
def test_never_above_the_best_of_ten_slsqp_starts(mode, objective, size):
    scores, target = problem(size, size, 100)
    fit = fit_weights(scores, target, objective=objective, mode=mode)
    program = Scores(scores, target).program([objective], mode)
    rng = np.random.default_rng(0)
    best = min(
        program.value((np.clip(r.x, 0, 1) / np.clip(r.x, 0, 1).sum())[None])[0]
        for r in (
            minimize(
                lambda w: float(program.value(np.maximum(w, 1e-12)[None])[0]),
                rng.dirichlet(np.ones(size)),
                method="SLSQP",
                bounds=[(0, 1)] * size,
                constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}],
            )
            for _ in range(10)
        )
    )
    assert fit.objective <= best + 1e-9


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
@pytest.mark.parametrize("duplicate", [False, True])
def test_order_seed_and_bootstrap_leave_the_weights_alone(mode, duplicate):
    scores, target = problem(3, 7, 60)
    if duplicate:
        scores[4] = scores[2]
    rng = np.random.default_rng(0)
    reference = fit_weights(scores, target, mode=mode).weights
    for seed in range(5):
        rows, columns = rng.permutation(7), rng.permutation(60)
        moved = fit_weights(scores[rows][:, columns], target[columns], mode=mode, seed=seed).weights
        assert np.abs(moved - reference[rows]).max() <= 1e-9


@pytest.mark.parametrize("seed", [17, 24, 25, 0])
def test_order_does_not_matter_for_grades_with_many_ties(seed):
    rng = np.random.default_rng(seed)
    scores, target = rng.integers(0, 5, (6, 12)) / 4, np.full(12, 0.5)
    reference = fit_weights(scores, target, mode="aggregated").weights
    for _ in range(4):
        rows, columns = rng.permutation(6), rng.permutation(12)
        moved = fit_weights(scores[rows][:, columns], target, mode="aggregated").weights
        assert np.abs(moved - reference[rows]).max() <= 1e-9


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_planted_weights_are_recovered(size, overlap):
    """The error falls with n as sampling error does, and is small at n = 5,000."""
    planted = np.random.default_rng(size).dirichlet(np.full(size, 3.0))
    worst = []
    for n in (50, 500, 5000):
        errors = []
        for seed in range(8):
            scores, target = planted_problem(np.random.default_rng([seed, n]), planted, n, overlap)
            fit = fit_weights(
                scores, target, bins=24 if size in (3, 8) else 20, objective=Objective(kl=1, calibration=0)
            )
            errors.append(np.abs(fit.weights - planted).max())
        worst.append(np.mean(errors))
    assert worst[2] < worst[0] and worst[2] < 0.05 and worst[0] < 0.25


def planted_problem(rng, planted, n, overlap):
    """Scores of perspectives with disjoint or overlapping supports, and a target drawn from their mixture."""
    size = len(planted)
    if overlap:
        centres, spread = np.linspace(0.15, 0.85, size), 0.5 / size
        scores = rng.normal(centres[:, None], spread, (size, n))
        target = rng.normal(centres[rng.choice(size, n, p=planted)], spread)
    else:
        scores = (np.arange(size)[:, None] + rng.random((size, n))) / size
        target = (rng.choice(size, n, p=planted) + rng.random(n)) / size
    return np.clip(scores, 0, 1), np.clip(target, 0, 1)


def test_aggregated_mode_recovers_the_fusion_and_sampled_mode_does_not_pretend_to():
    scores, _ = problem(1, 4, 80)
    planted = np.array([0.1, 0.2, 0.3, 0.4])
    target = planted @ scores
    fused = fit_weights(scores, target, mode="aggregated", objective=Objective(kl=0, calibration=1))
    assert np.abs(fused.weights - planted).max() < 1e-7 and fused.calibration < 1e-8
    sampled = fit_weights(scores, target, mode="sampled", objective=Objective(kl=0, calibration=1))
    assert np.count_nonzero(sampled.weights) == 1  # a linear cost has its optimum at one perspective


def test_support_limit_is_exact_for_few_perspectives_and_certified_for_many():
    scores, target = problem(5, 6, 100)
    free = fit_weights(scores, target, objective=Objective(1, 0))
    limited = fit_weights(scores, target, objective=Objective(1, 0), max_support=2)
    assert np.count_nonzero(limited.weights) <= 2 and limited.objective >= free.objective - 1e-9
    pairs = [
        fit_weights(scores[[i, j]], target, objective=Objective(1, 0)).objective for i in range(6) for j in range(i)
    ]
    assert limited.objective == pytest.approx(min(pairs), abs=1e-9)
    many, target = problem(6, 40, 100)
    greedy = fit_weights(many, target, objective=Objective(1, 0), max_support=2)
    assert np.count_nonzero(greedy.weights) <= 2 and greedy.status == "best found"
    optimum = fit_weights(many, target, objective=Objective(1, 0)).objective
    assert greedy.objective - optimum == pytest.approx(greedy.gap, abs=1e-8)


@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_two_thousand_perspectives_are_certified(mode, alpha):
    scores, target = problem(0, 2000, 100)
    fit = fit_weights(scores, target, mode=mode, objective=Objective(0.2, 0.8, alpha=alpha))
    assert fit.gap <= 1e-8


def test_interior_point_and_column_generation_agree():
    scores, target = problem(2, 150, 60)
    program = Scores(scores, target).program([Objective()], "aggregated")
    assert solve(program).objective[0] == pytest.approx(solve_by_columns(program).objective[0], abs=1e-8)


def test_several_features_each_with_its_own_range_and_strengths():
    rng = np.random.default_rng(0)
    sentiment, length = rng.random((3, 200)), rng.uniform(0, 100, (3, 200))
    sentiment[0] *= 0.3
    length[2] *= 0.2
    pick = rng.choice(3, 200, p=[0.5, 0.2, 0.3])
    target = np.stack([sentiment[pick, range(200)], length[pick, range(200)]])
    fit = fit_weights(np.stack([sentiment, length]), target, [(0, 1), (0, 100)], objective=Objective(1, 0))
    assert np.abs(fit.weights - [0.5, 0.2, 0.3]).max() < 0.1 and len(fit.kl) == len(fit.calibration) == 2
    only_first = fit_weights(
        np.stack([sentiment, length]), target, [(0, 1), (0, 100)], objective=[Objective(1, 0), Objective(0, 1e-9)]
    )
    assert only_first.kl[0] <= fit.kl[0] + 1e-7
    rescaled = fit_weights(
        np.stack([sentiment, length / 100]), target / np.array([[1], [100]]), objective=Objective(1, 0)
    )
    assert np.abs(rescaled.weights - fit.weights).max() < 1e-7


def test_slsqp_reproduces_the_papers_setting_and_selects_one_perspective():
    scores, target = problem(4, 5, 100)
    fit = fit_weights(scores, target, objective=Objective(beta=1.0), solver="slsqp")
    assert np.isnan(fit.gap) and fit.status == "best found" and fit.weights.max() > 0.9


# Edges and faults 16-20


@pytest.mark.filterwarnings("error::mpf_chains.errors.MPFWarning")
def test_what_is_doubtful_warns():
    scores, target = problem(0, 3, 60)
    scores[1] = scores[0]
    with pytest.warns(IdentifiabilityWarning, match="not identifiable"):
        assert not fit_weights(scores, target, objective=Objective(1, 0)).identifiable
    with pytest.warns(DataWarning, match="100% of the target lies in score bins that no perspective reaches"):
        disjoint = fit_weights(np.full((2, 50), [[0.1], [0.2]]), np.full(50, 0.9))
    assert 2 < disjoint.kl < 10 and disjoint.uncovered == 1
    with pytest.warns(DataWarning, match="noise floor"):
        fit_weights([[0.2], [0.6]], [0.4], bins=20)
    fit_weights(*problem(0, 3, 60))


def test_constant_scores_and_targets_give_defined_weights():
    fit = fit_weights(np.full((3, 30), 0.5), np.full(30, 0.5))
    assert np.allclose(fit.weights, 1 / 3) and fit.kl == pytest.approx(0, abs=1e-12)
    assert fit_weights(np.random.default_rng(0).random((1, 30)), np.full(30, 0.5)).weights.tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scores=np.zeros((0, 5)), target=np.zeros(5)), "at least one perspective"),
        (dict(scores=np.zeros((2, 0)), target=np.zeros(0)), "at least one perspective and one question"),
        (dict(scores=np.zeros((2, 5)), target=np.zeros(4)), "do not fit together"),
        (dict(scores=[[np.nan, 0.5]], target=[0.5, 0.5]), "not a number within"),
        (dict(scores=[[2.0, 0.5]], target=[0.5, 0.5]), "not a number within"),
        (dict(scores=[[0.1, 0.5]], target=[0.5, 0.5], objective=Objective(beta=1)), "solver='slsqp'"),
        (dict(scores=[[0.1, 0.5]], target=[0.5, 0.5], max_support=0), "max_support"),
        (dict(scores=[[0.1, 0.5]], target=[0.5, 0.5], mode="both"), "unknown"),
        (dict(scores=[[0.1, 0.5]], target=[0.5, 0.5], max_support=1, solver="slsqp"), "max_support needs"),
        (dict(scores=[[0.1, 0.5]], target=[0.5, 0.5], groups=["a"]), "one label per question"),
        (dict(scores=[[0.1, 0.5]], target=[0.5, 0.5], objective=[Objective(), Objective()]), "2 objectives"),
    ],
)
def test_bad_input_says_what_is_wrong(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        fit_weights(**arguments)


def test_objectives_refuse_what_fits_nothing():
    for bad in ({"kl": -1}, {"alpha": np.nan}, {"kl": 0, "calibration": 0}):
        with pytest.raises(InvalidInput):
            Objective(**bad)


def test_warnings_are_ours():
    assert issubclass(DataWarning, MPFWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_weights(*problem(9, 4, 50))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("mode", ["sampled", "aggregated"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_degenerate_scores_are_solved_too(mode, objective):
    """Identical perspectives, few distinct scores, scores at the ends of the range."""
    rng = np.random.default_rng(0)
    for size, questions, levels in [(5, 5, 1), (5, 5, 2), (5, 30, 2), (3, 1, 1), (8, 3, 2), (120, 10, 2)]:
        scores = np.repeat(rng.choice([0.0, 0.25, 1.0], (size, 1)), questions, axis=1)
        if levels == 2:
            scores[:, ::2] = rng.choice([0.1, 0.9], (size, 1))
        fit = fit_weights(scores, rng.random(questions), mode=mode, objective=objective)
        assert fit.gap <= 1e-8
        draws = bootstrap_weights(scores, rng.random(questions), mode=mode, objective=objective, resamples=20)
        assert np.isfinite(draws.draws).all() and draws.gap < 1e-5
