"""Evaluation: `evaluate` any model on any benchmark, and the metrics with their ideal values and intervals."""

from mpf_chains.evaluation import metrics
from mpf_chains.evaluation.baselines import VerbalizedSampling, prompted_target
from mpf_chains.evaluation.evaluator import Evaluator, aevaluate, evaluate
from mpf_chains.evaluation.intervals import Resampling, share_interval
from mpf_chains.evaluation.likelihoods import LikelihoodModel, MaskedModel, NextTokenModel
from mpf_chains.evaluation.metrics import METRICS, Comparison, Measured, Metric, NoiseFloor, compare
from mpf_chains.evaluation.plan import EvaluationPlan
from mpf_chains.evaluation.result import Evaluation
from mpf_chains.evaluation.share_figure import plot_shares
from mpf_chains.evaluation.tasks.shares import measure_shares
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
    "VerbalizedSampling",
    "aevaluate",
    "compare",
    "evaluate",
    "measure_shares",
    "metrics",
    "plot_shares",
    "prompted_target",
    "share_interval",
]
