"""One figure: target, normal and debiased distributions, and the weights with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpf_chains.artifact import Calibration
from mpf_chains.errors import MissingExtra
from mpf_chains.reporting.table import POOLED, _of_entity, systems_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"target": "#222222", "normal": "#c44e52"}
OTHERS = ("#4c72b0", "#55a868", "#8172b3", "#937860")


def plot_calibrations(
    calibrations: Mapping[str, Calibration], path: str | Path | None = None, feature: str | None = None, title: str = ""
) -> Figure:
    """Draw the held-out distributions before and after, and the weights behind them.

    Args:
        calibrations: Label → calibration, each validated.
        path: Where to write the figure; the suffix decides the format. Default nowhere.
        feature: Which feature. Default the first.
        title: Put above. Default none.

    Returns:
        The matplotlib figure.

    Raises:
        MissingExtra: If matplotlib is not installed.
        InvalidInput: If a calibration was not validated.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots") from error
    columns = len(calibrations)
    figure = Figure(figsize=(max(9.0, 3.4 * columns), 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, columns, height_ratios=[1.0, 1.1])
    _distributions(figure.add_subplot(grid[0, :]), calibrations, feature)
    first = None
    for i, (label, calibration) in enumerate(calibrations.items()):
        axes = figure.add_subplot(grid[1, i], sharey=first)
        _weights(axes, label, calibration)
        if first is None:
            first = axes
        else:
            axes.tick_params(labelleft=False)
    if first is not None:
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=8)
    if title:
        figure.suptitle(title)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _distributions(axes: Any, calibrations: Mapping[str, Calibration], feature: str | None) -> None:
    """Cumulative distributions: no bins to choose, and the distance between two curves is what Wasserstein measures."""
    calibration = next(iter(calibrations.values()))
    record = _of_entity(calibration, feature, POOLED)
    systems = systems_of(calibrations, feature)
    colours = cycle(OTHERS)
    series = {"target": record["target"], **{name: measured["scores"] for name, measured in systems.items()}}
    for name, scores in series.items():
        kl = "" if name == "target" else f", KL {systems[name]['kl']['value']:.2f}"
        axes.ecdf(
            np.asarray(scores, dtype=np.float64),
            label=f"{name} (mean {np.mean(scores):.2f}{kl})",
            color=COLOURS.get(name) or next(colours),
            linewidth=2.4 if name == "target" else 1.6,
            linestyle="--" if name == "target" else "-",
        )
    floor = record["floor"]
    name = feature or calibration.features[0]
    axes.set(xlabel=f"{name} of the answer", ylabel="share of answers at or below", ylim=(0, 1))
    axes.set_title(f"Held-out questions ({len(record['target'])}); KL floor {floor['mean']:.2f}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.25)


def _weights(axes: Any, label: str, calibration: Calibration) -> None:
    """Weights per entity as bars, with intervals."""
    names = calibration.perspectives.names
    rows = {**calibration.weights, "all pooled": calibration.pooled}
    spans = {**calibration.intervals, "all pooled": calibration.pooled_intervals}
    height = 0.8 / len(rows)
    for i, (entity, row) in enumerate(rows.items()):
        places = np.arange(len(names)) + (i - (len(rows) - 1) / 2) * height
        values = np.array([row[name] for name in names])
        error = None
        if spans.get(entity):
            ends = np.array([spans[entity][name] for name in names])
            error = np.maximum(np.stack([values - ends[:, 0], ends[:, 1] - values]), 0)
        axes.barh(places, values, height * 0.9, xerr=error, label=entity, alpha=0.85, error_kw={"elinewidth": 0.8})
    axes.set_yticks(np.arange(len(names)), names)
    axes.set(xlabel="weight", xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
    intervals = f" ({calibration.level:.0%} intervals)" if any(calibration.intervals.values()) else ""
    axes.set_title(f"Weights: {label}{intervals}", fontsize=10)
    axes.grid(alpha=0.25, axis="x")
