"""How far groups lie apart in regard, toxicity and sentiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.core.distributions import Array
from mpf_chains.errors import InvalidInput
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.groups import mean_gap, measure_groups, measure_scores
from mpf_chains.evaluation.metrics.inputs import clusters_of, flags, groups_of, labels
from mpf_chains.evaluation.metrics.measured import Measured, Metric
from mpf_chains.evaluation.metrics.shares import share

_SOURCE = "Tong et al., arXiv 2412.01711, global bias metrics"
REGARD_GAP = Metric(
    "regard_gap", "Regard gap", 0, 0, 1, "share", "lower",
    f"{_SOURCE}; regard: Sheng et al., EMNLP 2019",
)  # fmt: skip
TOXICITY_GAP = Metric("toxicity_gap", "Toxicity gap", 0, 0, 1, "share", "lower", _SOURCE)
SENTIMENT_GAP = Metric(
    "sentiment_gap", "Sentiment gap", 0, 0, np.inf, "units of the score", "lower",
    f"{_SOURCE}, for the mean of a score in place of a share",
)  # fmt: skip


def regard_gap(
    regard: Iterable[Any],
    groups: Iterable[Any],
    *,
    of: str | Sequence[str] | None = None,
    among: Sequence[str] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Mean absolute difference between groups in the shares of regard labels, over all pairs of groups.

    Ideal 0, range 0 to 1, unit share, lower is better.
    Source: Tong et al., arXiv 2412.01711: mean over pairs of groups {a, b} of |share_a(label) − share_b(label)|, of the
    labels of Sheng et al., "The Woman Worked as a Babysitter", EMNLP 2019, with names masked as "XYZ" before they are
    given. Chance alone makes groups differ: the floor says by how much.

    Args:
        regard: (n,) label of each answer: negative, neutral, positive, other, or whatever the classifier gives.
        groups: (n,) group that each answer is about; at least two.
        of: The label to compare, such as "negative", or several, over which the mean is taken. Default: all labels.
        among: All labels that the classifier can give. Name them to compare systems: a label that never occurs has no
            gap and counts in the mean. Default: those that occur.
        clusters: (n,) answers with one label are resampled together, such as those to versions of one prompt. Default:
            each alone, resampled within its group.
        resampling: Level, resamples, shuffles and seed.

    Returns:
        The gap, with its floor and as parts each group's share (by "group" for one label, else by "group: label").

    Raises:
        InvalidInput: If arrays do not fit together, there is one group only, an answer has a label that is not `among`
            the labels, or `of` is none of them.

    Examples:
        >>> regard_gap(["negative", "positive"] * 2, ["a", "b", "a", "a"], of="negative").value
        0.666...
    """
    given = regard if isinstance(regard, str) else list(regard)
    codes, names = labels("regard", given, max(len(given), 1))
    known = names if among is None else list(dict.fromkeys(among))
    if not set(names) <= set(known):
        raise InvalidInput(f"regard has the labels {', '.join(names)}; only {', '.join(known)} are among the known.")
    compared = known if of is None else [of] if isinstance(of, str) else list(dict.fromkeys(of))
    unknown = [name for name in compared if name not in known]
    if unknown or not compared:
        raise InvalidInput(f"No answer has the label {', '.join(unknown)!r}; the labels are {', '.join(known)}.")
    given_names = np.array(names)[codes]
    values = np.column_stack([given_names == name for name in compared]).astype(np.float64)
    return _share_gap(REGARD_GAP, values, compared, not isinstance(of, str), groups, clusters, resampling)


def toxicity_gap(
    toxic: ArrayLike,
    groups: Iterable[Any],
    *,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Mean absolute difference between groups in the share of toxic answers, over all pairs of groups.

    Ideal 0, range 0 to 1, unit share, lower is better.
    Source: Tong et al., arXiv 2412.01711: mean over pairs of groups {a, b} of |share_a(toxic) − share_b(toxic)|. Chance
    alone makes groups differ: the floor says by how much.

    Args:
        toxic: (n,) whether each answer is toxic.
        groups: (n,) group that each answer is about; at least two.
        clusters: As in `regard_gap`.
        resampling: As in `regard_gap`.

    Returns:
        The gap, with its floor and as parts each group's share.

    Raises:
        InvalidInput: If arrays do not fit together, there is one group only, or an entry is neither true nor false.

    Examples:
        >>> toxicity_gap([1, 0, 0, 0], ["a", "a", "b", "b"]).value
        0.5
    """
    values = flags("toxic", toxic)[:, None]
    return _share_gap(TOXICITY_GAP, values, ["toxic"], False, groups, clusters, resampling)


def sentiment_gap(
    scores: ArrayLike,
    groups: Iterable[Any],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Mean absolute difference between groups in the mean score, over all pairs of groups; for any feature.

    Ideal 0, range 0 to inf, unit units of the score, lower is better (the range ends at the width of the bounds).
    Source: the form of Tong et al., arXiv 2412.01711, with means of a score in place of shares of a label. It sees
    where groups lie, not how they spread: `counterfactual_group` sees both.

    Args:
        scores: (n,) score of each answer, within the bounds.
        groups: (n,) group that each answer is about; at least two.
        bounds: The feature's declared range. Default 0 to 1.
        clusters: As in `regard_gap`.
        resampling: As in `regard_gap`.

    Returns:
        The gap, with its floor and as parts each group's mean.

    Raises:
        FeatureError: If a score is not finite or outside the bounds.
        InvalidInput: If arrays do not fit together or there is one group only.

    Examples:
        >>> sentiment_gap([0.25, 0.5, 1.0], ["a", "b", "b"]).value
        0.5
    """
    return measure_scores(
        SENTIMENT_GAP, mean_gap, scores, groups, bounds=bounds, clusters=clusters, resampling=resampling
    )


def _share_gap(
    metric: Metric,
    values: Array,
    columns: Sequence[str],
    named: bool,
    groups: Iterable[Any],
    clusters: Iterable[Any] | None,
    resampling: Resampling,
) -> Measured:
    codes, names = groups_of(groups, len(values))
    cluster = clusters_of(clusters, len(values))
    by = [names[code] for code in codes]
    parts = {
        f"{group}: {column}" if named else group: part
        for column, value in zip(columns, values.T, strict=True)
        for group, part in share(value, by=by, clusters=cluster, resampling=resampling).parts.items()
    }
    return measure_groups(
        metric, tuple(columns), codes, values, mean_gap, parts=parts, clusters=cluster, resampling=resampling
    )
