"""Evaluation: metrics with their ideal values and intervals."""

from mpf_chains.evaluation import metrics
from mpf_chains.evaluation.intervals import Resampling, share_interval
from mpf_chains.evaluation.metrics import METRICS, Comparison, Measured, Metric, NoiseFloor, compare

__all__ = [
    "METRICS",
    "Comparison",
    "Measured",
    "Metric",
    "NoiseFloor",
    "Resampling",
    "compare",
    "metrics",
    "share_interval",
]
