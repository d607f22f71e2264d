"""One figure of several systems on one benchmark: every metric with its interval, ideal and floor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mpf_chains.evaluation.result import Evaluation

COLOURS = ("#c44e52", "#4c72b0", "#55a868", "#8172b3", "#937860")


def plot_evaluations(evaluations: Sequence[Evaluation], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw every metric that the systems share, one panel each.

    Args:
        evaluations: At least one, all on the same benchmark.
        path: Where to write the figure; the suffix decides the format. Default nowhere.

    Returns:
        The matplotlib figure: dots are values, lines their intervals, the dashed line is the ideal, and the shaded
        stretch is what an ideal system would score for want of more data.

    Raises:
        MissingExtra: If matplotlib is not installed.
        InvalidInput: If the systems share no metric.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    first = evaluations[0]
    keys = [key for key in first.measured if all(key in each.measured for each in evaluations)]
    if not keys:
        raise InvalidInput("The systems have no metric in common.", hint="Evaluate them on the same benchmark.")
    rows = len(evaluations)
    figure = Figure(figsize=(8.0, len(keys) * (0.55 + 0.28 * rows) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(keys), 1, squeeze=False)
    for panel, key in zip(panels[:, 0], keys, strict=True):
        _panel(panel, key, evaluations)
    figure.suptitle(f"{first.benchmark['name']}, {first.benchmark['items']} items", fontsize=11)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _panel(panel: Any, key: str, evaluations: Sequence[Evaluation]) -> None:
    metric = evaluations[0].measured[key].metric
    for place, each in enumerate(evaluations):
        one, colour = each.measured[key], COLOURS[place % len(COLOURS)]
        panel.plot([one.low, one.high], [place, place], color=colour, linewidth=2)
        panel.plot([one.value], [place], "o", color=colour)
        if one.floor is not None and metric.ideal is not None:
            panel.axvspan(metric.ideal, one.floor.limit, color="#999999", alpha=0.12)
    if metric.ideal is not None:
        panel.axvline(metric.ideal, color="#222222", linestyle="--", linewidth=1)
    panel.set_yticks(range(len(evaluations)), [each.label for each in evaluations])
    panel.set(ylim=(len(evaluations) - 0.5, -0.5))
    panel.set_title(f"{key} ({metric.title}, {metric.unit})", fontsize=9, loc="left")
    panel.grid(alpha=0.25, axis="x")
