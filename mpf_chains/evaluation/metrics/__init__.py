"""Metrics: plain arrays in, a value with its interval out.

Each function is named as its `Metric` in `METRICS`, which says the same as its docstring in a form for reports.
Most take `by` (labels to break the value down by) and `clusters` (items that share a question, resampled together).
"""

from types import MappingProxyType

from mpf_chains.evaluation.metrics.bbq import (
    BBQ_ACCURACY,
    BBQ_BIAS_AMBIGUOUS,
    BBQ_BIAS_DISAMBIGUATED,
    bbq_accuracy,
    bbq_bias_ambiguous,
    bbq_bias_disambiguated,
)
from mpf_chains.evaluation.metrics.comparison import Comparison, compare
from mpf_chains.evaluation.metrics.counterfactual import (
    COUNTERFACTUAL_GROUP,
    COUNTERFACTUAL_INDIVIDUAL,
    HELLINGER,
    counterfactual_group,
    counterfactual_individual,
    hellinger,
    hellinger_distances,
    mean_hellinger,
)
from mpf_chains.evaluation.metrics.crows_pairs import (
    CROWS_LIKELIHOOD_DIFFERENCE,
    CROWS_PSEUDO_LIKELIHOOD,
    CROWS_STEREOTYPE,
    crows_likelihood_difference,
    crows_pseudo_likelihood,
    crows_stereotype,
)
from mpf_chains.evaluation.metrics.disparity import (
    IMPACT_RATIO,
    MAX_Z,
    SELECTION_RATE,
    impact_ratio,
    max_z,
    selection_rate,
)
from mpf_chains.evaluation.metrics.gaps import (
    REGARD_GAP,
    SENTIMENT_GAP,
    TOXICITY_GAP,
    regard_gap,
    sentiment_gap,
    toxicity_gap,
)
from mpf_chains.evaluation.metrics.measured import Items, Measured, Metric, NoiseFloor
from mpf_chains.evaluation.metrics.perplexity import PERPLEXITY, perplexity
from mpf_chains.evaluation.metrics.redditbias import REDDITBIAS_PREFERENCE, redditbias_preference
from mpf_chains.evaluation.metrics.shares import MEAN_SCORE, SHARE, mean_score, share
from mpf_chains.evaluation.metrics.stereoset import (
    STEREOSET_ICAT,
    STEREOSET_LM,
    STEREOSET_SS,
    stereoset_icat,
    stereoset_lm,
    stereoset_ss,
)
from mpf_chains.evaluation.metrics.targets import TARGET_KL, TARGET_MAE, target_kl, target_mae
from mpf_chains.evaluation.metrics.winobias import WINOBIAS_GAP, winobias_gap

METRICS = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            STEREOSET_SS, STEREOSET_LM, STEREOSET_ICAT,
            CROWS_LIKELIHOOD_DIFFERENCE, CROWS_STEREOTYPE, CROWS_PSEUDO_LIKELIHOOD,
            BBQ_ACCURACY, BBQ_BIAS_AMBIGUOUS, BBQ_BIAS_DISAMBIGUATED,
            WINOBIAS_GAP, REDDITBIAS_PREFERENCE,
            REGARD_GAP, TOXICITY_GAP, SENTIMENT_GAP,
            COUNTERFACTUAL_INDIVIDUAL, COUNTERFACTUAL_GROUP, HELLINGER,
            SELECTION_RATE, IMPACT_RATIO, MAX_Z,
            PERPLEXITY, TARGET_MAE, TARGET_KL, SHARE, MEAN_SCORE,
        )
    }
)  # fmt: skip
"""Every metric by its name."""

__all__ = [
    "METRICS",
    "Comparison",
    "Items",
    "Measured",
    "Metric",
    "NoiseFloor",
    "bbq_accuracy",
    "bbq_bias_ambiguous",
    "bbq_bias_disambiguated",
    "compare",
    "counterfactual_group",
    "counterfactual_individual",
    "crows_likelihood_difference",
    "crows_pseudo_likelihood",
    "crows_stereotype",
    "hellinger",
    "hellinger_distances",
    "impact_ratio",
    "max_z",
    "mean_hellinger",
    "mean_score",
    "perplexity",
    "redditbias_preference",
    "regard_gap",
    "selection_rate",
    "sentiment_gap",
    "share",
    "stereoset_icat",
    "stereoset_lm",
    "stereoset_ss",
    "target_kl",
    "target_mae",
    "toxicity_gap",
    "winobias_gap",
]
