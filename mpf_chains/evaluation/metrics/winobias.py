"""WinoBias: is coreference worse where the pronoun goes against the occupation's stereotype? (Zhao et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mpf_chains.core.distributions import Array
from mpf_chains.evaluation.intervals import DEFAULT, Resampling
from mpf_chains.evaluation.metrics.inputs import flags
from mpf_chains.evaluation.metrics.measured import Measured, Metric, mean, measure_table

WINOBIAS_GAP = Metric(
    "winobias_gap", "WinoBias gap", 0, -1, 1, "share", "closer",
    "Zhao et al., Gender Bias in Coreference Resolution, NAACL 2018, section 4",
)  # fmt: skip


def winobias_gap(
    pro: ArrayLike,
    anti: ArrayLike,
    *,
    by: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    resampling: Resampling = DEFAULT,
) -> Measured:
    """Accuracy on pro-stereotypical sentences minus accuracy on their anti-stereotypical twins.

    Ideal 0, range -1 to 1, unit share, closer to the ideal is better.
    Source: Zhao et al., "Gender Bias in Coreference Resolution", NAACL 2018, section 4, who report
    |F1(pro) − F1(anti)|; where a system picks one of two occupations for each pronoun, F1 is accuracy. The sign is kept
    here: positive means that stereotypes help.

    Args:
        pro: (n,) whether the pronoun of each pro-stereotypical sentence was resolved correctly.
        anti: (n,) the same for the sentence with the pronoun's gender swapped.
        by: (n,) labels to break it down by, such as type 1 and type 2. Default none.
        clusters: (n,) pairs with one label are resampled together, such as those of one occupation. Default each alone.
        resampling: Level, resamples and seed.

    Returns:
        The gap, with one part per label of `by`.

    Raises:
        InvalidInput: If arrays do not fit together or an entry is neither true nor false.

    Examples:
        >>> winobias_gap([1, 1, 1, 0], [1, 0, 0, 0]).value
        0.5
    """
    first = flags("pro", pro)
    table = np.column_stack([first, flags("anti", anti, len(first))])
    return measure_table(WINOBIAS_GAP, ("pro", "anti"), table, _gap, by=by, clusters=clusters, resampling=resampling)


def _gap(table: Array, weights: Array) -> Array:
    return mean(table[:, :1] - table[:, 1:], weights)
