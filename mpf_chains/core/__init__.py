"""The numbers of mpf_chains: pure functions of arrays, numpy and scipy only."""

from mpf_chains.core.diagnosis import MissingPerspective, missing_perspective, pareto_front
from mpf_chains.core.distributions import Grid, energy_distance, js, kl, total_variation, wasserstein
from mpf_chains.core.fit import Fit, fit_weights
from mpf_chains.core.inference import (
    Bootstrap,
    Floor,
    alignment_test,
    bootstrap_many,
    bootstrap_statistics,
    bootstrap_weights,
    noise_floor,
)
from mpf_chains.core.objective import Mode, Objective
from mpf_chains.core.sampling import IIDSampler, QuotaSampler, Sampler

__all__ = [
    "Bootstrap",
    "Fit",
    "Floor",
    "Grid",
    "IIDSampler",
    "MissingPerspective",
    "Mode",
    "Objective",
    "QuotaSampler",
    "Sampler",
    "alignment_test",
    "bootstrap_many",
    "bootstrap_statistics",
    "bootstrap_weights",
    "energy_distance",
    "fit_weights",
    "js",
    "kl",
    "missing_perspective",
    "noise_floor",
    "pareto_front",
    "total_variation",
    "wasserstein",
]
