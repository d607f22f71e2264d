"""Evaluation: `evaluate` any model on any benchmark, and the metrics with their ideal values and intervals."""

from mpf_chains.evaluation import metrics
from mpf_chains.evaluation.evaluator import Evaluator, aevaluate, evaluate
from mpf_chains.evaluation.intervals import Resampling, share_interval
from mpf_chains.evaluation.likelihoods import LikelihoodModel, MaskedModel, NextTokenModel
from mpf_chains.evaluation.metrics import METRICS, Comparison, Measured, Metric, NoiseFloor, compare
from mpf_chains.evaluation.plan import EvaluationPlan
from mpf_chains.evaluation.result import Evaluation
from mpf_chains.evaluation.trigger import Trigger

__all__ = [
    "METRICS",
    "Comparison",
    "Evaluation",
    "EvaluationPlan",
    "Evaluator",
    "LikelihoodModel",
    "MaskedModel",
    "Measured",
    "Metric",
    "NextTokenModel",
    "NoiseFloor",
    "Resampling",
    "Trigger",
    "aevaluate",
    "compare",
    "evaluate",
    "metrics",
    "share_interval",
]
