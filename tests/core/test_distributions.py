"""Distances and histograms against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpf_chains.core import Grid, energy_distance, js, kl, noise_floor, total_variation, wasserstein
from mpf_chains.errors import InvalidInput

samples = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@given(x=samples, y=samples)
def test_sample_distances_equal_scipys(x, y):
    assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)
    assert energy_distance(x, y) == pytest.approx(stats.energy_distance(x, y), abs=1e-7)


@given(x=samples, y=samples, bins=st.integers(2, 40))
def test_divergences_keep_their_bounds(x, y, bins):
    p, q = Grid(bins=bins).density(x), Grid(bins=bins).density(y)
    assert p.sum() == pytest.approx(1) and (p > 0).all()
    assert kl(p, p) == pytest.approx(0, abs=1e-12)
    assert kl(p, q) >= 2 * total_variation(p, q) ** 2 - 1e-12  # Pinsker
    assert js(p, q) + 1e-12 >= 0 and js(p, q) <= np.log(2)
    assert kl(p, q) == pytest.approx(stats.entropy(p, q), abs=1e-12)


def test_bins_are_shared_so_disjoint_distributions_are_far_apart():
    low, high = Grid().density(np.full(100, 0.05)), Grid().density(np.full(100, 0.95))
    assert 3 < kl(low, high) < 10


def test_noise_floor_is_what_two_samples_of_one_distribution_score():
    rng = np.random.default_rng(0)
    pairs = [kl(Grid().density(rng.beta(5, 3, 40)), Grid().density(rng.beta(5, 3, 40))) for _ in range(2000)]
    assert np.mean(pairs) == pytest.approx(0.23, abs=0.02)
    for n in (1, 5, 10, 40):
        true = np.mean([kl(Grid().density(rng.beta(5, 3, n)), Grid().density(rng.beta(5, 3, n))) for _ in range(400)])
        floors = [noise_floor(rng.beta(5, 3, n), seed=i, runs=100).mean for i in range(40)]
        assert np.mean(floors) == pytest.approx(true, rel=0.35)


def test_repeating_a_target_for_other_entities_does_not_lower_its_floor():
    rng = np.random.default_rng(0)
    target = rng.beta(5, 3, 40)
    repeated = np.tile(target, 4)
    true = np.mean(
        [kl(Grid().density(np.tile(rng.beta(5, 3, 40), 4)), Grid().density(rng.beta(5, 3, 160))) for _ in range(400)]
    )
    grouped = noise_floor(repeated, groups=np.tile(np.arange(40), 4)).mean
    assert grouped == pytest.approx(true, rel=0.25)
    assert noise_floor(repeated).mean < grouped / 1.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_scores_outside_the_declared_range_are_refused_not_clipped(bad):
    with pytest.raises(InvalidInput, match="index \\(1,\\) is not a number within the declared range"):
        Grid().density([0.5, bad])


@pytest.mark.parametrize("arguments", [{"bins": 1}, {"smoothing": 0}, {"low": 1, "high": 1}, {"high": np.inf}])
def test_grids_refuse_what_makes_no_histogram(arguments):
    with pytest.raises(InvalidInput):
        Grid(**arguments)
